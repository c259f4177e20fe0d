"""The curves of a run as plain data, which the report and the pictures draw alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from surefoot.track.reading import History, Row, column, squeeze
from surefoot.track.text import RATES, real

__all__ = ["Best", "Curve", "Figure", "Mark", "best_of", "figures", "marks", "reason"]

POINTS = 2000  # at most, of one curve
ALL_POINTS = 5500  # of all curves that follow the training steps
SMOOTHED = ("loss", "grad_norm", "tokens_per_s", "examples_per_s")
NOISY = 120  # values from which on a training curve gets a moving average
ODD = 50  # values that are not finite, shown one by one
Role = Literal["train", "val", "plan"]
_PLACE = frozenset(("kind", "step", "learner", "segment", "time"))
_ACCURACY = {"top1": "top-1", "top5": "top-5", "exact": "exact"}
_TITLES = {
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_s": "Tokens per second",
    "examples_per_s": "Examples per second",
}
_SHARE = {"loss": 1.0, "grad_norm": 1.0, "lr": 0.35, "tokens_per_s": 0.5}  # of POINTS


@dataclass(frozen=True)
class Curve:
    """One line: what was measured at which steps.

    `smooth`, where it is not empty, is a moving average at the same steps; `odd` are the points
    that are not finite, as (step, text).
    """

    name: str
    learner: str
    role: Role
    steps: list[int] | list[float]
    values: list[float | None]
    smooth: list[float | None] = field(default_factory=list)
    odd: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step: `label` in a word, `text` in a sentence."""

    step: int
    label: str
    text: str


@dataclass(frozen=True)
class Best:
    """The best evaluation."""

    step: int
    value: float
    learner: str = "main"


@dataclass(frozen=True)
class Figure:
    """A picture of curves. `log`: offer a logarithmic scale; `rule`: a level line.

    `stack`: curves share their steps and lie upon each other, the first one lowest. `x` is what a curve's `steps` are: `step`, `seconds`, `tokens` or `examples`.
    """

    id: str
    title: str
    curves: list[Curve]
    unit: str = ""
    log: bool = False
    best: Best | None = None
    rule: float | None = None
    note: str = ""
    x: str = "step"
    stack: bool = False


def figures(history: History, clip: float | None = None) -> list[Figure]:
    """Return every figure that `history` has rows for; `clip` is the largest gradient norm."""
    learners = max(1, len(history.train))
    known = [key for key in (*SMOOTHED, "lr") if _has(history, key)]
    rates = [key for key in RATES if key in known]
    known = [key for key in known if key not in rates[1:]]  # the same curve twice
    extra = sorted(_keys(r for rows in history.train.values() for r in rows) - {*known, *rates})
    budget = ALL_POINTS / (learners * max(1.0, sum(_SHARE.get(k, 0.5) for k in known + extra)))
    points = {key: int(min(POINTS, budget) * _SHARE.get(key, 0.5)) for key in known + extra}
    found = [_loss(history, points.get("loss", POINTS)), _accuracy(history)]
    for key in ("lr", *SMOOTHED[1:]):
        if key in known:
            found.append(_training(history, key, points[key], clip))
    found += _parts(history, {key: points[key] for key in extra})
    found += _evaluations(history)
    return [figure for figure in found if figure.curves]


def best_of(history: History) -> Best | None:
    """Return the evaluation with the lowest validation loss."""
    found = None
    for learner, rows in history.eval.items():
        for step, value in zip(*column(rows, "val_loss"), strict=True):
            if math.isfinite(value) and (found is None or value < found.value):
                found = Best(step, value, learner)
    return found


def marks(history: History, meta: Mapping[str, Any]) -> list[Mark]:
    """Return where processes went on and what events the rows tell, in order of steps."""
    found, segments = [], meta.get("segments")
    for place, segment in enumerate(segments if isinstance(segments, list) else []):
        if place and isinstance(segment, Mapping):
            step = int(segment.get("step") or 0)
            found.append(Mark(step, "resumed", reason(segment)))
    for row in history.events:
        words = [f"{key} {value}" for key, value in row.items() if key not in _PLACE | {"event"}]
        text = str(row.get("why") or ", ".join(words))
        found.append(Mark(int(row.get("step") or 0), str(row.get("event", "event")), text))
    return sorted(found, key=lambda mark: mark.step)


def reason(segment: Mapping[str, Any]) -> str:
    """Return why the process of a segment went on, in a sentence."""
    if not isinstance(segment, Mapping):
        return "the reason is not known"
    ended = {
        "running": "the process before ended without a word (killed, or the machine stopped)",
        "stopped": "after it was stopped",
        "failed": "after an error",
        "done": "after it was done",
    }
    return str(segment.get("why") or ended.get(str(segment.get("after")), "went on"))


def _loss(history: History, points: int) -> Figure:
    train = [_curve(rows, "loss", who, "train", points) for who, rows in history.train.items()]
    val = [_curve(rows, "val_loss", who, "val", 1000) for who, rows in history.eval.items()]
    curves = [curve for curve in train + val if curve.steps]
    return Figure("loss", "Loss", curves, "nats", log=True, best=best_of(history))


def _accuracy(history: History) -> Figure:
    curves = []
    for key, name in _ACCURACY.items():
        for learner, rows in history.eval.items():
            steps, values = column(rows, key)
            percent = [100 * value for value in values]
            curves.append(_thin(name, learner, "val", steps, percent, 500))
    return Figure("accuracy", "Accuracy", [curve for curve in curves if curve.steps], "%")


