"""A heartbeat of each rank, and who does not keep up: hung, dead, or slow.

A thread of each process tells a store how far its rank has come and looks how far the others have.
A rank that waits longer than the run's patience is told who keeps it waiting: the one that has begun
the fewest things together with the others. Then the process ends, so that torchrun can begin anew.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from surefoot.engine.meter import resident
from surefoot.engine.ranks.meet import open_store
from surefoot.engine.ranks.team import Team

__all__ = ["Watch", "behind", "slow"]

BEAT, GRACE = 0.5, 3.0  # seconds between beats; to end by oneself when another rank has failed
SILENT = 2.5  # seconds without a beat after which a rank that is waited for counts as gone
SLOW, WORTH = 1.5, 0.02  # times the median, and seconds a step, that make a straggler
Beat = Mapping[str, Any]


def behind(beats: Mapping[int, Beat], ages: Mapping[int, float], size: int, patience: float) -> str:
    """Say who keeps the others waiting; `ages` are the seconds since each rank's last beat."""
    names = {r: f"rank {r} ({b['host']}, process {b['pid']})" for r, b in beats.items()}
    silent = [r for r in range(size) if ages.get(r, SILENT + 1) > SILENT]
    if silent:
        who = ", ".join(names.get(r, f"rank {r}") for r in silent)
        return f"{who} gives no sign of life any more"
    least = min(b["calls"] for b in beats.values())
    late = [r for r, b in beats.items() if b["calls"] == least]
    if len(late) == size:
        return f"all {size} ranks wait for each other: the network between them does not carry"
    at = beats[late[0]]["step"] + 1
    return f"{', '.join(names[r] for r in late)} hangs in step {at} for more than {patience:g} s"


def slow(paces: list[float]) -> list[int]:
    """Return the ranks that compute much longer than the others; `paces` are seconds a step."""
    usual = statistics.median_low(paces) if paces else 0.0
    return [r for r, p in enumerate(paces) if p > SLOW * usual and p - usual > WORTH]


class Watch:
    """The heartbeat of this rank, while a `with` block runs. `tell` gets what is found, on one rank.

    `board` is where rank 0 writes how all are, for `surefoot top`.
    """

    def __init__(
        self,
        team: Team,
        patience: float,
        tell: Callable[[str], None],
        board: Path | None = None,
        end: Callable[[int], Any] = os._exit,
    ) -> None:
        self.team, self.patience, self.tell, self.board = team, patience, tell, board
        self._end, self._stop = end, threading.Event()
        self._thread = threading.Thread(target=self._run, name="surefoot-beat", daemon=True)
        self._store: Any = None
        self._seen: dict[int, tuple[float, float]] = {}  # a rank's last beat, and when it came

    def __enter__(self) -> Self:
        base = open_store(30)
        self._store = PrefixStore(f"surefoot/{self.team.name}/beat", base)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            with suppress(Exception):  # the store may be gone with its process
                code = getattr(error, "exit_code", getattr(error, "code", 1))
                told = code if isinstance(code, int) and code else 1  # SystemExit may hold a text
                self._store.set("failed", f"{self.team.rank} {told}")
        self._stop.set()
        self._thread.join()
        if self.board is not None:
            self.board.unlink(missing_ok=True)

    def _run(self) -> None:
        seen, since = -1, time.monotonic()
        while not self._stop.wait(BEAT):
            try:
                beats = self._exchange()
                if self._store.check(["failed"]):
                    self._follow()
            except Exception:  # the store went with rank 0's process or machine: no beats then
                beats = {}
            now = time.monotonic()
            if self.team.calls != seen or self._alone(beats, now):
                seen, since = self.team.calls, now
            if now - since > self.patience:
                self._give_up(beats)
                return

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
        if self.board is not None:
            fresh = self.board.with_name(f".{self.board.name}.new")
            with suppress(OSError):
                fresh.write_text(json.dumps({"size": team.size, "ranks": found}))
                fresh.replace(self.board)
        return found

    def _follow(self) -> None:
        """Another rank has failed: end with its code, unless this one does so by itself."""
        rank, code = self._store.get("failed").decode().split()
        if int(rank) != self.team.rank and not self._stop.wait(GRACE):
            self._end(int(code))

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
            with suppress(Exception):  # nothing may keep this process from ending
                self.tell(text)
            with suppress(Exception):
                print(f"error: {text}", file=sys.stderr)
                print("  help:  surefoot resume goes on from the last checkpoint", file=sys.stderr)
        with suppress(Exception):
            sys.stderr.flush()
        self._end(1)
