"""The processes of one run: who they are, and how they tell each other small things.

`torchrun` (or `surefoot train --devices`, which starts it) has put rank and address into the
environment; `join` reads it and opens the group. Gradients do not pass through here.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import zip_longest
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from surefoot.config.units import parse_seconds
from surefoot.engine.ranks.meet import Missing, meet, ready, together
from surefoot.engine.ranks.tree import share
from surefoot.engine.signals import later
from surefoot.errors import RunError, SurefootError
from surefoot.track import exits

__all__ = ["SAVE", "STOP", "Team", "join", "launched", "leave", "met", "reaching", "tell"]

T = TypeVar("T")

SAVE = 1  # what a rank may wish for, to be done by all after the same step
STOP = 2
_GONE = (
    "Connection reset by peer",
    "Connection closed by peer",
    "Broken pipe",
    "Timed out",
    "gloo",
)
_NOTHING: Any = object()
_SIGNAL = 8  # the number of the signal that asked to stop, above these bits
_WAIT = 3600.0  # seconds a collective may take; the watch ends a rank that hangs long before


@dataclass
class Team:
    """All ranks of a run. `calls` counts what was begun together, and tells who is behind.

    `wish` returns bits that this rank wants to be done by all; `heard` are those of all ranks,
    known after each step. `waits` says that rank 0 does something alone, which may take its time.
    """

    rank: int
    size: int
    local: int  # which of the processes on its machine
    device: torch.device
    neighbours: int = 1  # processes on a machine
    name: str = ""  # of this start, in the store
    again: bool = False  # whether torchrun has started the ranks before
    calls: int = 0
    step: int = 0
    busy: float = 0.0  # seconds that this rank computed in its last step
    alone: str = ""
    wish: Callable[[], int] = lambda: 0
    heard: int = 0
    pace: list[float] = field(default_factory=list)  # least `busy` of each rank since last told
    late: dict[int, int] = field(default_factory=dict)  # how often a rank was slow
    watch: Any = None  # the heartbeat (beat.py), from joining to leaving

    @property
    def leads(self) -> bool:
        """Whether this rank writes the run's folder."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return which of `count` pieces are this rank's."""
        return share(count, self.rank, self.size)

    def gather(self, value: T) -> list[T]:
        """Return what each rank gave; any picklable value."""
        self.calls += 1
        found: list[Any] = [None] * self.size
        with reaching():
            dist.all_gather_object(found, value)
        return found

    def told(self, value: T) -> T:
        """Return what rank 0 gave."""
        self.calls += 1
        box = [value]
        with reaching():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def first(self, make: Callable[[], T], what: str = "preparing") -> T:
        """Return on all ranks what rank 0 makes, or raise there what it raises.

        The value is pickled, but not for rank 0, which keeps its own.
        """
        mine: Any = None
        error: BaseException | None = None
        if self.leads:
            self.alone = what
            mine, error = _tried(make)
            self.alone = ""
        found, failed = self.told((mine, _portable(error)))
        if error is not None:
            raise error
        if failed is not None:
            raise failed
        return mine if self.leads else found

    def each(self, make: Callable[[], T]) -> T:
        """Return what this rank makes; where it fails on any, raise on all what the lowest says."""
        mine, error = _tried(make)
        self._together(error, self.gather(_portable(error)))
        return mine  # type: ignore[return-value]

    def dealt(self, make: Callable[[], Sequence[T]], what: str) -> list[T]:
        """Return in order what all ranks make, of which rank r makes every `size`-th from r on.

        Where it fails on any, raise on all what the lowest says.
        """
        self.alone = what
        mine, error = _tried(make)
        self.alone = ""
        found = self.gather((mine, _portable(error)))
        self._together(error, [failed for _, failed in found])
        rounds = zip_longest(*(part or () for part, _ in found), fillvalue=_NOTHING)
        return [value for values in rounds for value in values if value is not _NOTHING]

    def _together(self, error: Exception | None, failed: Sequence[BaseException | None]) -> None:
        """Raise what the lowest of the ranks that `failed` says; `error` is what is raised here."""
        for rank, other in enumerate(failed):
            if other is not None:
                mine = error if rank == self.rank else None
                raise _from_rank(mine or other, rank, self.size)

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return any(self.gather(flag))

    def listen(self, wishes: list[int]) -> None:
        """Take in the wishes of all ranks."""
        for wish in wishes:
            self.heard |= wish

    @property
    def signal(self) -> int:
        """The number of the signal that some rank was sent, or 0."""
        return self.heard >> _SIGNAL if self.heard & STOP else 0

    @staticmethod
    def stop(signal: int) -> int:
        """Return the wish to stop because of this signal."""
        return STOP | (signal << _SIGNAL)


@contextmanager
def reaching() -> Iterator[None]:
    """Say in our words that another rank cannot be reached; gloo and NCCL have many for it."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        known = isinstance(error, dist.DistError) or any(sign in text for sign in _GONE)
        if not known or isinstance(error, torch.OutOfMemoryError):
            raise
        why = next((sign for sign in _GONE if sign in text), text.partition("\n")[0])
        raise _gone(why) from error


