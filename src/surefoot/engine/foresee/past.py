"""What runs on a device really took, beside what was foreseen; so that the next plan knows better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from surefoot.engine.auto.known import device_name, recall, remember

__all__ = ["Overhead", "learn", "overhead"]

_KEPT = 20  # runs of a device that are remembered
_ENOUGH = 100  # steps from which on a run tells something


@dataclass(frozen=True)
class Overhead:
    """What `runs` runs on a device took: medians, as multiples of what was foreseen.

    `time` of the seconds a step, from `fastest` to `slowest`. `fragments` is what an allocator held
    beyond its tensors, as a share of these; None on a processor.
    """

    runs: int
    time: float
    fastest: float
    slowest: float
    fragments: float | None


def learn(cache: Path, device: str, plan: Mapping[str, Any], taken: Mapping[str, float]) -> None:
    """Keep how the `plan` of a run compares with what it took.

    Only if it was long enough to tell, and had the cores for itself: what other programs took says
    nothing about the next run.
    """
    foreseen = plan.get("step_seconds")
    if not foreseen or taken.get("crowded") or taken.get("steps", 0) < _ENOUGH:
        return
    key = _key(device)
    row = {"time": taken["step_seconds"] / foreseen}
    if taken.get("gpu_bytes"):
        row["fragments"] = taken["gpu_reserved_bytes"] / taken["gpu_bytes"] - 1
    rows = (recall(cache, key) or {}).get("rows", [])
    remember(cache, key, {"rows": [*rows, row][-_KEPT:]})


def overhead(cache: Path | None, device: str) -> Overhead | None:
    """Return what runs on `device` took beyond their plans; None where there was none yet."""
    rows = (recall(cache, _key(device)) or {}).get("rows", [])
    times = [row["time"] for row in rows]
    if not times:
        return None
    held = [row["fragments"] for row in rows if "fragments" in row]
    share = median(held) if held else None
    return Overhead(len(times), median(times), min(times), max(times), share)


def _key(device: str) -> str:
    return f"runs alone on {device_name(torch.device(device))}, torch {torch.__version__}"
