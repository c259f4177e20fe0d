"""Pictures of a run as PNG files, drawn by matplotlib, never inside a training step."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from surefoot.track.figures import Curve, Figure, Mark
from surefoot.track.text import bytes_text, clock

__all__ = [
    "DPI",
    "draw",
    "draw_parallel",
    "draw_picture",
    "draw_rates",
    "draw_step",
    "sheet",
    "write_plots",
]

INK, GRID = "#3d4450", "#e6e8ec"
HUES = ("#2f6fed", "#e8710a", "#0f9d74", "#a142c9", "#c5221f", "#5f7d95", "#b8860b", "#00897b")
DPI = 110


def write_plots(
    folder: Path,
    figures: Sequence[Figure],
    marks: Sequence[Mark],
    pictures: Sequence[Mapping[str, Any]] = (),
) -> list[Path]:
    """Write each figure to `folder` as ID.png, each whole or not at all; return the paths.

    `pictures` are what `gallery` returns; the newest of each is written, tables are not.
    """
    folder.mkdir(exist_ok=True)
    written = []
    for figure in figures:
        written.append(_save(draw(figure, marks), folder, figure.id))
    for shown in pictures:
        newest = [(who["learner"], who["frames"][-1]) for who in shown["learners"]]
        if newest[0][1]["kind"] == "table":
            continue
        with contextlib.suppress(TypeError, ValueError, IndexError):  # a file may hold anything
            written.append(_save(draw_picture(newest), folder, f"picture-{shown['name']}"))
    return written


def _save(canvas: Any, folder: Path, name: str) -> Path:
    name = re.sub(r"[^\w.-]+", "-", name)  # a recipe may call its picture anything
    path, staging = folder / f"{name}.png", folder / f".{name}.new.png"
    try:
        canvas.savefig(staging, dpi=DPI)
        staging.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            staging.unlink()
        raise
    return path


def draw(figure: Figure, marks: Sequence[Mark] = ()) -> Any:
    """Return a matplotlib Figure, made without pyplot and so without any global state."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(8, 4.2), layout="constrained")
    _panel(canvas.add_subplot(), figure, marks)
    return canvas


