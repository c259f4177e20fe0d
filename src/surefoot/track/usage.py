"""Where time and memory went, and what was planned: figures from `system.jsonl` and `run.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any

from surefoot.track.figures import Curve, Figure
from surefoot.track.reading import History, Row, column
from surefoot.track.text import bytes_text, real

__all__ = ["planned", "shares", "usage"]

_PARTS = {  # of the time, in the order in which they lie upon each other
    "compute_s": "compute",
    "data_s": "data",
    "evaluate_s": "evaluation",
    "save_s": "save",
    "record_s": "record",
}
_MEMORY = {
    "memory_bytes": "process",
    "gpu_bytes": "GPU, peak",
    "gpu_reserved_bytes": "GPU, reserved",
    "gpu_other_bytes": "GPU, other programs",
}
_BUSY = {
    "busy": "busy",
    "mfu": "operations, of the most",
    "mbu": "bytes moved, of the most",
    "gpu_memory_busy": "GPU memory busy",
    "gpu_hot": "slowed by heat",
}


def usage(history: History, meta: Mapping[str, Any]) -> list[Figure]:
    """Return the figures of time and of memory, of what was measured."""
    rows = history.system
    figures = [_time(rows), _memory(rows, meta), _busy(rows), _heat(rows)]
    return [figure for figure in figures if figure.curves]


def shares(history: History) -> list[tuple[str, float]]:
    """Return (name, seconds) of everything that time is counted for."""
    return [(name, sum(_column(history.system, key))) for key, name in _PARTS.items()]


def planned(figure: Figure, meta: Mapping[str, Any]) -> Figure:
    """Return the figure of the learning rate with the rates that were planned."""
    rates = meta.get("rates")
    found = []
    for learner, points in rates.items() if isinstance(rates, Mapping) else ():
        if not isinstance(points, list):
            continue
        pairs = [p for p in points if isinstance(p, list) and len(p) == 2 and real(p[0])]
        steps = [int(pair[0]) for pair in pairs]
        values = [real(pair[1]) for pair in pairs]
        found.append(Curve("planned", learner, "plan", steps, values))
    used = [replace(curve, name="used") for curve in figure.curves]
    return replace(figure, curves=[*used, *found])


def _time(rows: list[Row]) -> Figure:
    """Return the seconds so far, each part upon the one before."""
    steps = [row["step"] for row in rows if isinstance(row.get("step"), int)]
    curves = []
    for key, name in _PARTS.items():
        sums: list[float | None] = list(accumulate(_column(rows, key)))
        if any(sums):
            curves.append(Curve(name, "main", "train", steps, sums))
    note = "Computing, waiting for data, evaluating and sampling, waiting for saves, recording."
    return Figure("time", "Time so far", curves, "seconds", note=note, stack=True)


def _memory(rows: list[Row], meta: Mapping[str, Any]) -> Figure:
    curves = _curves(rows, _MEMORY)
    most = {
        key: max(v for v in c.values if v)
        for key, name in _MEMORY.items()
        for c in curves
        if c.name == name
    }
    key = "gpu_bytes" if "gpu_bytes" in most else "memory_bytes"
    rule = _planned_memory(meta, on_device=key == "gpu_bytes")
    note = f"Highest: {bytes_text(most[key])}." if key in most else ""
    if rule is not None and note:
        note = f"Dotted: {bytes_text(rule)} planned for training. {note}"
    return Figure("memory", "Memory", curves, "bytes", rule=rule, note=note)


def _busy(rows: list[Row]) -> Figure:
    note = "Shares of the time between two measurements; operations are held against what matrix products reach."
    return Figure("busy", "How busy", _curves(rows, _BUSY), note=note)


def _heat(rows: list[Row]) -> Figure:
    return Figure("heat", "Heat", _curves(rows, {"gpu_celsius": "GPU", "cpu_celsius": "CPU"}), "°C")


def _curves(rows: list[Row], names: Mapping[str, str]) -> list[Curve]:
    found = []
    for key, name in names.items():
        pairs = [pair for pair in zip(*column(rows, key)) if math.isfinite(pair[1])]
        if pairs and any(value for _, value in pairs):
            steps, values = [step for step, _ in pairs], [value for _, value in pairs]
            found.append(Curve(name, "main", "train", steps, [*values]))
    return found


def _planned_memory(meta: Mapping[str, Any], *, on_device: bool) -> float | None:
    """Return the bytes that were planned, with the program itself where that counts."""
    plan, segments = meta.get("plan"), meta.get("segments")
    wanted = real(plan.get("memory")) if isinstance(plan, Mapping) else None
    if wanted is None or on_device:
        return wanted
    begun = segments if isinstance(segments, list) else []
    programs = [real(part.get("memory")) or 0.0 for part in begun if isinstance(part, Mapping)]
    return max(programs, default=0.0) + wanted if any(programs) else None


def _column(rows: list[Row], key: str) -> list[float]:
    """Return the values, 0 where there is none; rows without a step are left out."""
    found = (real(row.get(key)) or 0.0 for row in rows if isinstance(row.get("step"), int))
    return [value if math.isfinite(value) else 0.0 for value in found]
