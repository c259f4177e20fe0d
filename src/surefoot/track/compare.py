"""Two or more runs side by side: what differs, and which is better at equal step, time, tokens.

Runs that differ in nothing but the seed are pooled. A difference is set against the noise there
is: between seeds where there are several, else from one evaluation to the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from surefoot.errors import RunError
from surefoot.track.clock import Clock
from surefoot.track.folder import RunFolder
from surefoot.track.noise import between, jitter, sureness
from surefoot.track.reading import History, Row, read_history
from surefoot.track.settings import read_settings
from surefoot.track.text import number, real

__all__ = ["AXES", "Column", "Comparison", "Difference", "Group", "better", "compare", "value_at"]

AXES = ("step", "seconds", "tokens")
SEED = "train.seed"
ASIDE = ("cadence.", "keep.", "track.", "machine.prefetch")  # settings that change no number
CHOSEN = ("why", "horizon", "prefetch_threads")  # of `pinned`, not worth a line
_BITS = "val_bits_per_"  # of a byte or character: in one unit whatever the tokens are
_PLACE = frozenset(("kind", "step", "learner", "segment", "time"))


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same in all runs: a text for each, or None where it is not."""

    group: str  # settings, chosen, data, code, machine, versions, watching
    name: str
    values: list[str | None]


@dataclass(frozen=True)
class Column:
    """One learner of one run, with its evaluations at their step, second and token."""

    name: str
    run: RunFolder
    learner: str
    history: History
    settings: dict[str, str]
    rows: list[Row]
    axes: dict[str, list[float]]  # axis -> place of each row

    def measured(self, key: str, axis: str) -> tuple[list[float], list[float]]:
        """Return (places, values) of a metric along an axis; what is not finite is left out."""
        pairs = [
            (place, value)
            for place, row in zip(self.axes[axis], self.rows, strict=True)
            if (value := real(row.get(key))) is not None and math.isfinite(value)
        ]
        return [place for place, _ in pairs], [value for _, value in pairs]


