"""What came of a sweep: trials from best to worst, and whether one is really better than the next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from surefoot.config.suggest import one_of
from surefoot.sweep.folder import Sweep
from surefoot.sweep.importance import shares
from surefoot.sweep.space import Point
from surefoot.sweep.trials import Trial
from surefoot.track.noise import between, jitter, sureness
from surefoot.track.reading import Row, read_history
from surefoot.track.text import number, real

__all__ = ["Entry", "Results", "importances", "results"]

LEAST = 4  # trials for a word on which setting matters
SHOWN = 8  # trials that are named in a sentence


@dataclass(frozen=True)
class Entry:
    """A trial with the values of its runs; `noise` is that of its difference from the next one."""

    trial: Trial
    values: list[float]
    runs: list[Path]
    learner: str
    metric: str

    @property
    def mean(self) -> float:
        """The mean of the judged metric over seeds; NaN where there is no value."""
        return fmean(self.values) if self.values else math.nan

    @property
    def spread(self) -> float | None:
        """The standard deviation over seeds, where there are several."""
        return stdev(self.values) if len(self.values) > 1 else None

    @cached_property
    def rows(self) -> list[list[Row]]:
        """The evaluations of each run."""
        return [
            list(read_history(run / "metrics.jsonl").eval.get(self.learner, []))
            for run in self.runs
        ]

    @property
    def jitters(self) -> list[float | None]:
        """The noise from one evaluation to the next, for each run; None: too few to say."""
        found = (
            [v for row in rows if (v := real(row.get(self.metric))) is not None]
            for rows in self.rows
        )
        return [jitter(values) for values in found]

    @property
    def step(self) -> int:
        """The step of the last evaluation of its first run."""
        return max((row["step"] for rows in self.rows[:1] for row in rows), default=0)

    def text(self) -> str:
        """Return its value as people read it."""
        if not self.values:
            return "–"
        return number(self.mean) + (f" ± {number(self.spread)}" if self.spread is not None else "")


@dataclass(frozen=True)
class Results:
    """`ranked` are trials that came to their end, the best first; `others` are all the rest."""

    sweep: Sweep
    ranked: list[Entry]
    others: list[Entry]
    trials: list[Trial]

    @cached_property
    def verdicts(self) -> list[str]:
        """How sure each ranked trial is better than the next: a word for all but the last."""
        return [_verdict(a, b) for a, b in zip(self.ranked, self.ranked[1:])]

    @cached_property
    def as_good(self) -> list[Entry]:
        """The trials that noise alone may keep from being the best."""
        if not self.ranked:
            return []
        best = self.ranked[0]
        return [e for e in self.ranked[1:] if _verdict(best, e) in ("within the noise", "the same")]

    def count(self, *states: str) -> int:
        """Return how many trials are in any of these states."""
        return sum(trial.state in states for trial in self.trials)

    def notes(self) -> list[str]:
        """Say what a reader of the table has to know."""
        found, plan = [], self.sweep.plan
        if self.ranked:
            best = self.ranked[0]
            found.append(f"best: trial {best.trial.number + 1}, {plan.metric} {best.text()}")
        if len(self.ranked) > 1:
            found.append(self._noise())
        if len(self.ranked) > 1 and not plan.repeated:
            found.append(
                "One seed each, and seeds often differ by more than evaluations do: --repeat 3 tells."
            )
        left = plan.count - self.count("done", "pruned", "failed")
        if left:
            verb = "has" if left == 1 else "have"
            found.append(f"{left} of {plan.count} trials {verb} not ended yet.")
        return found

    def _noise(self) -> str:
        best, second = self.ranked[:2]
        gap = abs(best.mean - second.mean)
        noise = _noise(best, second)
        if noise is None:
            return "Too few evaluations to tell the difference to the next from noise."
        if not gap:
            return "The next one has the same value to the last digit."
        times = gap / noise if noise else math.inf
        of = "between seeds" if self.sweep.plan.repeated else "of the evaluations"
        said = f"Its lead of {number(gap)} is {times:.1f} x the noise {of} ({number(noise)}): {sureness(times)}."
        others = [str(entry.trial.number + 1) for entry in self.as_good]
        if not others:
            return said
        more = [f"{len(others) - SHOWN} more"] if len(others) > SHOWN else []
        named = one_of([*others[:SHOWN], *more], "and")
        return f"{said} Trial{'s' * (len(others) > 1)} {named} may be as good."


def _noise(a: Entry, b: Entry) -> float | None:
    return between([a.values, b.values], [*a.jitters, *b.jitters])


def _verdict(a: Entry, b: Entry) -> str:
    noise, gap = _noise(a, b), abs(a.mean - b.mean)
    if noise is None:
        return "not known"
    if not gap:
        return "the same"
    return sureness(gap / noise if noise else math.inf)


def results(sweep: Sweep, trials: Sequence[Trial]) -> Results:
    """Rank the trials of a sweep."""
    plan = sweep.plan
    entries = []
    for trial in trials:
        runs = [sweep.runs / sweep.run_name(trial.number, seed) for seed in plan.seeds]
        there = [run for run in runs if (run / "run.json").exists()]
        values = [float(value) for value in trial.values.values()]
        entries.append(Entry(trial, values, there, plan.learner, plan.metric))
    ranked = [e for e in entries if e.trial.state == "done" and e.values]
    ranked.sort(key=lambda e: (plan.sign * e.mean, e.trial.number))
    others = [e for e in entries if not (e.trial.state == "done" and e.values)]
    return Results(sweep, ranked, others, list(trials))


def importances(made: Results) -> dict[str, float] | str:
    """Return how much each setting matters, shares of 1 by name; or why that is not known.

    By Optuna's PED-ANOVA, of the trials that came to their end.
    """
    plan = made.sweep.plan
    several = [d for d in plan.space if len({str(e.trial.point[d.path]) for e in made.ranked}) > 1]
    if len(made.ranked) < LEAST or len(several) < 1:
        return f"{LEAST} finished trials at least say which setting matters"
    points: list[tuple[Point, float]] = [(e.trial.point, e.mean) for e in made.ranked]
    try:
        found: Mapping[str, Any] = shares(several, points, plan.goal)
    except ImportError:
        return 'which setting matters needs Optuna: pip install "surefoot[sweep]"'
    names = {d.path: d.name for d in several}
    return {names[path]: float(share) for path, share in found.items()}
