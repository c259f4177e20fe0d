"""What a run takes: seconds by what they were spent on, throughput, memory. For the record only."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from surefoot.data.batch import Batch
from surefoot.engine.loop import Batches
from surefoot.engine.memory import resident
from surefoot.engine.watch.pauses import Pauses

__all__ = ["Meter", "Span", "Timed", "sparse"]

_FIELDS = ("data", "evaluate", "save", "record")  # what is left of the time is computing


class Span:
    """Adds up the seconds spent in `with` blocks; one costs a quarter of a microsecond."""

    __slots__ = ("_begun", "seconds")

    def __init__(self) -> None:
        self.seconds = self._begun = 0.0

    def __enter__(self) -> None:
        self._begun = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._begun


class Timed:
    """`data`, whose batches are waited for inside `span`."""

    def __init__(self, data: Batches, span: Span) -> None:
        self._data, self._span = data, span

    @property
    def batch_size(self) -> int:
        """Examples per step."""
        return self._data.batch_size

    def batch(self, step: int, start: int = 0, size: int | None = None) -> Batch:
        """Return the same batch."""
        with self._span:
            return self._data.batch(step, start, size)

    def size(self, step: int) -> int:
        """Return the same number."""
        return self._data.size(step)


class Meter:
    """Spans of this process, and what they gave since the last row of each kind."""

    def __init__(self, pauses: Pauses | None = None) -> None:
        self._pauses, self._collected = pauses, 0.0
        self.data, self.evaluate, self.save, self.record = (Span() for _ in _FIELDS)
        self._weight = self._steps = 0  # since the last call of `rate`, of `system`
        self._told = time.perf_counter()
        self._rated = (self._told, 0.0)
        self._last = dict.fromkeys(_FIELDS, 0.0)
        self._turns: dict[str, float] = {}
        self._begun, self._all, self._most = self._told, 0, 0  # of this process
        self._card: dict[str, float] = {}  # most bytes of the device, allocated and reserved

    def count(self, weight: int, turns: Mapping[str, float]) -> None:
        """Count a step of so many units of loss, and the seconds that each learner took for it."""
        for name, seconds in turns.items():
            self._turns[name] = self._turns.get(name, 0.0) + seconds
        self._weight += weight
        self._steps += 1
        self._all += 1

    def rate(self) -> float:
        """Return units of weight a second since the last call, without evaluating and saving."""
        moment, away = time.perf_counter(), self.evaluate.seconds + self.save.seconds
        begun, before = self._rated
        rate = self._weight / max(1e-9, moment - begun - (away - before))
        self._rated, self._weight = (moment, away), 0
        return rate

    def system(self, device: torch.device) -> dict[str, Any]:
        """Return the values of a system row: steps and seconds since the last one, and memory."""
        moment = time.perf_counter()
        spent = {name: getattr(self, name).seconds for name in _FIELDS}
        since = {f"{name}_s": round(spent[name] - self._last[name], 6) for name in _FIELDS}
        rest = max(0.0, moment - self._told - sum(since.values()))
        found: dict[str, Any] = {"steps": self._steps, "compute_s": round(rest, 6), **since}
        if len(self._turns) > 1:
            found["turns_s"] = {name: round(s, 6) for name, s in self._turns.items()}
            self._turns = dict.fromkeys(self._turns, 0.0)
        self._told, self._last, self._steps = moment, spent, 0
        if self._pauses is not None:
            found["gc_s"] = round(self._pauses.seconds - self._collected, 6)
            self._collected = self._pauses.seconds
            self._pauses.boundary()
        held = resident()
        self._most = max(self._most, held)
        card = _device_memory(device)
        for name in card.keys() & {"gpu_bytes", "gpu_reserved_bytes"}:
            self._card[name] = max(self._card.get(name, 0), card[name])
        return {**found, "memory_bytes": held, **card}

    def taken(self) -> dict[str, float]:
        """Return steps of this process, seconds a step (evaluating and saving aside), most bytes."""
        away = self.evaluate.seconds + self.save.seconds
        spent = time.perf_counter() - self._begun - away
        most = max(self._most, resident())
        step = spent / max(1, self._all)
        return {"steps": self._all, "step_seconds": step, "bytes": most, **self._card}


def sparse(count: int, digits: int) -> bool:
    """Whether `count` is among the ones to keep, which thin out as it grows.

    Those are the numbers with at most `digits` binary digits before their trailing zeros: all up
    to 2**digits, then every second, then every fourth.

    >>> [n for n in range(20) if sparse(n, 2)]
    [0, 1, 2, 3, 4, 6, 8, 12, 16]
    """
    return count & ((1 << max(0, count.bit_length() - digits)) - 1) == 0


def _device_memory(device: torch.device) -> dict[str, float]:
    """Return the peak since the last call, and what the allocator holds; nothing on a processor.

    `gpu_fragments` is the share of what is held that lies between tensors, too small for new ones.
    """
    if device.type == "mps":
        held = torch.mps.driver_allocated_memory()
        return {"gpu_bytes": torch.mps.current_allocated_memory(), "gpu_reserved_bytes": held}
    if device.type != "cuda":
        return {}
    stats = torch.cuda.memory_stats(device)  # once: each look costs a tenth of a millisecond
    held, idle = stats["reserved_bytes.all.current"], stats["inactive_split_bytes.all.current"]
    torch.cuda.reset_peak_memory_stats(device)
    return {
        "gpu_bytes": stats["allocated_bytes.all.peak"], "gpu_reserved_bytes": held,
        "gpu_fragments": round(idle / held, 4) if held else 0.0,
    }  # fmt: skip