@dataclass(frozen=True)
class Group:
    """Columns that differ in the seed at most."""

    name: str
    columns: list[Column]

    def values(self, key: str, axis: str, place: float) -> list[float]:
        """Return a metric of each member at `place`."""
        found = (value_at(*column.measured(key, axis), place) for column in self.columns)
        return [value for value in found if value is not None]


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. `at` is the common end on each axis, `unit` what a token is here."""

    columns: list[Column]
    groups: list[Group]
    differences: list[Difference]
    equal: dict[str, str]  # setting -> value
    metrics: list[str]  # that all have, the main one first
    at: dict[str, float]
    unit: str  # tokens or examples
    notes: list[str] = field(default_factory=list)

    def alike(self, key: str) -> bool:
        """Whether a metric is in the same unit everywhere; losses of other recipes are not."""
        recipes = {column.run.meta.get("recipe") for column in self.columns}
        return len(recipes) < 2 or key.startswith(_BITS)

    def best(self, group: Group) -> list[tuple[float, float]]:
        """Return (step, value) of the best evaluation of each member by the main metric."""
        found = []
        for member in group.columns if self.metrics else ():
            steps, values = member.measured(self.metrics[0], "step")
            if values:
                pick = min if better(self.metrics[0]) < 0 else max
                place = pick(range(len(values)), key=values.__getitem__)
                found.append((steps[place], values[place]))
        return found


def better(metric: str) -> int:
    """Return -1 where lower is better, 1 where higher is, 0 where that is not known.

    >>> better("val_loss"), better("top1"), better("spread")
    (-1, 1, 0)
    """
    if metric.startswith("val_bits") or metric.endswith(("loss", "error", "perplexity", "delta_e")):
        return -1
    higher = ("top1", "top5", "exact", "accuracy", "score", "share", "pass")
    return 1 if metric.startswith(higher) or metric.endswith(higher) else 0


def compare(runs: Sequence[RunFolder]) -> Comparison:
    """Compare runs. Raises RunError for fewer than two, or one named twice."""
    if len(runs) < 2:
        raise RunError("one run alone has nothing to differ from", fix="surefoot compare A B")
    names = [run.name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RunError(f"{twice} is named twice", fix="surefoot compare A B")
    unit, per_step = _unit(runs)
    columns = [column for run in runs for column in _columns(run, per_step[run.name])]
    groups = _pool(columns)
    metrics = _shared(columns)
    at = {axis: _common(columns, axis) for axis in AXES} if metrics else {}
    settings = {run.name: _settings(run) for run in runs}
    differences = [*_different(runs, settings), *_facts(runs)]
    apart = {difference.name for difference in differences}
    fields = {key: value for run in runs for key, value in settings[run.name].items()}
    equal = {key: value for key, value in fields.items() if key not in apart}
    made = Comparison(columns, groups, differences, equal, metrics, at, unit)
    made.notes.extend([*_cautions(runs, columns, metrics), *_noise(made)])
    return made


def _settings(run: RunFolder) -> dict[str, str]:
    try:
        text = (run.path / "config.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return {setting.field: setting.value for setting in read_settings(text)}


def _unit(runs: Sequence[RunFolder]) -> tuple[str, dict[str, int]]:
    """Return what a step consumes, tokens where every run has a context, and how many, by run."""
    found = {run.name: _settings(run) for run in runs}
    tokens = all("model.context" in settings for settings in found.values())
    per_step = {}
    for name, settings in found.items():
        batch, context = settings.get("train.batch_size", ""), settings.get("model.context", "")
        per_step[name] = _whole(batch) * (_whole(context) if tokens else 1)
    return "tokens" if tokens else "examples", per_step


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _columns(run: RunFolder, per_step: int) -> list[Column]:
    history = read_history(run.path / "metrics.jsonl")
    clock, settings, found = Clock(history, run.meta), _settings(run), []
    for learner in history.learners or ["main"]:
        rows = [row for row in history.eval.get(learner, []) if isinstance(row.get("step"), int)]
        steps = [float(row["step"]) for row in rows]
        axes = {
            "step": steps,
            "seconds": [clock(row) for row in rows],
            "tokens": [step * per_step for step in steps],
        }
        name = run.name if len(history.learners) < 2 else f"{run.name}/{learner}"
        found.append(Column(name, run, learner, history, settings, rows, axes))
    return found


def _pool(columns: Sequence[Column]) -> list[Group]:
    """Group the columns that differ in nothing but the seed."""
    found: list[tuple[Any, list[Column]]] = []
    for member in columns:
        key, seed = _kind(member), member.settings.get(SEED)
        for other, members in found:
            if key == other and seed not in [known.settings.get(SEED) for known in members]:
                members.append(member)
                break
        else:
            found.append((key, [member]))
    return [
        Group(members[0].name + (f" ({len(members)} seeds)" if len(members) > 1 else ""), members)
        for _, members in found
    ]


def _kind(member: Column) -> Any:
    """Return what must be equal for two columns to be the same experiment."""
    meta, settings = member.run.meta, dict(member.settings)
    settings = {k: v for k, v in settings.items() if k != SEED and not k.startswith(ASIDE)}
    pinned = {k: v for k, v in (meta.get("pinned") or {}).items() if k not in CHOSEN}
    same = settings or member.name
    return same, member.learner, meta.get("source"), pinned, meta.get("recipe"), _code(meta)


def _shared(columns: Sequence[Column]) -> list[str]:
    """Return the metrics that every column has evaluated, the most telling one first."""
    sets = [{key for row in c.rows for key in row if _numeric(row[key])} for c in columns]
    keys = set.intersection(*sets) - _PLACE if sets else set()
    first = ["val_loss", *sorted(key for key in keys if key.startswith(_BITS))]
    recipes = {c.run.meta.get("recipe") for c in columns}
    sizes = {(c.run.meta.get("data") or {}).get("vocab_size") for c in columns}
    if len(sizes) > 1 or len(recipes) > 1:  # then losses are in different units
        first.reverse()
    known = [*first, "exact", "top1", "top5"]
    return [key for key in known if key in keys] + sorted(keys - set(known))


def _numeric(value: Any) -> bool:
    return not isinstance(value, bool) and real(value) is not None


def _common(columns: Sequence[Column], axis: str) -> float:
    """Return how far along an axis all have been evaluated."""
    return min(max(column.axes[axis], default=0.0) for column in columns)


def value_at(places: Sequence[float], values: Sequence[float], place: float) -> float | None:
    """Return the value at `place`, on a straight line between its neighbours; None: outside.

    >>> value_at([10, 20], [4.0, 2.0], 15), value_at([10, 20], [4.0, 2.0], 25)
    (3.0, None)
    """
    for after, there in enumerate(places):
        if there == place:
            return values[after]
        if there > place:
            if after == 0:
                return None
            before = places[after - 1]
            share = (place - before) / (there - before)
            return values[after - 1] + share * (values[after] - values[after - 1])
    return None


def _different(
    runs: Sequence[RunFolder], settings: dict[str, dict[str, str]]
) -> Iterable[Difference]:
    fields = dict.fromkeys(key for run in runs for key in settings[run.name])
    found = []
    for key in fields:
        values = [settings[run.name].get(key) for run in runs]
        if len(set(values)) > 1:
            group = "watching" if key.startswith(ASIDE) else "settings"
            found.append(Difference(group, key, values))
    return sorted(found, key=lambda difference: difference.group == "watching")


def _facts(runs: Sequence[RunFolder]) -> Iterable[Difference]:
    """Yield what differs besides the settings."""
    yield from _differs("", "recipe", [run.meta.get("recipe") for run in runs])
    yield from _inside(runs, "chosen", "pinned", lambda key: key not in CHOSEN)
    names = ("name", "fingerprint", "vocab_size")
    yield from _inside(runs, "data", "data", lambda key: key in names)
    yield from _differs("code", "commit", [_code(run.meta) for run in runs])
    yield from _inside(runs, "machine", "machine", lambda key: key in ("host", "cpu", "cores"))
    yield from _inside(runs, "versions", "versions", lambda key: True)


def _inside(runs: Sequence[RunFolder], group: str, part: str, wanted: Any) -> Iterable[Difference]:
    tables = [run.meta.get(part) for run in runs]
    known = [table if isinstance(table, dict) else {} for table in tables]
    for key in dict.fromkeys(key for table in known for key in table if wanted(key)):
        yield from _differs(group, key, [table.get(key) for table in known])


def _differs(group: str, name: str, values: list[Any]) -> Iterable[Difference]:
    texts = [None if value is None else str(value) for value in values]
    if len(set(texts)) > 1:
        yield Difference(group, name, texts)


def _code(meta: dict[str, Any]) -> str | None:
    """Name the code of a run: its commit, and the diff against it where there was one."""
    git = meta.get("git")
    if not isinstance(git, dict):
        return None
    changed = f" + diff {str(git['diff'])[:8]}" if git.get("diff") else " + changes"
    return str(git.get("commit"))[:10] + (changed if git.get("dirty") else "")


def _cautions(
    runs: Sequence[RunFolder], columns: Sequence[Column], metrics: Sequence[str]
) -> Iterable[str]:
    """Yield what a reader of the numbers has to know first."""
    if len({run.meta.get("recipe") for run in runs}) > 1:
        names = ", ".join(dict.fromkeys(str(run.meta.get("recipe")) for run in runs))
        yield f"The recipes differ ({names}): only what they share is compared."
    elif len({str(run.meta.get("source")) for run in runs}) > 1:
        yield "The data differ: losses are on different held-out examples."
    if not metrics:
        bare = [column.name for column in columns if not column.rows]
        why = f"{', '.join(bare)} has none yet" if bare else "they measure different things"
        yield f"No evaluation is shared: {why}."
    for member in columns:
        if member.history.damage.count:
            yield f"{member.name}: metrics.jsonl has {member.history.damage}; they are left out."
        if member.run.status in ("running", "lost", "stopped", "failed"):
            yield f"{member.name} is {member.run.status}, at step {_last_step(member)}."


def _last_step(member: Column) -> int:
    rows = [*member.history.train.get(member.learner, []), *member.rows]
    return max((row["step"] for row in rows if isinstance(row.get("step"), int)), default=0)


def _noise(made: Comparison) -> Iterable[str]:
    """Yield for each group how its difference from the first compares with the noise."""
    if not made.metrics:
        return
    key, step = made.metrics[0], made.at["step"]
    first, *others = made.groups
    if others and not made.alike(key):
        yield f"No verdict: each recipe counts its {_plain(key)} in a unit of its own."
        return
    base = first.values(key, "step", step)
    if not others:
        if len(base) > 1:
            spread = f"{number(min(base))} to {number(max(base))}, deviation {number(stdev(base))}"
            yield f"{_plain(key)} of {len(base)} seeds at step {step:.0f}: {spread}."
        return
    for other in others:
        values = other.values(key, "step", step)
        if base and values:
            yield _verdict(made, first, other, fmean(values) - fmean(base))


def _verdict(made: Comparison, first: Group, other: Group, gap: float) -> str:
    key, step = made.metrics[0], made.at["step"]
    direction = better(key) * gap
    word = "better" if direction > 0 else "worse" if direction < 0 else "different"
    who = f"{other.name} against {first.name}"
    if gap == 0:
        return f"{who}: the same {_plain(key)} to the last digit."
    said = f"{who}: {_plain(key)} {number(abs(gap))} {word} at step {step:.0f}"
    spread = [group.values(key, "step", step) for group in (first, other)]
    several = any(len(values) > 1 for values in spread)
    found = [jitter(c.measured(key, "step")[1]) for g in (first, other) for c in g.columns]
    noise = between(spread, found)
    if noise is None:
        return f"{said}; too few evaluations to tell it from noise."
    of = "the noise between seeds" if several else "the noise of the evaluations"
    times = abs(gap) / noise if noise else math.inf
    ratio = f"{times:.1f} x {of} ({number(noise)}): {sureness(times)}"
    alone = "" if several else "; one seed each, and seeds often differ by more"
    return f"{said}, {ratio}{alone}."


def _plain(key: str) -> str:
    return key.replace("_", " ")
