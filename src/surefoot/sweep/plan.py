"""What a sweep is going to do: the recipe and its settings, the space, the seeds, the judge.

A plan is plain values. It is written into the sweep's folder (and into a database, where one is
shared), so that whoever has it can go on with the sweep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from surefoot import api, recipes
from surefoot.config.fields import Given
from surefoot.config.resolve import Resolved
from surefoot.errors import ConfigError, Problem
from surefoot.sweep.space import LONGEST, Dimension, Point, draw, product, size, text_of

__all__ = ["SEED", "Plan", "check", "points", "same"]

SEED = "train.seed"
FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """`mode` is grid, random or search; `fixed` are settings as they were given, by path.

    `files` are settings in files, name -> text. `metric` is judged at the last evaluation of
    `learner`; `goal` is min or max. `prune` is off, median or hyperband. `draws` seeds the draws.
    `length` are the steps of a run, where they are known.
    """

    recipe: str
    preset: str | None
    files: Mapping[str, str]
    fixed: Mapping[str, Any]
    mode: str
    space: Sequence[Dimension]
    count: int
    seeds: Sequence[int]
    repeated: bool
    metric: str
    learner: str
    goal: str
    prune: str = "off"
    draws: int = 0
    length: int | None = None
    storage: str | None = None
    format: int = field(default=FORMAT)

    @cached_property
    def found(self) -> recipes.Recipe:
        """The recipe."""
        return recipes.recall(self.recipe, "this sweep")

    @property
    def called(self) -> str:
        """The recipe's name; that of its file, where the file is gone or nobody has named it here."""
        try:
            return self.found.name
        except ConfigError:
            return Path(self.recipe).stem

    @property
    def sign(self) -> float:
        """What to multiply a value with, so that lower is better."""
        return 1.0 if self.goal == "min" else -1.0

    def point(self, number: int) -> Point:
        """Return the settings of a trial; those of a search are chosen when it begins."""
        if self.mode == "grid":
            return product(self.space, number)
        return draw(self.space, self.draws, number)

    def settle(self, point: Mapping[str, Any], seed: int, folder: Path, source: str) -> Resolved:
        """Return the whole configuration of a run. Raises ConfigError with all mistakes.

        `source` is what a person reads about where the point comes from.
        """
        given = {path: _given(path, value, "command line") for path, value in self.fixed.items()}
        given |= {path: _given(path, value, source) for path, value in point.items()}
        if self.repeated:
            given[SEED] = _given(SEED, seed, source)
        return api.settle(self.found, self.preset, self.write_files(folder), given)

    def write_files(self, folder: Path) -> list[Path]:
        """Return the files of settings, written where they are not yet."""
        paths = [folder / f"settings-{name}" for name in self.files]
        for path, text in zip(paths, self.files.values()):
            if not path.exists():
                path.write_text(text, encoding="utf-8")
        return paths

    def document(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Plan:
        """Return the plan of a `document`. Raises ConfigError for one of a later version."""
        if document.get("format") != FORMAT:
            what = f"this sweep has format {document.get('format')}, and {FORMAT} is known here"
            raise ConfigError(what, fix="update surefoot")
        space = [Dimension(**{**d, "values": tuple(d["values"])}) for d in document["space"]]
        return cls(**{**document, "space": space})


def _given(path: str, value: Any, source: str) -> Given:
    return Given(value, source, f"{source}: {path} {value}")


def same(a: Plan, b: Plan) -> bool:
    """Whether two sweeps try the same; where their trials are kept does not matter."""
    return replace(a, storage=None).document() == replace(b, storage=None).document()


def check(plan: Plan, folder: Path) -> list[str]:
    """Settle what can be known beforehand; return what will not work, as sentences.

    Raises ConfigError where the fixed settings or all points are wrong, and for each value that is
    wrong at whatever point.
    """
    tried = 1 if plan.mode == "search" else min(plan.count, LONGEST)
    bad: dict[int, ConfigError] = {}
    for place in range(tried):
        try:
            plan.settle(
                plan.point(place), plan.seeds[0], folder,
                "--grid" if plan.mode == "grid" else "--space",
            )  # fmt: skip
            if plan.mode != "grid":  # others are drawn as they come
                return []
        except ConfigError as error:
            bad[place] = error
    if plan.mode != "grid":
        raise bad[0]
    wrong = list(_never(plan, bad))
    if wrong:
        raise ConfigError(wrong)
    return [f"{_point(plan, place)}: {error.problems[0].what}" for place, error in bad.items()]


def _never(plan: Plan, bad: Mapping[int, ConfigError]) -> Sequence[Problem]:
    """Return one problem for each value that is wrong wherever it is."""
    found: dict[str, Problem] = {}
    points = [plan.point(place) for place in range(plan.count)]
    for dimension in plan.space if bad else ():
        for value in dimension.values:
            places = [i for i, point in enumerate(points) if point[dimension.path] == value]
            if all(place in bad for place in places):
                problem = bad[places[0]].problems[0]
                found.setdefault(problem.what, problem)
    return list(found.values())


def _point(plan: Plan, place: int) -> str:
    point = plan.point(place)
    return ", ".join(f"{d.name} {text_of(point[d.path])}" for d in plan.space)


def points(space: Sequence[Dimension]) -> int:
    """Return the number of points of a grid. Raises ConfigError for too many."""
    total = size(space) or 0
    if total > LONGEST:
        raise ConfigError(f"a grid of {total} points", fix=f"{LONGEST} at most; --random 50 draws")
    return total
