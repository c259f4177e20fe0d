"""A comparison as lines of a table, as a picture, and as one page that needs no network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from surefoot.track.compare import Column, Comparison, Group, better
from surefoot.track.durable import write_atomic
from surefoot.track.figures import Curve, Figure, figures
from surefoot.track.page import asset, figure_values, pack, render
from surefoot.track.reading import History, squeeze
from surefoot.track.text import RATES, clock, count, number, rate, real

__all__ = ["Line", "document", "figures_of", "results", "write"]

METRICS = 6  # shown besides the main one
POINTS = 1000  # of one curve of evaluations


@dataclass(frozen=True)
class Line:
    """One line of the results: a text for each group, and the places of the best ones."""

    label: str
    cells: list[str]
    best: tuple[int, ...] = ()


def results(made: Comparison) -> list[Line]:
    """Return what each group reached: its best, and all at equal step, time and tokens."""
    lines = []
    if made.metrics:
        main = made.metrics[0]
        found = [made.best(group) for group in made.groups]
        lines.append(_line(made, f"best {_plain(main)}", main, [[v for _, v in f] for f in found]))
        steps = [", ".join(dict.fromkeys(f"{step:.0f}" for step, _ in f)) for f in found]
        lines.append(Line("  at step", steps))
        step, tokens = f"step {made.at['step']:.0f}", f"{count(made.at['tokens'])} {made.unit}"
        same = _at(made, main, "step") == _at(made, main, "tokens")
        for key in made.metrics[: METRICS + 1]:
            place = f"{step}, {tokens}" if same and key == main else step
            lines.append(_line(made, f"{_plain(key)} at {place}", key, _at(made, key, "step")))
        for axis, place in (("seconds", clock(made.at["seconds"])), ("tokens", tokens)):
            if axis == "seconds" or not same:
                lines.append(_line(made, f"{_plain(main)} at {place}", main, _at(made, main, axis)))
    return [*lines, *_circumstances(made)]


def _circumstances(made: Comparison) -> Iterator[Line]:
    speeds = [_speed(group) for group in made.groups]
    if any(speeds):
        yield Line("speed", speeds)
    spent = [[max(c.axes["seconds"], default=0.0) for c in g.columns] for g in made.groups]
    yield Line("training time", [clock(fmean(times)) for times in spent])
    yield Line(
        "state", [", ".join(dict.fromkeys(c.run.status for c in g.columns)) for g in made.groups]
    )


def _speed(group: Group) -> str:
    """Return the median speed of a group as `182k tok/s`."""
    rows = [row for c in group.columns for row in c.history.train.get(c.learner, [])]
    for key in RATES:
        speeds = sorted(v for row in rows if (v := real(row.get(key))) is not None)
        if speeds:
            return rate({key: speeds[len(speeds) // 2]}) or ""
    return ""


def _at(made: Comparison, key: str, axis: str) -> list[list[float]]:
    return [group.values(key, axis, made.at[axis]) for group in made.groups]


def _line(made: Comparison, label: str, key: str, found: list[list[float]]) -> Line:
    means = {place: fmean(values) for place, values in enumerate(found) if values}
    best: tuple[int, ...] = ()
    if better(key) and made.alike(key) and len(means) > 1:
        top = max(better(key) * mean for mean in means.values())
        best = tuple(place for place, mean in means.items() if better(key) * mean == top)
        best = () if len(best) == len(means) else best
    return Line(label, [_cell(key, values) for values in found], best)


def _cell(key: str, values: list[float]) -> str:
    if not values:
        return "–"
    percent = key.startswith(("top1", "top5", "exact"))
    text = f"{100 * fmean(values):.1f} %" if percent else number(fmean(values))
    if len(values) < 2:
        return text
    spread = stdev(values)
    return f"{text} ± {f'{100 * spread:.1f}' if percent else f'{spread:.3f}'}"


def _plain(key: str) -> str:
    return key.replace("_", " ")


def figures_of(made: Comparison) -> list[Figure]:
    """Return the curves of all columns in common figures, those of the main metric first."""
    merged = History(
        train={c.name: rows for c in made.columns if (rows := c.history.train.get(c.learner))},
        eval={c.name: c.rows for c in made.columns},
    )
    drawn = figures(merged)
    first = [part for figure in drawn[:1] for part in _apart(figure)]
    along = [figure for axis in ("seconds", "tokens") if (figure := _along(made, axis)) is not None]
    return [_pooled(figure, made) for figure in [*first[:1], *along, *first[1:], *drawn[1:]]]


def _apart(figure: Figure) -> Iterator[Figure]:
    """Yield validation and training of a figure apart: with several runs they are too much."""
    for role, title in (("val", "Validation loss"), ("train", "Training loss")):
        curves = [curve for curve in figure.curves if curve.role == role]
        if curves and figure.id == "loss":
            name = "loss" if role == "val" else "train-loss"
            best = figure.best if role == "val" else None
            yield replace(figure, id=name, title=title, curves=curves, best=best)
    if figure.id != "loss":
        yield figure


def _pooled(figure: Figure, made: Comparison) -> Figure:
    """Give the curves of a group its name, and so one colour and one entry in the legend."""
    names = {member.name: group.name for group in made.groups for member in group.columns}
    curves = [replace(curve, learner=names[curve.learner]) for curve in figure.curves]
    return replace(
        figure,
        curves=curves,
        best=figure.best and replace(figure.best, learner=names[figure.best.learner]),
    )


def _along(made: Comparison, axis: str) -> Figure | None:
    if not made.metrics:
        return None
    key, curves = made.metrics[0], []
    for member in made.columns:
        places, values = member.measured(key, axis)
        kept = squeeze(values, POINTS)
        steps = [round(places[place], 1) for place in kept]
        shown: list[float | None] = [values[place] for place in kept]
        curves.append(Curve(_plain(key), member.name, "val", steps, shown))
    name = made.unit if axis == "tokens" else axis
    over = "training time" if axis == "seconds" else name
    return Figure(f"main-{axis}", f"{_plain(key).capitalize()} over {over}", curves, x=name)


def document(made: Comparison) -> dict[str, Any]:
    """Return the comparison as plain values."""
    return {
        "runs": [column.name for column in made.columns],
        "groups": {group.name: [c.name for c in group.columns] for group in made.groups},
        "differs": [
            {"what": d.name, "group": d.group, "values": _by_run(made, d.values)}
            for d in made.differences
        ],
        "equal_settings": made.equal,
        "at": made.at,
        "unit": made.unit,
        "metrics": made.metrics,
        "results": [
            {
                "group": group.name,
                "best": [{"step": s, "value": v} for s, v in made.best(group)],
                "at": {
                    axis: {key: group.values(key, axis, made.at[axis]) for key in made.metrics}
                    for axis in made.at
                },
            }
            for group in made.groups
        ],
        "notes": made.notes,
    }


def _by_run(made: Comparison, values: Iterable[str | None]) -> dict[str, str | None]:
    names = list(dict.fromkeys(column.run.name for column in made.columns))
    return dict(zip(names, values, strict=True))


def write(made: Comparison, folder: Path) -> tuple[Path, Path]:
    """Write `A-B.html` and `A-B.png` into `folder`; return their paths. Raises OSError."""
    from surefoot.track.plots import DPI, sheet

    names = list(dict.fromkeys(column.run.name for column in made.columns))
    title = "-".join(names) if len(names) < 4 else f"{names[0]}-and-{len(names) - 1}-others"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = figures_of(made)
    page, picture = folder / f"{title[:150]}.html", folder / f"{title[:150]}.png"
    if drawn:
        staging = folder / f".{picture.name}"
        try:
            sheet(drawn[:4]).savefig(staging, dpi=DPI)
            staging.replace(picture)
        except OSError:
            with contextlib.suppress(OSError):
                staging.unlink()
            raise
    write_atomic(page, _page(made, names, drawn), lasting=False)
    return page, picture


def _page(made: Comparison, names: list[str], drawn: list[Figure]) -> str:
    values = {"marks": [], "figures": [figure_values(figure) for figure in drawn]}
    diffs = {column.run.name: _diff(column) for column in made.columns}
    return render(
        "compare.html.j2",
        title=" against ".join(names) if len(names) < 4 else f"{len(names)} runs",
        subtitle=f"{', '.join(dict.fromkeys(str(c.run.meta.get('recipe')) for c in made.columns))}",
        names=names,
        differences=made.differences,
        equal=made.equal,
        groups=[group.name for group in made.groups],
        lines=results(made),
        notes=made.notes,
        diffs={name: text for name, text in diffs.items() if text},
        data=pack(values),
        js=asset("compare.js"),
    )


def _diff(member: Column) -> str:
    """Return the uncommitted changes that a run was made with."""
    try:
        with (member.run.path / "code.diff").open(encoding="utf-8", errors="replace") as file:
            return file.read(20_000)
    except OSError:
        return ""
