"""Who tries what. Kept in files: a lock for each trial that dies with its process, and results.

The same promise is kept by `search`, in a database. Whoever claims a trial that somebody began
goes on with its runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from surefoot.sweep.plan import Plan
from surefoot.sweep.space import Point
from surefoot.track.durable import write_atomic
from surefoot.track.folder import now
from surefoot.track.lock import Busy, hold, holder, unwritable

__all__ = ["DEATHS", "ENDED", "Claim", "Files", "Trial", "Trials"]

ENDED = ("done", "pruned", "failed")
DEATHS = 2  # of processes that a trial may cost


@dataclass(frozen=True)
class Trial:
    """A trial as it stands: `state` is waiting, running, done, pruned or failed (and `why`).

    `values` are the judged metric by seed; `worker` says who had it last.
    """

    number: int
    point: Point = field(default_factory=dict)
    state: str = "waiting"
    values: Mapping[str, float] = field(default_factory=dict)
    why: str = ""
    worker: Mapping[str, Any] = field(default_factory=dict)


class Claim(Protocol):
    """A trial that this process works on, until it ends or is given back."""

    number: int
    point: Point

    def report(self, step: int, value: float) -> bool:
        """Tell a value on the way; return whether the trial is not worth going on with."""
        ...

    def end(self, state: str, values: Mapping[str, float], why: str = "") -> None:
        """Record how it ended."""
        ...

    def give_back(self) -> None:
        """Leave it to whoever comes."""
        ...


class Trials(Protocol):
    """All trials of a sweep."""

    def claim(self) -> Claim | None:
        """Return a trial that nobody works on; None: there is none just now."""
        ...

    def all(self) -> list[Trial]:
        """Return every trial that was begun, by number."""
        ...

    def finished(self) -> bool:
        """Whether all have ended."""
        ...

    def bury(self, pid: int, why: str) -> str | None:
        """Note that process `pid` of this machine died of `why`, at its trial; say so."""
        ...

    def retry(self) -> int:
        """Let trials that failed be tried again; return how many."""
        ...


class Files:
    """Trials whose points are known beforehand, in a folder: `trials/003/`."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder / "trials", plan
        self._ended: dict[int, Trial] = {}

    def claim(self) -> Claim | None:
        """Take the first trial that nobody holds. Raises SurefootError where none can be held."""
        for number in range(self.plan.count):
            place = self.folder / f"{number:03d}"
            try:
                place.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise unwritable(place, error) from error
            if self._trial(number).state in ENDED or holder(place) is not None:
                continue
            lock = hold(place)
            try:
                lock.__enter__()
            except Busy:  # somebody was faster
                continue
            if self._read(place / "result.json"):
                lock.__exit__(None, None, None)
                continue
            return _FileClaim(number, self.plan.point(number), place, lock)
        return None

    def all(self) -> list[Trial]:
        """Return every trial that was begun."""
        found = (self._trial(number) for number in range(self.plan.count))
        return [trial for trial in found if trial.state != "waiting" or trial.worker]

    def finished(self) -> bool:
        """Whether all have ended."""
        return all(self._trial(number).state in ENDED for number in range(self.plan.count))

    def bury(self, pid: int, why: str) -> str | None:
        """Count the death of a process; after some, the trial has failed."""
        trial = next((t for t in self.all() if t.worker.get("pid") == pid), None)
        if trial is None or trial.state in ENDED:
            return None
        place = self.folder / f"{trial.number:03d}"
        deaths = [*self._read(place / "deaths.json").get("deaths", []), {"why": why, "time": now()}]
        write_atomic(place / "deaths.json", json.dumps({"deaths": deaths}))
        if len(deaths) < DEATHS:
            return f"trial {trial.number + 1}: its process died of {why}; it is tried again"
        failed = replace(trial, state="failed", why=f"its process died of {why}, {DEATHS} times")
        write_atomic(place / "result.json", json.dumps(asdict(failed)))
        return f"trial {trial.number + 1} failed: {failed.why}"

    def retry(self) -> int:
        """Forget the results of trials that failed."""
        failed = [trial for trial in self.all() if trial.state == "failed"]
        for trial in failed:
            self._ended.pop(trial.number, None)
            for name in ("deaths.json", "result.json"):
                (self.folder / f"{trial.number:03d}" / name).unlink(missing_ok=True)
        return len(failed)

    def _trial(self, number: int) -> Trial:
        if number in self._ended:
            return self._ended[number]
        place = self.folder / f"{number:03d}"
        result = self._read(place / "result.json")
        if result:
            return self._ended.setdefault(number, Trial(**result))
        worker = self._read(place / "worker.json")
        state = "running" if holder(place) is not None else "waiting"
        return Trial(number, self.plan.point(number), state, worker=worker)

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found


class _FileClaim:
    def __init__(
        self, number: int, point: Point, place: Path, lock: AbstractContextManager[None]
    ) -> None:
        self.number, self.point = number, point
        self._place, self._lock = place, lock
        write_atomic(place / "worker.json", json.dumps({"pid": os.getpid(), "since": now()}))

    def report(self, step: int, value: float) -> bool:
        return False

    def end(self, state: str, values: Mapping[str, float], why: str = "") -> None:
        trial = Trial(self.number, self.point, state, dict(values), why)
        write_atomic(self._place / "result.json", json.dumps(asdict(trial)))
        self.give_back()

    def give_back(self) -> None:
        with suppress(OSError):
            self._lock.__exit__(None, None, None)
