"""Choosing runs by what `run.json` and the last evaluation say: tag, recipe, state, age, value."""

from __future__ import annotations

import operator
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from surefoot.track.folder import RunFolder
from surefoot.track.reading import read_last
from surefoot.track.text import real

__all__ = ["STATES", "Bound", "Choice", "age", "best_value", "parse_bound"]

STATES = ("running", "done", "stopped", "failed", "lost", "damaged", "newer")
_SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class Bound:
    """A condition on a metric, as in `val_loss>2`."""

    metric: str
    sign: str
    value: float

    def __call__(self, run: RunFolder) -> bool:
        """Whether the best (`val_loss`) or else the last evaluation of `run` meets it."""
        found = best_value(run.meta) if self.metric == "val_loss" else None
        if found is None:
            row = read_last(run.path / "metrics.jsonl", lambda row: self.metric in row) or {}
            found = real(row.get(self.metric))
        return found is not None and bool(_SIGNS[self.sign](found, self.value))

    def __str__(self) -> str:
        """Write it as it was given."""
        return f"{self.metric}{self.sign}{self.value:g}"


def parse_bound(text: str) -> Bound:
    """Read a condition; raises ValueError.

    >>> str(parse_bound("val_loss > 2.5"))
    'val_loss>2.5'
    """
    match = re.fullmatch(r"\s*([A-Za-z]\w*)\s*(<=|>=|<|>)\s*([-+.\w]+)\s*", text)
    try:
        assert match is not None
        return Bound(match[1], match[2], float(match[3]))
    except (AssertionError, ValueError):
        raise ValueError("expected a metric and a bound, like 'val_loss>2'") from None


@dataclass(frozen=True)
class Choice:
    """Which runs are meant; every condition given must hold. `older` and `younger`: seconds."""

    tag: str | None = None
    recipe: str | None = None
    state: str | None = None
    older: float | None = None
    younger: float | None = None
    bound: Bound | None = None

    @property
    def open(self) -> bool:
        """Whether nothing was asked, so that every run is meant."""
        return self == Choice()

    def __call__(self, run: RunFolder) -> bool:
        """Whether `run` is meant."""
        meta, years = run.meta, age(run.meta)
        tests: list[Callable[[], bool]] = [
            lambda: self.tag is None or self.tag in (meta.get("tags") or ()),
            lambda: self.recipe is None or self.recipe == meta.get("recipe"),
            lambda: self.older is None or years > self.older,
            lambda: self.younger is None or years <= self.younger,
            lambda: self.state is None or self.state == run.status,
            lambda: self.bound is None or self.bound(run),
        ]
        return all(test() for test in tests)

    def __str__(self) -> str:
        """Say what was asked for."""
        said = [f"tag {self.tag}" if self.tag else "", f"recipe {self.recipe}" * bool(self.recipe)]
        return ", ".join(filter(None, [*said, self.state or "", str(self.bound or "")]))


def age(meta: dict[str, Any]) -> float:
    """Return the seconds since a run ended, or else was last begun; 0 where that is not known."""
    for key in ("ended", "started", "created"):
        try:
            return time.time() - datetime.fromisoformat(str(meta.get(key))).timestamp()
        except ValueError:
            continue
    return 0.0


def best_value(meta: dict[str, Any]) -> float | None:
    """Return the lowest loss in `best` of run.json: {learner: [step, loss]}."""
    best = meta.get("best")
    if not isinstance(best, dict):
        return None
    pairs = [pair for pair in best.values() if isinstance(pair, list | tuple) and len(pair) == 2]
    values = [real(pair[1]) for pair in pairs]
    return min((value for value in values if value is not None), default=None)
