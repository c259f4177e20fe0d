"""All ranks of this start find each other in a store that may still hold the keys of an earlier one.

After a machine is lost or comes back, torchrun starts the processes anew and keeps its store. It
counts restarts for each machine apart, so its count cannot tell the starts apart: rank 0 makes a
name for this one and gives it to whoever asks.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from surefoot.errors import Stopped, SurefootError
from surefoot.track import exits

__all__ = ["Missing", "meet", "open_store", "ready", "together"]

_HOME = "surefoot"
_GLANCE = 0.02  # seconds
_DOUBT = 2.0  # seconds until a code that somebody left is not that of an earlier start
_SLACK = 60.0  # seconds that rank 0 may have begun later, or that a rank that is here may not be heard of


def open_store(seconds: float, serve: bool = False, size: int | None = None) -> Any:
    """Return the store at the address in the environment; `serve` it, unless torchrun does."""
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), size,
        is_master=serve and not agent, timeout=timedelta(seconds=seconds),
        wait_for_workers=False, multi_tenant=True,
    )  # fmt: skip


class Missing(RuntimeError):
    """Not all ranks came; says which, and who did."""


def meet(rank: int, size: int, seconds: float) -> tuple[Any, str, bool]:
    """Return the store of this start, its name there, and whether another start came before.

    Raises DistError or RuntimeError when not all come within `seconds`, Missing where it is known
    who did not, SurefootError with the code of one that ended instead of coming. Nothing waits here
    within the store, where no signal would reach it.
    """
    store = open_store(seconds, rank == 0, size)
    home, mine = PrefixStore(_HOME, store), secrets.token_hex(8)
    if rank:
        home.set(f"asks/{rank}", mine)
        _wait(home, f"answer/{mine}", seconds)
        name, _, again = home.get(f"answer/{mine}").decode().partition(" ")
        home.set(f"{name}/here/{rank}", socket.gethostname())
        _wait(home, f"{name}/all", seconds + _SLACK)
    else:
        name, again = mine, "again" if home.check(["begun"]) else ""
        home.set("begun", mine)
        try:
            hosts = _answer(home, size, f"{name} {again}", seconds)
        except SurefootError as error:
            home.set(f"{name}/all", error.what)
            raise
        home.set(f"{name}/all", _missing(hosts, size))
    if missing := home.get(f"{name}/all").decode():
        if rank:
            home.set(f"{name}/heard/{rank}", "")
        else:  # with this process the store may go
            _leave_last(home, [f"{name}/heard/{other}" for other in hosts if other])
        raise Missing(missing)
    return PrefixStore(f"{_HOME}/{name}", store), name, bool(again)


def ready(store: Any, rank: int, size: int) -> None:
    """Wait, on rank 0, until all others are in `together`, where no signal makes them leave."""
    for other in range(1, size if rank == 0 else 0):
        _wait(store, f"ready/{other}", _SLACK)


def together(store: Any, rank: int) -> None:
    """Go on at the same time as the others; called where signals wait."""
    if rank == 0:
        store.set("go", "")
        return
    store.set(f"ready/{rank}", "")
    _wait(store, "go", _SLACK)


def _leave_last(home: Any, heard: Sequence[str]) -> None:
    end = time.monotonic() + _DOUBT
    while not home.check(heard) and time.monotonic() < end:
        time.sleep(_GLANCE)


def _wait(home: Any, key: str, seconds: float) -> None:
    for _ in _glances(seconds):
        if home.check([key]):
            return
    raise RuntimeError(f"it did not answer within {seconds:.0f} s")


def _glances(seconds: float) -> Iterator[None]:
    """Yield now and then until time is up; raise what a process of this machine ended with too early."""
    end, since = time.monotonic() + seconds, 0.0
    while (now := time.monotonic()) < end:
        yield
        time.sleep(_GLANCE)
        ended = exits.missed()
        since = (since or now) if ended else 0.0
        if ended and now - since > _DOUBT:
            raise _ended(ended)


def _ended(codes: Mapping[int, int]) -> SurefootError:
    """Return what the others raise: the code of an error rather than that of a stop."""
    local, code = max(codes.items(), key=lambda item: (item[1] != Stopped.exit_code, -item[0]))
    first = int(os.environ["RANK"]) - int(os.environ.get("LOCAL_RANK", "0"))
    who = f"rank {first + local} ({socket.gethostname()})"
    if code == Stopped.exit_code:
        return Stopped(f"{who} was told to stop before it came", fix="the same command goes on")
    found = SurefootError(f"{who} ended with code {code} before it came")
    found.__dict__.update(exit_code=code, final=True)
    return found


def _answer(home: Any, size: int, answer: str, seconds: float) -> dict[int, str]:
    """Tell every rank that asks, until all have come or `seconds` are over; return the hosts of all.

    An older start's question is answered, too.
    """
    name = answer.partition(" ")[0]
    hosts, answered = {0: socket.gethostname()}, dict[int, bytes]()
    for _ in _glances(seconds):
        for rank in sorted(set(range(size)).difference(hosts)):
            if home.check([f"asks/{rank}"]):
                asked = home.get(f"asks/{rank}")
                if answered.get(rank) != asked:
                    home.set(f"answer/{asked.decode()}", answer)
                    answered[rank] = asked
            if home.check([f"{name}/here/{rank}"]):
                hosts[rank] = home.get(f"{name}/here/{rank}").decode()
        if len(hosts) == size:
            break
    return hosts


def _missing(hosts: Mapping[int, str], size: int) -> str:
    """Say which ranks did not come, and where those are that did; nothing where all came.

    The host of a rank that never came is not known, but which of the machines it was to be.
    """
    each = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    absent = sorted(set(range(size)).difference(hosts))
    if not absent:
        return ""
    where = {rank: f"machine {rank // each + 1} of {-(-size // each)}" for rank in absent}
    lost = _listed({rank: where[rank] if each < size else "" for rank in absent})
    return f"{lost} did not; here {'is' if len(hosts) == 1 else 'are'} {_listed(hosts)}"


def _listed(places: Mapping[int, str]) -> str:
    """Return ranks by place: `rank 0, 1 (node0), rank 3 (node1)`."""
    by_place: dict[str, list[str]] = {}
    for rank, place in sorted(places.items()):
        by_place.setdefault(place, []).append(str(rank))
    return ", ".join(
        f"rank {', '.join(ranks)}" + (f" ({place})" if place else "")
        for place, ranks in by_place.items()
    )
