"""Pictures that a recipe gives to the record: data, drawn by whoever shows it.

A recipe lists functions in `Job.pictures`; each returns one of the four kinds below. A value that
is not finite, or None, is a hole. What does not fit together raises ValueError at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = ["Bars", "Grid", "Picture", "Points", "Table", "as_row"]

MOST = 20_000  # cells, bars, points or rows of one picture, so that the record stays small

Number = float | int | None


@dataclass(frozen=True)
class Bars:
    """One bar for each label: `values` in `unit`. `note` is a sentence under the picture.

    >>> as_row(Bars("Errors", ["first digit", "last digit"], [0.5, float("inf")], "%"))["values"]
    [0.5, None]
    """

    kind: ClassVar[str] = "bars"
    title: str
    labels: Sequence[str]
    values: Sequence[Number]
    unit: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        _same(self, labels=len(self.labels), values=len(self.values))


@dataclass(frozen=True)
class Grid:
    """A heat map: `values[i][j]` in `unit` stands in row `rows[i]` under `columns[j]`.

    Dark is `low` (default: the smallest value), bright is `high`. `down` and `across` say what
    rows and columns are.
    """

    kind: ClassVar[str] = "grid"
    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[Number]]
    unit: str = ""
    note: str = ""
    down: str = ""
    across: str = ""
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        _same(self, rows=len(self.rows), values=len(self.values))
        for line in self.values:
            _same(self, columns=len(self.columns), values=len(line))
        _same(self, len(self.rows) * len(self.columns))


@dataclass(frozen=True)
class Table:
    """Rows of texts and numbers under `head`; a cell like `#ff8800` is shown as that colour."""

    kind: ClassVar[str] = "table"
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Number]]
    note: str = ""

    def __post_init__(self) -> None:
        for line in self.rows:
            _same(self, head=len(self.head), cells=len(line))
        _same(self, len(self.rows) * max(1, len(self.head)))


@dataclass(frozen=True)
class Points:
    """Points in the plane, in `colors` (`#rrggbb` each; none: one colour) and with `labels`."""

    kind: ClassVar[str] = "points"
    title: str
    x: Sequence[Number]
    y: Sequence[Number]
    colors: Sequence[str] = ()
    labels: Sequence[str] = ()
    note: str = ""
    across: str = ""
    down: str = ""

    def __post_init__(self) -> None:
        count = len(self.x)
        colors, labels = len(self.colors) or count, len(self.labels) or count
        _same(self, x=count, y=len(self.y), colors=colors, labels=labels)


Picture = Bars | Grid | Table | Points


def as_row(picture: Picture) -> dict[str, Any]:
    """Return a picture as plain values, for `pictures.jsonl`."""
    return {"kind": picture.kind, **{key: _plain(v) for key, v in vars(picture).items()}}


def _same(picture: Picture, size: int = 0, /, **lengths: int) -> None:
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise ValueError(f"picture {picture.title!r}: {told} do not fit together")
    if max(size, *lengths.values(), 0) > MOST:
        raise ValueError(f"picture {picture.title!r} is larger than {MOST} values")


def _plain(value: Any) -> Any:
    """Return lists, texts and numbers of five digits; None for what is not finite."""
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, Sequence) or hasattr(value, "tolist"):
        items = value.tolist() if hasattr(value, "tolist") else value
        return [_plain(item) for item in items] if isinstance(items, Sequence) else _plain(items)
    if isinstance(value, int):
        return int(value)
    return float(f"{value:.5g}") if math.isfinite(value) else None
