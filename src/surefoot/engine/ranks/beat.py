"""A heartbeat of each rank, and who does not keep up: hung, dead, failed, or slow.

A thread of each process tells a store how far its rank has come and looks how far the others have.
A rank that waits longer than the run's patience is told who keeps it waiting: the one that has begun
the fewest things together with the others. Then the process ends, so that torchrun can begin anew.

A rank that fails leaves its code and its words in the store. The others end with the same code, so
that what would come again is not tried again, and rank 0 says the words.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from surefoot.engine.memory import resident
from surefoot.engine.ranks.meet import open_store
from surefoot.engine.ranks.team import Team
from surefoot.errors import Stopped, SurefootError
from surefoot.track.exits import note

__all__ = ["Failure", "Watch", "behind", "slow"]

BEAT, GRACE = 0.5, 10.0  # seconds between beats; to end by oneself when another rank has failed
LEAVE = 25.0  # seconds for a rank that ends by itself already, with a save that is under way
SILENT = 2.5  # seconds without a beat after which a rank that is waited for counts as gone
SLOW, WORTH = 1.5, 0.02  # times the median, and seconds a step, that make a straggler
_INTERRUPTED = 130
_HELP = "surefoot resume goes on from the last checkpoint; --max-restarts does so by itself"
Beat = Mapping[str, Any]


@dataclass(frozen=True)
class Failure:
    """The first rank that failed: where, with which exit code, and its own words."""

    rank: int
    host: str
    code: int
    text: str
    final: bool = False  # whether another try would not mend it, whatever the code says

    def error(self, size: int) -> SurefootError:
        """Return what another rank raises because of it."""
        who = f"rank {self.rank} of {size} ({self.host})"
        if self.code == Stopped.exit_code:
            return Stopped(f"{who} was told to stop", fix="the same command goes on")
        found = SurefootError(f"{who} failed: {self.text}" if self.text else f"{who} failed")
        found.__dict__.update(exit_code=self.code, final=self.final)  # those of its error
        return found


def behind(beats: Mapping[int, Beat], ages: Mapping[int, float], size: int, patience: float) -> str:
    """Say who keeps the others waiting; `ages` are the seconds since each rank's last beat."""
    silent = [r for r in range(size) if ages.get(r, SILENT + 1) > SILENT]
    if silent:
        who = ", ".join(_name(r, beats) for r in silent)
        return f"{who} gives no sign of life any more"
    least = min(b["calls"] for b in beats.values())
    late = [r for r, b in beats.items() if b["calls"] == least]
    if len(late) == size:
        return f"all {size} ranks wait for each other: the network between them does not carry"
    at = beats[late[0]]["step"] + 1
    return f"{', '.join(_name(r, beats) for r in late)} hangs in step {at} for more than {patience:g} s"


def slow(paces: list[float]) -> list[int]:
    """Return the ranks that compute much longer than the others; `paces` are seconds a step."""
    usual = statistics.median_low(paces) if paces else 0.0
    return [r for r, p in enumerate(paces) if p > SLOW * usual and p - usual > WORTH]


