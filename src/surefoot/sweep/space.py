"""What is tried: settings with lists of values or ranges, and the points between them.

    lr=1e-4,3e-4            values                      d_model=64..256/64    every 64th
    lr=1e-4..1e-2           a range, by its logarithm   weight_decay=lin:0..1 a range, evenly
    num_layers=2..6         whole numbers

A range is drawn by its logarithm where it spans more than a factor of ten, or as `log:` or `lin:`
say. A point is a function of the draw's seed and the trial's number, and of nothing else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel

from surefoot.config.fields import Leaf, leaves, plain, short_names
from surefoot.config.flags import arguments
from surefoot.errors import Problem
from surefoot.seeds import derive

__all__ = [
    "LONGEST", "Dimension", "Point", "draw", "parse", "product", "size", "text_of", "usual",
]  # fmt: skip

Point = dict[str, Any]  # path of a setting -> value
DECADE = 10.0
LONGEST = 10_000  # values of one setting, points of a grid
OFF = ("track.", "keep.", "cadence.log_every", "cadence.sample_every", "cadence.save_every")


@dataclass(frozen=True)
class Dimension:
    """One setting and what is tried of it: `values`, or a range from `low` to `high`.

    `whole` and `log` say how a range is drawn.
    """

    path: str
    name: str  # the shortest that means it
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False

    def __str__(self) -> str:
        if self.values:
            return f"{self.name} {', '.join(map(text_of, self.values))}"
        how = " (log)" if self.log else ""
        return f"{self.name} {text_of(self._end(self.low))}..{text_of(self._end(self.high))}{how}"

    def _end(self, value: float) -> float:
        return int(value) if self.whole else value

    def draw(self, source: random.Random) -> Any:
        """Return a value, evenly distributed (by its logarithm where that is asked for)."""
        if self.values:
            return source.choice(self.values)
        low, high = (self.low, self.high + 1) if self.whole else (self.low, self.high)
        if self.log:
            found = math.exp(source.uniform(math.log(low), math.log(high)))
        else:
            found = source.uniform(low, high)
        if self.whole:
            return min(int(found), int(self.high))
        return float(f"{found:.4g}")  # whoever reads it may want to type it


def text_of(value: Any) -> str:
    """Return a value as a person types it, with four digits."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parse(
    words: Sequence[str], schema: type[BaseModel], flag: str, recipe: str = "RECIPE"
) -> tuple[list[Dimension], list[Problem]]:
    """Return the dimensions that `NAME=VALUES` words say, and all that is wrong with them."""
    found: list[Dimension] = []
    wrong: list[Problem] = []
    for word in words:
        name, equals, text = word.partition("=")
        where = f"{flag} {word}"
        if not equals or not name or not text.strip(", "):
            what = f"{flag}: no values for {name or 'nothing'}" if equals else f"{flag}: {word!r}"
            wrong.append(Problem(what, "command line", f"write {flag} lr=1e-3,3e-4"))
            continue
        given, problems = arguments({name.replace("-", "_"): text}, schema, recipe)
        if problems:
            wrong += [Problem(p.what, where, p.fix) for p in problems]
            continue
        leaf = leaves(schema)[next(iter(given))]
        try:
            found.append(_dimension(leaf, schema, text.strip(), flag))
        except ValueError as error:
            what, _, fix = str(error).partition("; ")
            wrong.append(Problem(f"{name}: {what}", where, fix or None))
    return found, wrong


def _dimension(leaf: Leaf, schema: type[BaseModel], text: str, flag: str) -> Dimension:
    name = leaf.name if short_names(schema).get(leaf.name) == leaf.path else leaf.path
    if leaf.listing or leaf.overlay:
        raise ValueError("holds several values itself; sweep over other settings")
    if leaf.path.startswith(OFF):
        raise ValueError("changes no number, so nothing would differ; try another setting")
    if ".." in text and {int, float} & set(leaf.kinds):
        return _range(leaf, name, text, flag)
    values = tuple(_value(leaf, part.strip()) for part in text.split(",") if part.strip())
    twice = next((v for v in values if values.count(v) > 1), None)
    if twice is not None:
        raise ValueError(f"{text_of(twice)} is there twice; write each value once")
    return Dimension(leaf.path, name, values)


