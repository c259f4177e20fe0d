"""How hard the work is: teacher forcing, and how much of the context is seen.

Teacher forcing is how often a decoder is shown the true token before, and not its own.

Bengio et al., "Scheduled Sampling for Sequence Prediction with Recurrent Neural Networks" (2015):
training begins with the truth and slowly turns to what the model itself would have said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Growth", "Shape", "TeacherForcing"]

Shape = Literal["constant", "linear", "exponential", "inverse-sigmoid"]
_KEY = "teacher_forcing"  # in the learner's memory


@dataclass(frozen=True)
class TeacherForcing:
    """The share of true tokens: `first` until it begins to fall, `last` about `steps` steps later.

    It begins at step `start`, or with None when the loss is stable: when the mean of the last
    `window` losses is within `tolerance`, as a share, of the mean of the `window` before.
    """

    shape: Shape
    first: float = 1.0
    last: float = 0.0
    steps: int = 1000
    start: int | None = 0
    window: int = 50
    tolerance: float = 0.02

    def level(self, step: int, memory: Mapping[str, Any]) -> float:
        """Return the share of true tokens at `step`."""
        start = memory.get(_KEY, {}).get("start") if self.start is None else self.start
        if self.shape == "constant" or start is None or step < start:
            return self.first
        return self.last + (self.first - self.last) * self._left(step - start)

    def _left(self, steps: int) -> float:
        """Return the share of the way left after this many steps: from 1 to 0, or nearly 0."""
        part = steps / self.steps
        if self.shape == "linear":
            return max(0.0, 1.0 - part)
        if self.shape == "exponential":
            return math.exp(-5.0 * part)
        # k / (k + exp(i / k)) of the paper, moved so that the middle lies at half of the steps.
        return 1.0 / (1.0 + math.exp(min(12.0 * (part - 0.5), 700.0)))

    def observe(self, step: int, loss: float, memory: dict[str, Any]) -> None:
        """Remember the loss after `step`, and the step at which it was found stable."""
        kept = memory.setdefault(_KEY, {"start": self.start, "losses": []})
        if self.start is None and kept["start"] is None:
            kept["losses"] = [*kept["losses"], loss][-2 * self.window :]
            if self._stable(kept["losses"]):
                kept["start"], kept["losses"] = step + 1, []
        kept["probability"] = self.level(step + 1, memory)

    def _stable(self, losses: list[float]) -> bool:
        if len(losses) < 2 * self.window:
            return False
        before = math.fsum(losses[: self.window])
        return abs(math.fsum(losses[self.window :]) - before) <= self.tolerance * abs(before)


@dataclass(frozen=True)
class Growth:
    """The share of the context that tokens see: 1/8, 1/4, 1/2 for a third of `steps` each, then 1.

    Li et al., "The Stability-Efficiency Dilemma: Sequence Length Warmup" (2021).
    """

    steps: int

    def level(self, step: int, memory: Mapping[str, Any]) -> float:
        """Return the share at `step`."""
        return 1.0 if step >= self.steps else 2.0 ** (3 * step // self.steps - 3)

    def observe(self, step: int, loss: float, memory: dict[str, Any]) -> None:
        """Remember nothing: the share is a function of the step."""
