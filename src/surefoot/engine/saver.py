"""Save in the background: the state is written while the next gradient is computed.

The state is on loan until the next update (`loan`), which copies what is not written by then. At most
one save is in flight. A save that fails is reported, older checkpoints stay whole, and it is tried
again; it never ends training.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from surefoot.config.schema import Keep
from surefoot.config.units import parse_seconds
from surefoot.engine import retain
from surefoot.engine.loan import Loan, Room, Withheld
from surefoot.engine.mirror import Mirror
from surefoot.engine.reading import UnreadableError
from surefoot.engine.state import Payload, Snapshot, TrainState
from surefoot.engine.store import Checkpoint, Store
from surefoot.errors import CheckpointError, OutOfResources, RunError

__all__ = ["Pace", "Saver"]

RETRY = 30.0  # seconds until a save that failed is tried again
_RATE = 5e8  # bytes a second that a save writes, guessed before the first
_SURE = 0.8  # share of a step in which its update surely does not come


@dataclass
class Pace:
    """When the next save is due: every n steps, every t seconds, or so rarely that it is cheap.

    `auto` spends at most 1 % of the time on saving: a save that took s seconds is followed by at
    least 100 s without one (at least 15 s, at most 15 minutes).
    """

    every: int | str
    last_time: float = 0.0
    cost: float = 0.1  # seconds that the last save took, guessed before the first

    def due(self, step: int, now: float) -> bool:
        """Whether a save is due after `step` at monotonic time `now`."""
        if isinstance(self.every, int):
            return self.every > 0 and step % self.every == 0
        return now - self.last_time >= self.interval

    @property
    def interval(self) -> float:
        """Seconds between saves, for the time-based kinds."""
        if self.every == "auto":
            return min(900.0, max(15.0, 100 * self.cost))
        return parse_seconds(str(self.every))


class Saver:
    """Writes snapshots of a state into a store and lets old checkpoints go.

    `before_commit` puts everything that a checkpoint refers to on the disk first. `pinned` are
    steps whose checkpoints must stay, whatever `keep` says.
    """

    def __init__(
        self,
        store: Store,
        keep: Keep,
        every: int | str,
        before_commit: Callable[[], None],
        mirror: Mirror | None = None,
    ) -> None:
        self.store, self.keep, self.mirror = store, keep, mirror
        self.pace = Pace(every, last_time=time.monotonic())
        self.stall = 0.0  # seconds that training has waited for saves
        self.pinned: Collection[int] = ()
        self._before_commit = before_commit
        self._snapshot = Snapshot()
        self._room: Room = {}  # for copies of what the last update came too soon for
        self._rate = _RATE  # bytes a second that the last save wrote
        self._asked: float | None = None  # when it last was whether a save is due: once a step
        self._steps: deque[float] = deque(maxlen=2)  # seconds of the last ones
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None  # of the last save; None when it is on the disk
        self._news: list[str] = []  # what is not yet told, in words
        self._retry_at: float | None = None
        self._mirror_lost = False

    def due(self, step: int) -> bool:
        """Whether to save now: by cadence, or because an earlier save failed a while ago."""
        now = time.monotonic()
        if self._asked is not None:
            self._steps.append(now - self._asked)
        self._asked = now
        retry = self._retry_at is not None and now >= self._retry_at
        return retry or self.pace.due(step, now)

    def save(
        self,
        state: TrainState,
        *,
        metric: float | None = None,
        still: Payload | None = None,
        write: Callable[[Path], dict[str, tuple[int, str]]] | None = None,
        **facts: Any,
    ) -> None:
        """Write `state` as it is now in the background, after the save before has ended.

        `still` is what `TrainState.still` gave, where that takes more than this process. With `write`,
        which writes the tensors with the help of others, nothing is left for later.
        """
        begun = time.monotonic()
        self.wait()
        self._retry_at = None
        loan = self._lend(still or state.still(), len(state.learners))
        what = (state.step, loan, metric, facts, self.pinned)
        if write is not None:
            self._write(*what, write=write)
            self.stall += time.monotonic() - begun
            return
        self._thread = threading.Thread(target=self._write, args=what, name="surefoot-save")
        self._thread.start()
        for learner in state.learners.values():
            learner.before_change = partial(self._end, loan)
        self.pace.last_time = time.monotonic()
        self.stall += self.pace.last_time - begun

    def _lend(self, still: Payload, learners: int) -> Loan | Withheld:
        if still.copied or not still.on_host:
            return Withheld(still, self._snapshot)
        # One of the two may have had an evaluation in it.
        until_update = _SURE * min(self._steps, default=math.inf) / learners
        return Loan(still, self._room, until_update * self._rate)

    def _end(self, loan: Loan | Withheld) -> None:
        begun = time.monotonic()
        loan.end()
        self.stall += time.monotonic() - begun

    def _write(
        self,
        step: int,
        loan: Loan | Withheld,
        metric: float | None,
        facts: Any,
        pinned: Collection[int],
        write: Callable[[Path], dict[str, tuple[int, str]]] | None = None,
    ) -> None:
        begun = time.monotonic()
        try:
            payload = loan.take()
            self._check_room(payload)
            self._before_commit()
            self.store.save(step, payload, metric=metric, write=write, **facts)
        except Exception as error:  # whatever it is, training goes on and hears of it
            loan.close()
            self._failure, self._retry_at = error, time.monotonic() + RETRY
            self._news.append(
                f"checkpoint not saved: {self._why(error)}; training goes on, "
                f"trying again in {RETRY:.0f} s. {self._remedy()}"
            )
        else:
            self._failure = None
            self._room, self._rate = loan.used, loan.rate or self._rate
            loan.close()
            self.tidy(pinned)
            self._reflect()
        self.pace.cost = time.monotonic() - begun

    def tidy(self, pinned: Collection[int]) -> None:
        """Let old checkpoints go, also those that a killed process had no time to remove.

        One that cannot be removed now is tried again after each save.
        """
        try:
            retain.apply(self.store, self.keep, pinned)
        except Exception as error:  # the new checkpoint is safe, which is what matters
            self._news.append(f"an old checkpoint cannot be removed: {_say(error)}")

    def _reflect(self) -> None:
        """Bring the mirror up to date; one that is lost is told once and tried again."""
        if self.mirror is None:
            return
        try:
            self.mirror.follow(self.store)
            if self._mirror_lost:
                self._news.append(f"the mirror {self.mirror.folder} is up to date again")
            self._mirror_lost = False
        except Exception as error:  # the run's own folder has everything
            if not self._mirror_lost:
                self._news.append(f"mirror {self.mirror.folder}: {_say(error)}; training goes on")
            self._mirror_lost = True

    @property
    def _gone(self) -> bool:
        """Whether somebody has deleted or moved the folder that is trained."""
        return not self.store.folder.parent.exists()

    def _why(self, error: Exception) -> str:
        return (
            "the folder of the run is gone"
            if self._gone
            else f"{_say(error)}{self._of_what(error)}; older ones are whole"
        )

    def _of_what(self, error: Exception) -> str:
        """Say that it is the number of files that is used up, where bytes are free."""
        if not isinstance(error, OSError) or error.errno != errno.ENOSPC:
            return ""
        disk = os.statvfs(self.store.folder.parent)
        return " for more files (inodes)" if disk.f_files and not disk.f_favail else ""

    def _remedy(self) -> str:
        if self._gone:
            return "If it was moved, move it back"
        return f"To free space: surefoot checkpoints {self._run} prune"

    @property
    def _run(self) -> str:
        return self.store.folder.parent.name

    def _check_room(self, payload: Payload) -> None:
        need = sum(t.nbytes for group in payload.tensors.values() for t in group.values())
        free = shutil.disk_usage(self.store.folder.parent).free
        need += need // 20 + 100_000  # headers, small state, and rows of the record beside it
        if free < need:
            raise OSError(errno.ENOSPC, f"needs {need / 1e6:.1f} MB, {free / 1e6:.1f} MB free")

    def wait(self) -> None:
        """Wait for the save in flight, whatever comes of it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def checkpoint_of(self, name: str, step: int) -> tuple[Checkpoint, Payload] | None:
        """Return the newest sound checkpoint that holds this learner at `step`, and its contents."""
        for checkpoint in reversed(self.store.checkpoints()):
            if checkpoint.step == step:
                try:
                    payload = checkpoint.read()
                except UnreadableError:
                    raise
                except CheckpointError:  # damaged; the caller goes on without it
                    continue
                if payload.small["learners"].get(name, {}).get("step") == step:
                    return checkpoint, payload
        return None

    def forget_after(self, checkpoint: Checkpoint) -> None:
        """Remove the checkpoints of what is undone; one that stays is only an old branch."""
        for later in self.store.checkpoints():
            if later.sequence > checkpoint.sequence:
                with suppress(OSError):
                    self.store.remove(later)

    def complaint(self) -> str | None:
        """Return what went wrong since the last call, in words for the log."""
        news, self._news = self._news, []
        return "; ".join(news) or None

    def finish(self) -> None:
        """Wait for the save in flight.

        Raises OutOfResources when the disk refused the last one, and whatever else prevented it.
        """
        self.wait()
        error = self._failure
        if error is not None and self._gone:
            raise RunError(
                "the folder of the run is gone: it was deleted or moved while it was trained",
                where=str(self.store.folder.parent),
                fix="what was moved goes on from where it is: surefoot resume PATH",
            ) from error
        if isinstance(error, OSError):
            raise OutOfResources(
                f"checkpoint not saved: {self._why(error)}",
                where=str(self.store.folder),
                fix=f"free disk space, then: surefoot resume {self._run}",
            ) from error
        if error is not None:
            raise error


def _say(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"