def _value(leaf: Leaf, text: str) -> Any:
    """Return `text` as the setting's type has it; the schema judges it later."""
    value = leaf.read(text)
    if leaf.boolean:
        words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
        return words.get(str(value).lower(), value)
    if isinstance(value, str) and float in leaf.kinds:
        try:
            return float(value)
        except ValueError:
            return value
    return (
        str(value)
        if leaf.textual and not isinstance(value, str) and value is not None
        else plain(value)
    )


def _range(leaf: Leaf, name: str, text: str, flag: str) -> Dimension:
    how, colon, rest = text.partition(":")
    ends, slash, stride = (rest if colon else text).partition("/")
    first, _, last = ends.partition("..")
    whole = float not in leaf.kinds
    try:
        low, high, step = float(first), float(last), float(stride or 0)
    except ValueError:
        raise ValueError(f"{text!r} is no range; write 1e-4..1e-2, or 64..256/64") from None
    if (colon and how not in ("log", "lin")) or (slash and (colon or step <= 0)):
        raise ValueError(f"{text!r} is no range; write log:1e-4..1e-2, or 64..256/64")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{text!r} holds nothing; the lower end comes first")
    if whole and not (low.is_integer() and high.is_integer() and step.is_integer()):
        raise ValueError(f"takes whole numbers; write {math.floor(low)}..{math.ceil(high)}")
    if slash:
        return Dimension(leaf.path, name, _steps(low, high, step, whole))
    if flag == "--grid":
        raise ValueError("a grid needs values; write a,b,c or 64..256/64, or draw with --random 20")
    log = how == "log" if colon else low > 0 and high / low > DECADE
    if log and low <= 0:
        raise ValueError("a range by its logarithm begins above 0")
    return Dimension(leaf.path, name, (), low, high, whole, log)


def _steps(low: float, high: float, step: float, whole: bool) -> tuple[Any, ...]:
    count = math.floor((high - low) / step + 1e-9) + 1
    if count > LONGEST:
        raise ValueError(f"{count} values are too many; {LONGEST} at most")
    values = (low + place * step for place in range(count))
    return tuple(int(v) if whole else float(f"{v:.12g}") for v in values)


def usual(schema: type[BaseModel], rates: Iterable[tuple[str, float]]) -> list[Dimension]:
    """Return what is drawn from when nothing is said: learning rates, a factor of ten around."""
    short = short_names(schema)
    return [
        Dimension(
            path, name if short.get(name := path.rpartition(".")[2]) == path else path, (),
            rate / DECADE, rate * DECADE, False, True,
        )
        for path, rate in rates
    ]  # fmt: skip


def size(space: Sequence[Dimension]) -> int | None:
    """Return how many points there are; None: a range has no end of them."""
    if not all(d.values for d in space):
        return None
    return math.prod(len(d.values) for d in space)


def product(space: Sequence[Dimension], place: int) -> Point:
    """Return one point of a grid; the last setting varies fastest."""
    point: Point = {}
    for dimension in reversed(space):
        place, index = divmod(place, len(dimension.values))
        point[dimension.path] = dimension.values[index]
    return {dimension.path: point[dimension.path] for dimension in space}


def draw(space: Sequence[Dimension], seed: int, number: int) -> Point:
    """Return the point of trial `number`.

    Of a space of lists with up to LONGEST points, none comes twice.
    """
    total = size(space)
    if total is not None and total <= LONGEST:
        return product(space, _shuffled(total, seed)[number])
    return {d.path: d.draw(random.Random(derive(seed, "sweep", number, d.path))) for d in space}


@cache
def _shuffled(total: int, seed: int) -> list[int]:
    return random.Random(derive(seed, "sweep")).sample(range(total), total)
