"""The picture of two implementations side by side: losses, errors, time, how far apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from surefoot.track.figures import Curve, Figure
from surefoot.track.plots import DPI, sheet

__all__ = ["draw_pair"]


def draw_pair(
    labels: tuple[str, str],
    tracks: Mapping[str, Mapping[str, Any]],
    seconds: tuple[Sequence[float], Sequence[float]],
    tolerance: float,
    path: Path,
) -> Path:
    """Write the picture to `path` (PNG). By learner, `tracks` has loss, norm, errors,
    gradient and update. Errors of zero are left out."""
    a, b = labels
    losses: list[Curve] = []
    norms: list[Curve] = []
    errors: list[Curve] = []
    sides: list[tuple[str, str, Literal["train", "plan"], int]]
    sides = [("a", a, "train", 0), ("b", b, "plan", 1)]
    for name, track in tracks.items():
        who = "" if len(tracks) == 1 else f"{name}, "
        for curves, key in ((losses, "loss"), (norms, "norm")):
            places = list(range(1, len(track[key]) + 1))
            for side, label, role, column in sides:
                values = [pair[column] for pair in track[key]]
                curves.append(Curve(f"{who}{side}: {label}", "", role, places, values))
        errors.append(_positive(f"{who}loss", enumerate(track["errors"], 1), "train"))
        errors += [_positive(f"{who}{key}", track[key], "val") for key in ("gradient", "update")]
    times = [
        Curve(
            f"{side}: {label}",
            "",
            "train",
            list(range(1, len(spent) + 1)),
            [s * 1e3 for s in spent],
        )
        for side, label, spent in zip("ab", (a, b), seconds, strict=True)
    ]
    drawn = [
        Figure("loss", "Loss", losses),
        Figure("error", "How far b is from a, relative", [c for c in errors if c.steps]),
        Figure("norm", "Gradient norm", norms),
        Figure("time", "Time of a step", times, unit="ms"),
    ]
    canvas = sheet([figure for figure in drawn if figure.curves])
    if drawn[1].curves:
        canvas.axes[1].set_yscale("log")
        canvas.axes[1].axhline(tolerance, color="#999999", linewidth=1, linestyle=(0, (2, 2)))
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}")
    canvas.savefig(staging, dpi=DPI, format="png")
    return staging.replace(path)


def _positive(
    name: str, points: Iterable[tuple[int, float]], role: Literal["train", "val"]
) -> Curve:
    """Return a curve of what a logarithmic scale can show."""
    kept = [(step, value) for step, value in points if value > 0 and math.isfinite(value)]
    return Curve(name, "", role, [s for s, _ in kept], [v for _, v in kept])
