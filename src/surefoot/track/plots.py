"""Pictures of a run as PNG files, drawn by matplotlib, never inside a training step."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surefoot.track.figures import Figure, Mark

__all__ = ["draw", "write_plots"]

INK, GRID = "#3d4450", "#e6e8ec"
HUES = ("#2f6fed", "#e8710a", "#0f9d74", "#a142c9", "#c5221f")
DPI = 110


def write_plots(folder: Path, figures: Sequence[Figure], marks: Sequence[Mark]) -> list[Path]:
    """Write each figure to `folder` as ID.png, each whole or not at all; return the paths."""
    folder.mkdir(exist_ok=True)
    written = []
    for figure in figures:
        path = folder / f"{figure.id}.png"
        staging = folder / f".{figure.id}.new.png"
        try:
            draw(figure, marks).savefig(staging, dpi=DPI)
            staging.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                staging.unlink()
            raise
        written.append(path)
    return written


def draw(figure: Figure, marks: Sequence[Mark] = ()) -> Any:
    """Return a matplotlib Figure, made without pyplot and so without any global state."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(8, 4.2), layout="constrained")
    axes = canvas.add_subplot()
    learners = list(dict.fromkeys(curve.learner for curve in figure.curves))
    for curve in figure.curves:
        hue = _hue(figure, curve.learner, curve.role, curve.name, learners)
        width, dot = (1.8, "o") if curve.role == "val" else (1.1, None)
        values = [float("nan") if value is None else value for value in curve.values]
        name = curve.name if len(learners) == 1 else f"{curve.learner}, {curve.name}"
        if curve.smooth:
            means = [float("nan") if value is None else value for value in curve.smooth]
            axes.plot(curve.steps, means, color=hue, label=name, linewidth=1.8, zorder=2.5)
            name, width = "", 0.5
        axes.plot(
            curve.steps, values, color=hue, label=name, linewidth=width, marker=dot, markersize=3.2
        )
    _annotate(axes, figure, marks)
    axes.set_title(figure.title, loc="left", color=INK, fontsize=12, fontweight="bold")
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel(figure.unit, color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.tick_params(colors=INK, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    if len(figure.curves) > 1 or figure.best:
        axes.legend(frameon=False, labelcolor=INK)
    return canvas


def _annotate(axes: Any, figure: Figure, marks: Sequence[Mark]) -> None:
    for mark in marks:
        if mark.label == "resumed":
            axes.axvline(mark.step, color=INK, linewidth=0.8, linestyle=(0, (3, 3)), alpha=0.6)
    if figure.rule:
        axes.axhline(figure.rule, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
    if figure.best:
        label = f"best {figure.best.value:.4g} at step {figure.best.step}"
        axes.scatter(
            [figure.best.step], [figure.best.value],
            s=80, facecolors="none", edgecolors=INK, label=label, zorder=3,
        )  # fmt: skip


def _hue(figure: Figure, learner: str, role: str, name: str, learners: list[str]) -> str:
    """Return a colour: by learner when there are several, else by kind of curve."""
    if len(learners) > 1:
        return HUES[learners.index(learner) % len(HUES)]
    names = list(dict.fromkeys(f"{curve.role} {curve.name}" for curve in figure.curves))
    return HUES[names.index(f"{role} {name}") % len(HUES)]
