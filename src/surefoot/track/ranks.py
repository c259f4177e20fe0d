"""How the processes of a run are doing while it trains: what rank 0 writes down twice a second."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from surefoot.track.text import bytes_text, clean

__all__ = ["BOARD", "Rank", "lines", "read"]

BOARD = "ranks.json"
SILENT = 5.0  # seconds behind the newest beat
SLOW = 1.5  # times the median of what the ranks compute before they wait
MOST = 8  # ranks that have a line each


@dataclass(frozen=True)
class Rank:
    """One process. `busy` are the seconds of its last step before it had to wait."""

    number: int
    host: str
    pid: int
    device: str
    step: int
    busy: float
    memory: int
    silent: float
    alone: str

    @property
    def text(self) -> str:
        """What a person wants to know of it."""
        state = f"silent for {self.silent:.0f} s" if self.silent > SILENT else self.alone
        what = state or f"step {self.step + 1}, {self.busy * 1e3:.0f} ms"
        return f"rank {self.number}  {clean(self.host)} {self.device}  {what}  {bytes_text(self.memory)}"


def read(run: Path) -> list[Rank]:
    """Return the ranks of a run that several processes train now; of any other, none."""
    try:
        found = json.loads((run / BOARD).read_text(encoding="utf-8"))["ranks"]
        newest = max(beat["time"] for beat in found.values())
        return [
            Rank(
                int(number), str(b["host"]), int(b["pid"]), str(b["device"]), int(b["step"]),
                float(b["busy"]), int(b["memory"]), newest - float(b["time"]), str(b["alone"]),
            )
            for number, b in sorted(found.items(), key=lambda item: int(item[0]))
        ]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def lines(ranks: list[Rank]) -> Iterator[tuple[str, bool]]:
    """Yield a line for each rank, or of very many for those that stand out; True: it does."""
    usual = statistics.median_low([rank.busy for rank in ranks]) if ranks else 0.0
    odd = [r for r in ranks if r.silent > SILENT or r.busy > max(SLOW * usual, usual + 0.02)]
    shown = ranks if len(ranks) <= MOST else odd[:MOST]
    if shown is not ranks:
        yield f"{len(ranks)} ranks, {len(odd)} of them slow or silent", bool(odd)
    for rank in shown:
        yield rank.text, rank in odd
