"""Learners side by side: the loss by what each one spent, in seconds and in operations."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from surefoot.track.figures import Curve, Figure
from surefoot.track.reading import History, Row, column
from surefoot.track.text import real

__all__ = ["effort"]

Spent = Callable[[int], float | None]  # of one learner, up to a step


def effort(history: History, meta: Mapping[str, Any]) -> list[Figure]:
    """Return the held-out loss by time and by work, where several learners were measured.

    Time is that of a learner's own passes and updates, so that nobody pays for the others.
    """
    if len(history.eval) < 2:
        return []
    flops = meta.get("flops")
    work = flops if isinstance(flops, Mapping) else {}
    each = {who: real(value) for who, value in work.items()}
    by_work: dict[str, Spent] = {who: partial(_gflop, flops=n) for who, n in each.items() if n}
    seconds = {who: _clock(history.system, who) for who in history.eval}
    found = [
        _figure("loss_by_time", "Loss by own time", "seconds", history, seconds),
        _figure("loss_by_work", "Loss by work", "GFLOP", history, by_work),
    ]
    return [figure for figure in found if figure.curves]


def _gflop(step: int, flops: float) -> float:
    return step * flops / 1e9


def _clock(rows: list[Row], learner: str) -> Spent:
    """Return a clock of one learner: seconds of its turns up to a step, straight between rows."""
    steps, sums = [0], [0.0]
    for row in rows:
        turns, step = row.get("turns_s"), row.get("step")
        spent = real(turns.get(learner)) if isinstance(turns, Mapping) else None
        if spent is not None and isinstance(step, int) and step > steps[-1]:
            steps.append(step)
            sums.append(sums[-1] + spent)

    def clock(step: int) -> float | None:
        place = bisect_left(steps, step)
        if place == len(steps):
            return None
        if steps[place] == step:
            return sums[place]
        part = (step - steps[place - 1]) / (steps[place] - steps[place - 1])
        return sums[place - 1] + part * (sums[place] - sums[place - 1])

    return clock


def _figure(name: str, title: str, x: str, history: History, spent: Mapping[str, Spent]) -> Figure:
    curves = []
    for learner, rows in history.eval.items():
        steps, values = column(rows, "val_loss")
        places = [spent[learner](step) if learner in spent else None for step in steps]
        kept = [(round(p), v) for p, v in zip(places, values, strict=True) if p is not None]
        kept = [pair for i, pair in enumerate(kept) if not i or pair[0] > kept[i - 1][0]]
        if kept:
            curves.append(Curve("val", learner, "val", [p for p, _ in kept], [v for _, v in kept]))
    return Figure(name, title, curves, "nats", log=True, x=x)