def _training(history: History, key: str, points: int, clip: float | None) -> Figure:
    curves = [_curve(rows, key, who, "train", points) for who, rows in history.train.items()]
    rule, note = None, ""
    if key == "grad_norm" and clip:
        rule, note = clip, _clipped(history, clip)
    title = _TITLES.get(key) or _title(key)
    log = key in ("grad_norm", "lr")
    return Figure(key, title, [c for c in curves if c.steps], log=log, rule=rule, note=note)


def _parts(history: History, points: Mapping[str, int]) -> list[Figure]:
    """Return a figure for each further number of a step, one for all that share `GROUP/`."""
    found: dict[str, Figure] = {}
    for key, count in points.items():
        group, _, name = key.rpartition("/")
        figure = _training(history, key, count, None)
        curves = [replace(curve, name=name.replace("_", " ")) for curve in figure.curves]
        if group in found:
            figure = replace(found[group], curves=[*found[group].curves, *curves])
        elif group:
            figure = replace(figure, id=group, title=_title(group), curves=curves, log=True)
        found[group or key] = figure
    return list(found.values())


def _clipped(history: History, clip: float) -> str:
    """Say what the level line is, and how often it was crossed if every row was read."""
    said = f"Dotted: gradients are clipped at {clip:g}"
    values = [v for rows in history.train.values() for v in column(rows, "grad_norm")[1]]
    if history.thinned or not values:
        return f"{said}."
    share = sum(value > clip for value in values) / len(values)
    return f"{said}, as {100 * share:.0f} % of the logged ones were."


def _title(key: str) -> str:
    words = key.replace("_", " ")
    return words[:1].upper() + words[1:]


def _evaluations(history: History) -> list[Figure]:
    """Return a figure for each metric of an evaluation that has no place elsewhere.

    An interval, KEY_low and KEY_high, and what a model was before, base_KEY, are drawn with KEY.
    """
    rows = [row for rows in history.eval.values() for row in rows]
    known = _keys(rows) - _ACCURACY.keys()
    keys = sorted(key for key in known if key != "val_loss" and not _beside(key, known))
    keys = [key for key in keys if not key.startswith("val_bits_per_")]  # the loss in other units
    found = []
    for key in keys:
        curves = [_curve(rows, key, who, "val", 500) for who, rows in history.eval.items()]
        for name, more in (("low", f"{key}_low"), ("high", f"{key}_high"), ("base", f"base_{key}")):
            for who, mine in history.eval.items():
                curves.append(replace(_curve(mine, more, who, "plan", 500), name=name))
        title = _title(key.removeprefix("val_"))
        if _has(history, key):
            title += ", held out"
        found.append(Figure(f"val-{key}", title, [c for c in curves if c.steps]))
    return found


def _beside(key: str, known: set[str]) -> bool:
    """Whether `key` is an end of the interval of another metric, or its value before training."""
    told = (key.removeprefix("base_"), key.removesuffix("_low"), key.removesuffix("_high"))
    return any(name != key and name in known for name in told)


def _curve(rows: list[Row], key: str, learner: str, role: Role, points: int) -> Curve:
    plain = key.removeprefix("val_").replace("_", " ")
    name = {"loss": "train", "val_loss": "validation"}.get(key, plain)
    steps, values = column(rows, key)
    curve = _thin(name, learner, role, steps, values, points)
    if key not in SMOOTHED or len(values) < NOISY:
        return curve
    means = _average(_average(values, len(values) // 150), len(values) // 150)
    return replace(curve, smooth=[means[place] for place in squeeze(values, max(10, points))])


def _thin(
    name: str, learner: str, role: Role, steps: list[int], values: list[float], points: int
) -> Curve:
    odd = [(s, f"{v:g}") for s, v in zip(steps, values, strict=True) if not math.isfinite(v)]
    places = squeeze(values, max(10, points))
    shown = [values[place] if math.isfinite(values[place]) else None for place in places]
    return Curve(name, learner, role, [steps[place] for place in places], shown, odd=odd[:ODD])


def _average(values: Sequence[float | None], reach: int) -> list[float | None]:
    """Return the mean of what is finite within `reach` places on either side of each."""
    sums, counts = [0.0], [0]
    for value in values:
        finite = value is not None and math.isfinite(value)
        sums.append(sums[-1] + (value if value is not None and finite else 0.0))
        counts.append(counts[-1] + finite)
    found: list[float | None] = []
    for place in range(len(values)):
        span = min(reach, place, len(values) - 1 - place)
        start, stop = place - span, place + span + 1
        count = counts[stop] - counts[start]
        found.append((sums[stop] - sums[start]) / count if count else None)
    return found


def _has(history: History, key: str) -> bool:
    return any(key in row for rows in history.train.values() for row in rows)


def _keys(rows: Iterable[Row]) -> set[str]:
    """Return the names of numbers in rows."""
    return set(_numeric(rows)) - _PLACE


def _numeric(rows: Iterable[Row]) -> Iterator[str]:
    known: set[str] = set()
    for row in rows:
        for key in row.keys() - known:
            if not isinstance(row[key], bool) and real(row[key]) is not None:
                known.add(key)
                yield key