class Watch:
    """The heartbeat of this rank, from when it joins its group until it leaves it.

    While a run trains, `during` says how patient it is, who is told what is found, and on which
    `board` rank 0 writes how all are, for `surefoot top`.
    """

    def __init__(self, team: Team, patience: float, end: Callable[[int], Any] = os._exit) -> None:
        self.team, self.patience, self.board = team, patience, Path()
        self.tell: Callable[[str], None] = _nobody
        self._usual, self._end, self._stop = patience, end, threading.Event()
        self._thread = threading.Thread(target=self._run, name="surefoot-beat", daemon=True)
        self._store: Any = None
        self._began = time.monotonic()
        self._beats: Mapping[int, Beat] = {}
        self._seen: dict[int, tuple[float, float]] = {}  # a rank's last beat, and when it came
        self._leaving = self._lost = self._over = False
        self._first: Failure | None = None
        self._writing = threading.Lock()

    def start(self) -> Self:
        """Begin to beat."""
        self._store = PrefixStore(f"surefoot/{self.team.name}/beat", open_store(30))
        self._beats = self._exchange()
        self._thread.start()
        return self

    def stop(self) -> None:
        """Beat no more."""
        self._stop.set()
        self._thread.join()

    @contextmanager
    def during(
        self, patience: float, tell: Callable[[str], None], board: Path | None
    ) -> Iterator[None]:
        """Watch a run while the block runs; what ends it is told to the other ranks."""
        self.patience, self.tell, self.board = patience, tell, board or Path()
        self._over = False
        try:
            yield
        except BaseException as error:
            self.fail(error)
            raise
        finally:
            self._over = True  # what comes now, rank 0 does for itself: the report, the last rows
            with self._writing:
                self.patience, self.tell, self.board = self._usual, _nobody, Path()
            if board is not None:
                board.unlink(missing_ok=True)

    # Who has failed.

    def fail(self, error: BaseException | int) -> Failure:
        """Tell the others, once, that this rank ends; return who was the first to say so."""
        self._leaving = True
        if self._first is None:
            self._first = self._told(error)
        return self._first

    def _told(self, error: BaseException | int) -> Failure:
        code = error if isinstance(error, int) else _code(error)
        text = str(error) if isinstance(error, SurefootError) else ""
        if isinstance(error, Exception) and not text:
            text = f"{type(error).__name__}: {error}"
        final = isinstance(error, SurefootError) and error.final
        mine = Failure(self.team.rank, socket.gethostname(), code, text, final)
        try:
            told = self._store.compare_set("failed", "", json.dumps(asdict(mine)))
            return Failure(**json.loads(told))
        except Exception:  # the store may be gone with its process
            return mine

    def gone(self, why: str) -> SurefootError:
        """Return what is known of a rank that cannot be reached, after looking for a while."""
        self._leaving = True
        end = time.monotonic() + SILENT + 2 * BEAT
        while True:
            failed = self._failed()
            if failed is not None and failed.rank != self.team.rank:
                return failed.error(self.team.size)
            silent = self._silent()
            if silent and not self._lost:
                return self._missing(silent, why)
            if time.monotonic() > end:  # after a look, however long this process had no core
                break
            time.sleep(BEAT / 4)
        if self._lost:
            return _loud("rank 0 and its store cannot be reached any more", self.team.local == 0)
        return SurefootError(f"another rank is gone: {why}", fix=_HELP)

    def _missing(self, silent: list[int], why: str) -> SurefootError:
        names = ", ".join(_name(rank, self._beats) for rank in silent)
        left = set(range(self.team.size)).difference(silent)
        first = 0 in silent and self.team.rank == min(left, default=0)
        return _loud(f"{names} {'is' if len(silent) == 1 else 'are'} gone: {why}", first)

    def _failed(self) -> Failure | None:
        try:
            if self._store.check(["failed"]):
                return Failure(**json.loads(self._store.get("failed")))
        except Exception:  # as in `_run`
            self._lost = True
        return None

    def _silent(self) -> list[int]:
        now = time.monotonic()
        ages = {r: now - self._seen.get(r, (0.0, self._began))[1] for r in range(self.team.size)}
        return [rank for rank, age in ages.items() if age > SILENT]

    def _follow(self) -> None:
        """End with the code of the rank that failed, unless this one ends by itself."""
        failed = self._failed()
        if failed is None or failed.rank == self.team.rank or self._stop.wait(GRACE):
            return
        if self._over or (self._leaving and self._stop.wait(LEAVE)) or self._over:
            return
        if self.team.leads:
            self._last_words(str(failed.error(self.team.size)))
        self._end(note(failed.code, failed.final))

    # How far all have come.

    def _run(self) -> None:
        seen, since, parent = -1, time.monotonic(), os.getppid()
        while not self._stop.wait(BEAT):
            parent = self._orphaned(parent)
            try:
                beats = self._beats = self._exchange()
                self._lost = False
                if self._store.check(["failed"]):
                    self._follow()
            except Exception:  # the store went with rank 0's process or machine: no beats then
                beats, self._lost = {}, True
            now = time.monotonic()
            if self.team.calls != seen or self._alone(beats, now):
                seen, since = self.team.calls, now
            if now - since > self.patience:
                self._give_up(beats)
                return

    def _orphaned(self, parent: int) -> int:
        """Save and stop once torchrun is gone, which alone could begin again; return the parent."""
        now = os.getppid()
        if now != parent and "TORCHELASTIC_RUN_ID" in os.environ:
            os.kill(os.getpid(), signal.SIGTERM)
        return now

    def _alone(self, beats: Mapping[int, Beat], now: float) -> bool:
        """Whether rank 0 does something alone: for as long as it says so, and not once it is silent."""
        _, heard = self._seen.get(0, (0.0, now))
        return bool(beats.get(0, {}).get("alone")) and now - heard <= self.patience

    def _exchange(self) -> dict[int, Beat]:
        team = self.team
        mine = {
            "calls": team.calls, "step": team.step, "time": time.time(), "alone": team.alone,
            "busy": round(team.busy, 6), "host": socket.gethostname(), "pid": os.getpid(),
            "device": str(team.device), "memory": resident(),
        }  # fmt: skip
        self._store.set(str(team.rank), json.dumps(mine))
        keys = [str(r) for r in range(team.size)]
        present = [key for key in keys if self._store.check([key])]
        found = {int(k): json.loads(v) for k, v in zip(present, self._store.multi_get(present))}
        for rank, beat in found.items():
            if self._seen.get(rank, (0.0, 0.0))[0] != beat["time"]:
                self._seen[rank] = (beat["time"], time.monotonic())
        with self._writing, suppress(OSError):
            self._show(found)
        return found

    def _show(self, beats: Mapping[int, Beat]) -> None:
        if self.board.name:
            fresh = self.board.with_name(f".{self.board.name}.new")
            fresh.write_text(json.dumps({"size": self.team.size, "ranks": beats}))
            fresh.replace(self.board)

    def _give_up(self, beats: Mapping[int, Beat]) -> None:
        if not beats:
            text, teller = "rank 0 and its store cannot be reached any more", True
        else:
            now = time.monotonic()
            ages = {r: now - seen for r, (_, seen) in self._seen.items()}
            text = behind(beats, ages, self.team.size, self.patience)
            least = min(b["calls"] for b in beats.values())
            ahead = [r for r, b in beats.items() if b["calls"] > least] or list(beats)
            teller = self.team.rank == min(ahead)
        if teller:
            self._last_words(text, "surefoot resume goes on from the last checkpoint")
        self._end(1)

    def _last_words(self, text: str, fix: str = "") -> None:
        """Say why this process ends; nothing may keep it from ending."""
        with suppress(Exception):
            self.tell(text.partition("\n")[0])
        with suppress(Exception):
            print(
                f"error: {text}" + (f"\n  help:  {fix}" if fix else ""), file=sys.stderr, flush=True
            )


def _loud(what: str, speaks: bool) -> SurefootError:
    """Return an error that this rank may have to say, because rank 0 cannot."""
    found = SurefootError(what, fix=_HELP)
    found.__dict__["speaks"] = speaks
    return found


def _nobody(text: str) -> None:
    """Swallow what there is nobody to tell, before and after training."""


def _name(rank: int, beats: Mapping[int, Beat]) -> str:
    beat = beats.get(rank)
    return f"rank {rank}" + (f" ({beat['host']}, process {beat['pid']})" if beat else "")


def _code(error: BaseException) -> int:
    """Return the exit code of an error; SystemExit may hold a text."""
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    code = getattr(error, "exit_code", getattr(error, "code", 1))
    return code if isinstance(code, int) and code else 1