def _gone(why: str) -> SurefootError:
    if _joined is not None and _joined.watch is not None:
        found: SurefootError = _joined.watch.gone(why)
        return found
    return SurefootError(f"another rank is gone: {why}", fix="surefoot resume goes on")


def _tried(make: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """Return what `make` gives, or what it raises, which is raised later on all ranks."""
    try:
        return make(), None
    except Exception as error:
        return None, error


def _portable(error: BaseException | None) -> BaseException | None:
    """Return an error that can be sent: itself without its frames, or one that says the same."""
    if error is None:
        return None
    try:
        copy.copy(error)  # as sending it would do
    except Exception:
        plain = SurefootError(f"{type(error).__name__}: {error}")
        plain.__dict__["exit_code"] = getattr(error, "exit_code", 1)
        return plain
    return error


def _from_rank(error: BaseException, rank: int, size: int) -> BaseException:
    """Say where it failed, unless that is where everything is said anyway."""
    if rank and isinstance(error, SurefootError):
        error.where = f"rank {rank} of {size}" + (f", {error.where}" if error.where else "")
    return error


def launched() -> bool:
    """Whether this process is one of a group that torchrun started."""
    return "RANK" in os.environ and "MASTER_ADDR" in os.environ


_joined: Team | None = None


def join(patience: str = "10min") -> Team:
    """Join the group that the environment describes, once; return the team.

    Gradients go through NCCL on CUDA and through gloo elsewhere, everything small through gloo.
    Raises RunError when the others do not come, or the address is taken. A signal ends this process
    before it has come or when it can tell the others, not in between.
    """
    global _joined
    if _joined is not None:
        return _joined
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = local < torch.cuda.device_count()
    place = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(place)
    from surefoot.engine.ranks.beat import Watch  # which knows teams

    seconds = parse_seconds(patience)
    try:
        store, name, again = meet(rank, size, seconds)
        ready(store, rank, size)
        with later():
            together(store, rank)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=store, rank=rank, world_size=size, timeout=timedelta(seconds=_WAIT),
            )  # fmt: skip
            around = int(os.environ.get("LOCAL_WORLD_SIZE", size))
            joined = Team(rank, size, local, place, around, name=name, again=again)
            joined.watch = Watch(joined, _WAIT).start()
            _joined = joined
            exits.came()
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise _absent(error, rank, size, seconds) from error
    return _joined


def _absent(error: Exception, rank: int, size: int, seconds: float) -> RunError:
    text = str(error).partition("\n")[0]
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    if "EADDRINUSE" in str(error) or "in use" in str(error):
        fix = "another --rdzv-endpoint (torchrun: --master-port), or end who listens there"
        return RunError("the port is in use", where=place, fix=fix)
    if isinstance(error, Missing):
        what = f"not all {size} ranks came within {seconds:.0f} s: {text}"
    elif rank == 0:
        what = f"not all {size} ranks came within {seconds:.0f} s ({text})"
    else:
        what = f"rank 0 cannot be reached ({text})"
    fix = "start every node with the same --nnodes and --rdzv-endpoint; see that they reach it"
    return RunError(what, where=place, fix=fix)


def met() -> bool:
    """Whether this process belongs to a group by now."""
    return _joined is not None


def leave(code: int = 0) -> int:
    """Close the group, if there is one; return the code with which it ends.

    That is the code of the rank that failed first, where this one fails, too.
    """
    global _joined
    if _joined is None:
        return code
    if _joined.watch is not None:
        if code:
            code = _joined.watch.fail(code).code
        _joined.watch.stop()
    if dist.is_initialized():
        dist.destroy_process_group()
    _joined = None
    return code


def tell(error: Exception) -> None:
    """Let the other ranks know what ends this one, if there are others."""
    if _joined is not None and _joined.watch is not None:
        _joined.watch.fail(error)
