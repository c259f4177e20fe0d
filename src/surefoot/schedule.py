"""Learning-rate schedules: pure functions of the step, multipliers of the peak rate.

A schedule keeps no state, so nothing of it is saved, and resuming at any step is exact. `step`
counts batches consumed before the update: the first update asks for step 0, the last one of a run
of `end` steps for `end - 1`. The floor, reached at `end`, is for the steps beyond: no update of a
planned run is spent at a rate of 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Constant", "Cosine", "OneCycle", "Schedule", "WarmupStableDecay"]


class Schedule(Protocol):
    """Anything that maps a step to a multiplier of the peak learning rate."""

    def __call__(self, step: int) -> float: ...


def _warmup(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / (steps + 1)) if steps else 1.0


@dataclass(frozen=True)
class Constant:
    """Linear warmup, then 1 for ever.

    >>> [round(Constant(warmup=3)(s), 2) for s in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """

    warmup: int = 0  # steps

    def __call__(self, step: int) -> float:
        return _warmup(step, self.warmup)


@dataclass(frozen=True)
class Cosine:
    """Linear warmup, half a cosine down to `floor` at step `end`, then a hold at `floor`.

    Loshchilov and Hutter, "SGDR" (2017), without restarts.

    >>> [round(Cosine(warmup=0, end=4, floor=0.1)(s), 3) for s in (0, 2, 4, 9)]
    [1.0, 0.55, 0.1, 0.1]
    """

    warmup: int  # steps
    end: int  # step at which the floor is reached
    floor: float = 0.0  # fraction of the peak

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return _warmup(step, self.warmup)
        if step >= self.end:
            return self.floor
        done = (step - self.warmup) / (self.end - self.warmup)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class WarmupStableDecay:
    """Linear warmup, a plateau at 1, then a linear decay to `floor` at step `end`.

    Hu et al., "MiniCPM" (2024). The plateau makes a run extendable: only the decay is spent.

    >>> [round(WarmupStableDecay(warmup=0, decay=4, end=8)(s), 2) for s in (0, 4, 6, 8, 99)]
    [1.0, 1.0, 0.5, 0.0, 0.0]
    """

    warmup: int  # steps
    decay: int  # steps that the decay takes, before `end`
    end: int
    floor: float = 0.0

    def __call__(self, step: int) -> float:
        if step >= self.end:
            return self.floor
        left = min(1.0, (self.end - step) / self.decay) if self.decay else 1.0
        return min(_warmup(step, self.warmup), self.floor + (1 - self.floor) * left)


@dataclass(frozen=True)
class OneCycle:
    """Cosine up from `1/div` to 1 over the first `rise`, then down to `1/(div*final_div)` at `end`.

    Smith and Topin, "Super-Convergence" (2018), in the two-phase form.

    >>> cycle = OneCycle(end=10, rise=0.3)
    >>> [round(cycle(s), 5) for s in (0, 3, 10, 11)]
    [0.04, 1.0, 0.0, 0.0]
    """

    end: int
    rise: float = 0.3  # fraction of the steps spent rising
    div: float = 25.0
    final_div: float = 1e4

    @property
    def peak(self) -> int:
        """The step at which the rate is highest, reached also by the shortest runs."""
        return max(1, round(self.rise * self.end))

    def __call__(self, step: int) -> float:
        peak = self.peak
        low, last = 1 / self.div, 1 / (self.div * self.final_div)
        if step < peak:
            return low + (1 - low) * 0.5 * (1 - math.cos(math.pi * step / peak))
        done = min(1.0, (step - peak) / max(1.0, self.end - peak))
        return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * done))
