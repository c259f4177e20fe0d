"""A sweep on one page that needs no network, and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from surefoot.sweep.results import Entry, Results, importances
from surefoot.sweep.space import text_of
from surefoot.track.compare import better
from surefoot.track.durable import write_atomic
from surefoot.track.figures import Curve, Figure
from surefoot.track.page import asset, figure_values, pack, render
from surefoot.track.reading import squeeze
from surefoot.track.text import real

__all__ = ["document", "write"]

CURVES, POINTS = 8, 1000  # trials whose curves are shown, points of each


def document(made: Results) -> dict[str, Any]:
    """Return a sweep and its results as plain values."""
    plan, shares = made.sweep.plan, importances(made)
    verdicts = [*made.verdicts, None] if made.ranked else []
    return {
        "sweep": made.sweep.name,
        "folder": str(made.sweep.path),
        "recipe": plan.called,
        "preset": plan.preset,
        "mode": plan.mode,
        "metric": plan.metric,
        "goal": plan.goal,
        "space": {d.path: str(d) for d in plan.space},
        "count": plan.count,
        "ended": made.count("done", "pruned", "failed"),
        "trials": [
            {**_entry(entry), "rank": rank, "to_the_next": verdict}
            for rank, (entry, verdict) in enumerate(zip(made.ranked, verdicts), 1)
        ]
        + [_entry(entry) for entry in made.others],
        "importances": shares if isinstance(shares, dict) else None,
        "notes": made.notes(),
    }


def _entry(entry: Entry) -> dict[str, Any]:
    trial = entry.trial
    return {
        "trial": trial.number + 1,
        "state": trial.state,
        "settings": dict(trial.point),
        "value": entry.mean if entry.values else None,
        "values": dict(trial.values),
        "deviation": entry.spread,
        "step": entry.step,
        "runs": [str(run) for run in entry.runs],
        "why": trial.why or None,
    }


def write(made: Results) -> tuple[Path, Path | None]:
    """Write `report.html` and `parallel.png` into the sweep's folder; return their paths.

    The picture needs two finished trials. Raises OSError.
    """
    sweep, shares = made.sweep, importances(made)
    page, picture = sweep.path / "report.html", None
    if len(made.ranked) > 1:
        from surefoot.track.plots import DPI, draw_parallel

        picture = sweep.path / "parallel.png"
        staging = sweep.path / ".parallel.png"
        draw_parallel(_axes(made), _lines(made)).savefig(staging, dpi=DPI)
        staging.replace(picture)
    write_atomic(page, _page(made, shares), lasting=False)
    return page, picture


def _page(made: Results, shares: Mapping[str, float] | str) -> str:
    sweep, plan = made.sweep, made.sweep.plan
    values = {
        "marks": [],
        "figures": [figure_values(figure) for figure in _curves(made)],
        "axes": _axes(made),
        "lines": _lines(made),
        "low": plan.goal == "min",
        "shares": dict(shares) if isinstance(shares, Mapping) else None,
    }
    preset = f" {plan.preset}" if plan.preset else ""
    return render(
        "sweep.html.j2",
        title=f"Sweep {sweep.name}",
        subtitle=f"{plan.called}{preset} · {plan.mode} of {plan.count} · {plan.metric}, {'low' if plan.goal == 'min' else 'high'} is good · {sweep.created[:16].replace('T', ' ')}",
        notes=made.notes(),
        names=[d.name for d in plan.space],
        metric=plan.metric,
        rows=_rows(made),
        shares=shares if isinstance(shares, str) else "",
        data=pack(values),
        js=asset("sweep.js"),
    )


def _rows(made: Results) -> list[dict[str, Any]]:
    """Return the lines of the table, the ranked first."""
    verdicts, paths = [*made.verdicts, ""], [d.path for d in made.sweep.plan.space]
    found = []
    for place, entry in enumerate([*made.ranked, *made.others]):
        ranked = place < len(made.ranked)
        trial = entry.trial
        found.append({
            "rank": str(place + 1) if ranked else "",
            "trial": trial.number + 1,
            "cells": [text_of(trial.point[path]) if path in trial.point else "" for path in paths],
            "value": entry.text() if ranked else trial.state,
            "verdict": verdicts[place] if ranked else trial.why,
            "state": trial.state,
            "reports": [f"runs/{run.name}/report.html" for run in entry.runs if (run / "report.html").exists()],
        })  # fmt: skip
    return found


def _axes(made: Results) -> list[dict[str, Any]]:
    """Return the axes of the parallel coordinates: the settings, and the metric at last."""
    axes = []
    for dimension in made.sweep.plan.space:
        tried = [entry.trial.point[dimension.path] for entry in made.ranked]
        known = [v for v in dimension.values if v in tried] or sorted(set(tried), key=str)
        numbers = all(_numeric(value) for value in tried)
        names = None if numbers else [text_of(value) for value in known]
        log = numbers and (dimension.log or _wide(tried))
        axes.append({"name": dimension.name, "log": log, "names": names})
    log = _wide([entry.mean for entry in made.ranked])
    return [*axes, {"name": made.sweep.plan.metric, "log": log, "names": None}]


def _numeric(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wide(values: Sequence[float]) -> bool:
    """Whether values span so much that they are better seen by their logarithm."""
    return bool(values) and min(values) > 0 and max(values) > 10 * min(values)


def _lines(made: Results) -> list[dict[str, Any]]:
    found = []
    for rank, entry in enumerate(made.ranked, 1):
        point = [entry.trial.point[d.path] for d in made.sweep.plan.space]
        cells = [v if _numeric(v) else text_of(v) for v in point]
        found.append(
            {"trial": entry.trial.number + 1, "rank": rank, "values": [*cells, entry.mean]}
        )
    return found


def _curves(made: Results) -> Sequence[Figure]:
    """Return the judged metric of the best trials over the steps."""
    metric, curves = made.sweep.plan.metric, []
    for entry in made.ranked[:CURVES]:
        for rows in entry.rows:
            told = [(row["step"], v) for row in rows if (v := real(row.get(metric))) is not None]
            kept = squeeze([v for _, v in told], POINTS)
            values: list[float | None] = [told[place][1] for place in kept]
            steps = [told[place][0] for place in kept]
            curves.append(Curve(metric, f"trial {entry.trial.number + 1}", "val", steps, values))
    if not any(len(curve.steps) > 1 for curve in curves):
        return []
    title = f"{metric.replace('_', ' ').capitalize()} of the best trials"
    return [Figure("loss" if better(metric) < 0 else "metric", title, curves, log=True)]
