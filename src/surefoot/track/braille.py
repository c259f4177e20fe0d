"""Curves in a terminal: dots of braille, eight to a character, or stars where there are none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

__all__ = ["Series", "plot"]

Series = tuple[Sequence[float], Sequence[float]]  # places, values
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # [column][row] of one character


def plot(
    curves: Sequence[Series], width: int, height: int, unicode: bool = True
) -> tuple[list[list[tuple[str, int]]], float, float]:
    """Return rows of (character, curve on top or -1), and the lowest and highest value.

    Neighbouring points are joined. Where two curves meet in a character, the later one gives its
    colour. What is not finite is left out.

    >>> rows, low, high = plot([([0, 1], [0.0, 1.0])], 2, 1)
    >>> "".join(char for char, _ in rows[0]), low, high
    ('⡠⠊', 0.0, 1.0)
    """
    points = [[(x, y) for x, y in zip(*curve, strict=True) if math.isfinite(y)] for curve in curves]
    known = [point for found in points for point in found]
    xs, ys = [x for x, _ in known], [y for _, y in known]
    low, high = min(ys, default=0.0), max(ys, default=0.0)
    across, down = (2, 4) if unicode else (1, 1)
    columns, rows = width * across, height * down
    first, last = min(xs, default=0.0), max(xs, default=0.0)
    dots = [[0] * width for _ in range(height)]
    owner = [[-1] * width for _ in range(height)]
    for number, found in enumerate(points):
        placed = [
            (
                round((x - first) / ((last - first) or 1) * (columns - 1)),
                round((high - y) / ((high - low) or 1) * (rows - 1)),
            )
            for x, y in found
        ]
        for column, row in _joined(placed):
            here = _DOTS[column % across][row % down]
            dots[row // down][column // across] |= here
            owner[row // down][column // across] = number
    drawn = [
        [(_char(dots[r][c], unicode), owner[r][c]) for c in range(width)] for r in range(height)
    ]
    return drawn, low, high


def _char(dots: int, unicode: bool) -> str:
    if not dots:
        return " "
    return chr(0x2800 + dots) if unicode else "*"


def _joined(placed: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    """Return the dots of straight lines between neighbours."""
    found = set(placed)
    for (x0, y0), (x1, y1) in pairwise(placed):
        length = max(abs(x1 - x0), abs(y1 - y0))
        for part in range(1, length):
            found.add(
                (x0 + round((x1 - x0) * part / length), y0 + round((y1 - y0) * part / length))
            )
    return found