def sheet(figures: Sequence[Figure]) -> Any:
    """Return a matplotlib Figure with all of them, two in a row."""
    from matplotlib.figure import Figure as Canvas

    rows = -(-len(figures) // 2)
    canvas = Canvas(figsize=(13, 3.8 * rows), layout="constrained")
    for place, figure in enumerate(figures, 1):
        _panel(canvas.add_subplot(rows, min(2, len(figures)), place), figure, ())
    return canvas


def _panel(axes: Any, figure: Figure, marks: Sequence[Mark]) -> None:
    learners = list(dict.fromkeys(curve.learner for curve in figure.curves))
    names = {(curve.role, curve.name) for curve in figure.curves}
    scale, along = _scale(figure)
    told: set[str] = set()  # curves of several seeds have one name
    for curve in _stacked(axes, figure):
        hue = _hue(figure, curve.learner, curve.role, curve.name, learners)
        width, dot = (1.8, "o") if curve.role == "val" else (1.1, None)
        dash = (0, (2, 2)) if curve.role == "plan" else "-"
        values = [float("nan") if value is None else value for value in curve.values]
        name = curve.name if len(learners) == 1 else f"{curve.learner}, {curve.name}"
        name = curve.learner if len(learners) > 1 and len(names) == 1 else name
        name = "" if name in told else name
        told.add(name)
        places = [step / scale for step in curve.steps]
        if curve.smooth:
            means = [float("nan") if value is None else value for value in curve.smooth]
            axes.plot(places, means, color=hue, label=name, linewidth=1.8, zorder=2.5)
            name, width = "", 0.5
        axes.plot(
            places, values, color=hue, label=name, linewidth=width, marker=dot, markersize=3.2,
            linestyle=dash,
        )  # fmt: skip
    _annotate(axes, figure, marks)
    axes.set_title(figure.title, loc="left", color=INK, fontsize=12, fontweight="bold")
    axes.set_xlabel(along, color=INK)
    _label_values(axes, figure.unit)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    if len(figure.curves) > 1 or figure.best:
        axes.legend(frameon=False, labelcolor=INK)


def _scale(figure: Figure) -> tuple[float, str]:
    """Return what to divide places on the x axis by, and what they are then."""
    if figure.x != "seconds":
        return 1.0, figure.x
    end = max((curve.steps[-1] for curve in figure.curves if curve.steps), default=0)
    return (3600.0, "hours") if end > 7200 else (60.0, "minutes") if end > 120 else (1.0, "seconds")


def _stacked(axes: Any, figure: Figure) -> Sequence[Curve]:
    """Draw the curves of a stack and return none; return those of any other figure."""
    if not figure.stack:
        return figure.curves
    names = [curve.name for curve in figure.curves]
    axes.stackplot(
        figure.curves[0].steps, *(curve.values for curve in figure.curves),
        labels=names, colors=HUES, alpha=0.85,
    )  # fmt: skip
    axes.margins(x=0)
    return ()


def _label_values(axes: Any, unit: str) -> None:
    words = {"bytes": bytes_text, "seconds": clock}.get(unit)
    if words is None:
        axes.set_ylabel(unit, color=INK)
    else:
        axes.yaxis.set_major_formatter(lambda value, _: words(max(0.0, value)))


def _annotate(axes: Any, figure: Figure, marks: Sequence[Mark]) -> None:
    for mark in marks:
        if mark.label == "resumed":
            axes.axvline(mark.step, color=INK, linewidth=0.8, linestyle=(0, (3, 3)), alpha=0.6)
    if figure.rule:
        axes.axhline(figure.rule, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
    if figure.best:
        label = f"best {figure.best.value:.4g} at step {figure.best.step}"
        axes.scatter(
            [figure.best.step / _scale(figure)[0]], [figure.best.value],
            s=80, facecolors="none", edgecolors=INK, label=label, zorder=3,
        )  # fmt: skip


def draw_rates(
    rates: Sequence[float],
    losses: Sequence[float],
    smooth: Sequence[float],
    suggestions: Mapping[str, float],
) -> Any:
    """Return a matplotlib Figure of losses by learning rate, with the suggested ones marked."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(8, 4.2), layout="constrained")
    axes = canvas.add_subplot()
    axes.plot(rates, losses, color=HUES[0], linewidth=0.5, label="loss")
    axes.plot(rates, smooth, color=HUES[0], linewidth=1.8, label="moving mean")
    for (name, rate), hue in zip(suggestions.items(), HUES[1:]):
        axes.axvline(
            rate, color=hue, linewidth=1.4, linestyle=(0, (4, 2)), label=f"{name} {rate:g}"
        )
    axes.set_xscale("log")
    axes.set_title("Loss by learning rate", loc="left", color=INK, fontsize=12, fontweight="bold")
    axes.set_xlabel("learning rate", color=INK)
    axes.set_ylim(min(smooth) - 0.1 * (smooth[0] - min(smooth)), 1.3 * max(smooth[0], losses[0]))
    axes.grid(color=GRID, linewidth=0.8)
    axes.tick_params(colors=INK, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.legend(frameon=False, labelcolor=INK)
    return canvas


def draw_parallel(axes: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]]) -> Any:
    """Return a matplotlib Figure of parallel coordinates: a line a trial, the best one darkest.

    `axes` have a `name`, whether they are `log`, and the `names` of their places where values are
    no numbers; `lines` have `values`, one for each axis, and come from the best to the worst.
    """
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(max(6.0, 1.9 * len(axes)), 4.4), layout="constrained")
    panel = canvas.add_subplot()
    places = [
        _unit_places(axis, [line["values"][i] for line in lines]) for i, axis in enumerate(axes)
    ]
    for place in range(len(lines) - 1, -1, -1):
        share = place / max(1, len(lines) - 1)
        panel.plot(
            range(len(axes)), [column[0][place] for column in places], color=_blend(share),
            linewidth=2.6 if place == 0 else 1.2, zorder=3 if place == 0 else 2 - share,
            solid_joinstyle="round",
        )  # fmt: skip
    for x, (_, ticks) in enumerate(places):
        panel.axvline(x, color=INK, linewidth=0.9, zorder=1)
        for height, text in ticks:
            panel.annotate(
                text, (x, height), (4, 0), textcoords="offset points", fontsize=8, color=INK,
                va="center", zorder=4, bbox={"fc": "white", "ec": "none", "alpha": 0.75, "pad": 0.6},
            )  # fmt: skip
    panel.set_xticks(range(len(axes)), [axis["name"].replace("$", r"\$") for axis in axes])
    panel.set_yticks([])
    panel.set_xlim(-0.15, len(axes) - 1 + 0.45)
    panel.set_title(
        "Trials, the best one dark", loc="left", color=INK, fontsize=12, fontweight="bold"
    )
    panel.tick_params(colors=INK, length=0)
    for side in panel.spines.values():
        side.set_visible(False)
    return canvas


def draw_step(
    parts: Mapping[str, float], kinds: Sequence[str], history: Sequence[Sequence[int]]
) -> Any:
    """Draw what a step's milliseconds go into, and what lies in memory from its begin to its end."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(9, 6.4), layout="constrained")
    above, below = canvas.subplots(2, 1, height_ratios=(1, 2.2))
    names = [name for name, spent in parts.items() if spent > 0]
    above.barh(names, [parts[name] for name in names], color=HUES[0], height=0.7)
    above.invert_yaxis()
    above.set_xlabel("milliseconds of a step", color=INK)
    shown = [i for i in range(len(kinds)) if any(row[i] for row in history)]
    below.stackplot(
        range(len(history)), [[row[i] / 1e6 for row in history] for i in shown],
        labels=[kinds[i] for i in shown], colors=[HUES[i % len(HUES)] for i in shown],
        step="post",
    )  # fmt: skip
    below.set_ylabel("MB of tensors", color=INK)
    below.set_xlabel("a step: forward, backward, update", color=INK)
    below.set_xticks([])
    below.margins(x=0)
    below.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, reverse=True)
    for axes in (above, below):
        axes.tick_params(colors=INK)
        axes.spines[["top", "right"]].set_visible(False)
    return canvas


def _blend(share: float) -> str:
    """Return a colour between that of the best (0) and that of the worst (1)."""
    best, worst = (0x2F, 0x6F, 0xED), (0xD9, 0xDD, 0xE3)
    mixed = (round(b + (w - b) * min(1.0, 0.25 + 0.75 * share)) for b, w in zip(best, worst))
    return "#1b3fae" if share == 0 else "#" + "".join(f"{part:02x}" for part in mixed)


def _unit_places(
    axis: Mapping[str, Any], values: Sequence[Any]
) -> tuple[list[float], list[tuple[float, str]]]:
    """Return where values lie between 0 and 1, and (place, text) of the ticks."""
    if axis["names"] is not None:
        names, count = axis["names"], max(1, len(axis["names"]) - 1)
        known = {name: (i / count if len(names) > 1 else 0.5) for i, name in enumerate(names)}
        return [known[value] for value in values], [(at, name) for name, at in known.items()]
    scale = math.log if axis["log"] else float
    low, high = min(values), max(values)
    span = scale(high) - scale(low)
    found = [(scale(v) - scale(low)) / span if span else 0.5 for v in values]
    ticks: list[tuple[float, str]] = []
    for value in (low, high, *sorted(set(values))):  # as many as there is room for
        at = (scale(value) - scale(low)) / span if span else 0.5
        if all(abs(at - other) > 0.07 for other, _ in ticks):
            ticks.append((at, f"{value:.3g}"))
    return found, ticks


def draw_picture(shown: Sequence[tuple[str, Mapping[str, Any]]]) -> Any:
    """Return a matplotlib Figure of (learner, picture of `gallery`), beside each other."""
    from matplotlib.figure import Figure as Canvas

    tall = 5.2 if shown[0][1]["kind"] in ("grid", "points") else 4.2
    canvas = Canvas(figsize=(min(16, 8 * len(shown)), tall), layout="constrained")
    for place, (learner, picture) in enumerate(shown):
        axes = canvas.add_subplot(1, len(shown), place + 1)
        _KINDS[picture["kind"]](axes, picture)
        who = "" if len(shown) == 1 else f"{learner}: "
        title = f"{who}{picture.get('title', '')}, step {picture['step']}"
        axes.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold")
        axes.set_xlabel(picture.get("across", ""), color=INK)
        axes.tick_params(colors=INK, length=0)
        for side in axes.spines.values():
            side.set_visible(False)
    return canvas


def _draw_bars(axes: Any, picture: Mapping[str, Any]) -> None:
    values = [float("nan") if value is None else value for value in picture["values"]]
    axes.bar(range(len(values)), values, color=HUES[0], width=0.8)
    axes.set_ylabel(picture.get("unit", ""), color=INK)
    axes.grid(color=GRID, linewidth=0.8, axis="y")
    axes.set_axisbelow(True)
    _name_places(axes.set_xticks, picture["labels"], 16)


def _draw_grid(axes: Any, picture: Mapping[str, Any]) -> None:
    values = [[float("nan") if v is None else v for v in row] for row in picture["values"]]
    if not any(values):
        return
    low, high = picture.get("low"), picture.get("high")
    image = axes.imshow(values, cmap="Blues", vmin=low, vmax=high, aspect="auto")
    axes.figure.colorbar(image, label=picture.get("unit", "")).outline.set_visible(False)
    axes.set_ylabel(picture.get("down", ""), color=INK)
    _name_places(axes.set_xticks, picture["columns"], 40)
    _name_places(axes.set_yticks, picture["rows"], 40)


def _draw_points(axes: Any, picture: Mapping[str, Any]) -> None:
    pairs = [p for p in zip(picture["x"], picture["y"]) if None not in p]
    colors = picture.get("colors") or HUES[0]
    colors = colors if len(pairs) == len(picture["x"]) else HUES[0]
    axes.scatter([x for x, _ in pairs], [y for _, y in pairs], c=colors, s=14)
    axes.set_ylabel(picture.get("down", ""), color=INK)


_KINDS = {"bars": _draw_bars, "grid": _draw_grid, "points": _draw_points}


def _name_places(ticks: Any, names: Sequence[Any], most: int) -> None:
    """Name at most so many places."""
    every = max(1, -(-len(names) // most))
    # A dollar sign would begin mathematics.
    ticks(range(0, len(names), every), [str(n).replace("$", r"\$") for n in names[::every]])


def _hue(figure: Figure, learner: str, role: str, name: str, learners: list[str]) -> str:
    """Return a colour: by learner when there are several, else by kind of curve."""
    if len(learners) > 1:
        return HUES[learners.index(learner) % len(HUES)]
    names = list(dict.fromkeys(f"{curve.role} {curve.name}" for curve in figure.curves))
    return HUES[names.index(f"{role} {name}") % len(HUES)]
