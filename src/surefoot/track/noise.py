"""Whether a difference is real: against the noise between seeds, or that of the evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev

__all__ = ["between", "jitter", "sureness"]

TAIL, LEAST = 20, 5  # evaluations that the noise is estimated from: at most, at least
CLEAR, LIKELY = 4.0, 2.0  # times the noise


def between(seeds: Sequence[Sequence[float]], jitters: Iterable[float | None]) -> float | None:
    """Return the noise of the difference of two means; None: too little is known.

    `seeds` are the values of each of the two, by seed; where neither has several, `jitters` are
    those of their evaluations.

    >>> round(between([[1.0, 3.0], [2.0]], []), 3), between([[1.0], [2.0]], [0.3, 0.4])
    (1.732, 0.5)
    """
    several = [values for values in seeds if len(values) > 1]
    if several:
        variance = fmean(stdev(values) ** 2 for values in several)
        return math.sqrt(variance * sum(1 / len(values) for values in seeds))
    found = list(jitters)
    known = [value for value in found if value is not None]
    return (
        math.sqrt(sum(value**2 for value in known)) if known and len(known) == len(found) else None
    )


def sureness(times: float) -> str:
    """Say in words how sure a difference is that is `times` the noise."""
    return "clear" if times >= CLEAR else "likely real" if times >= LIKELY else "within the noise"


def jitter(values: Sequence[float]) -> float | None:
    """Return how far one evaluation strays from the trend of its neighbours; None: too few.

    The standard deviation from second differences of the later half, which a straight trend does
    not touch (the method of von Neumann's ratio, one order higher).

    >>> round(jitter([3.0, 2.0, 1.0, 0.0, -1.0]), 9)
    0.0
    """
    if len(values) < LEAST:
        return None
    tail = values[-max(LEAST, min(TAIL, len(values) // 2)) :]  # the fall at the start is no noise
    bends = [tail[i - 1] - 2 * tail[i] + tail[i + 1] for i in range(1, len(tail) - 1)]
    return math.sqrt(fmean(bend**2 for bend in bends) / 6)
