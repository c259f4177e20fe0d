"""How a multiplication is written in tokens, and read again: each digit in a place of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surefoot.data.batch import Batch

__all__ = ["ALPHABET", "END", "IGNORED", "START", "Form"]

Int = NDArray[np.int64]

ALPHABET = "0123456789x=."  # a digit is its own token
TIMES = 10
START = 11  # stands before every answer
END = 12
IGNORED = -100  # a target that does not count


@dataclass(frozen=True)
class Form:
    """How a problem is written: each digit in a place of its own.

    A question is the first number, a sign and the second number, in `2 * digits + 1` tokens; a
    place that a number does not fill holds END, or 0 with `padding`. An answer is, with `work`,
    the product of the first number and each digit of the second, `digits + 1` tokens each; then
    the product itself, in at most `2 * digits` tokens and END, or all of them with `padding`.
    `reversed` writes every number with the least significant digit first.
    """

    digits: int
    reversed: bool = True
    padding: bool = False
    work: bool = False

    @classmethod
    def all(cls, digits: int) -> list[Form]:
        """Return every form of problems with so many digits; each has another answer_length."""
        return [cls(digits, padding=p, work=w) for p in (False, True) for w in (False, True)]

    @property
    def question_length(self) -> int:
        return 2 * self.digits + 1

    @property
    def work_length(self) -> int:
        """Tokens before the product."""
        return self.digits * (self.digits + 1) if self.work else 0

    @property
    def answer_length(self) -> int:
        return self.work_length + 2 * self.digits + (0 if self.padding else 1)

    def question(self, a: Int, b: Int) -> Int:
        """Return i64[m, 2 * digits + 1]."""
        sign = np.full((len(a), 1), TIMES)
        return np.concatenate([self._operand(a), sign, self._operand(b)], 1)

    def _operand(self, numbers: Int) -> Int:
        digits = _digits(numbers, self.digits)
        if not self.padding:
            digits[_beyond(numbers, self.digits)] = END
        return digits if self.reversed else digits[:, ::-1]

    def answer(self, a: Int, b: Int) -> Int:
        """Return i64[m, answer_length]; what follows the first END is -100."""
        parts = []
        if self.work:
            for place in range(self.digits):
                partial = _digits(a * (b // 10**place % 10), self.digits + 1)
                parts.append(partial if self.reversed else partial[:, ::-1])
        return np.concatenate([*parts, self._product(a * b)], 1)

    def _product(self, product: Int) -> Int:
        width = 2 * self.digits
        digits = _digits(product, width)
        if self.padding:
            return digits if self.reversed else digits[:, ::-1]
        length = width - _beyond(product, width).sum(1)  # digits that count
        place = np.arange(width + 1)
        if not self.reversed:
            turned = np.clip(length[:, None] - 1 - place, 0, width - 1)
            digits = np.take_along_axis(digits, turned, 1)
        ended = np.concatenate([digits[:, :width], np.full((len(product), 1), END)], 1)
        ended[place == length[:, None]] = END
        ended[place > length[:, None]] = IGNORED
        return ended

    def read(self, tokens: Int) -> Int:
        """Return the number i64[m] that answers i64[m, answer_length] end with, -1 for none."""
        said = tokens[:, self.work_length :]
        live = (said != END).cumprod(1).astype(bool)  # before the first END
        length = live.sum(1)
        wrong = ((said > 9) & live).any(1) | (length == 0)
        place = np.arange(said.shape[1])
        power = place if self.reversed else np.clip(length[:, None] - 1 - place, 0, None)
        value = np.where(live, said, 0) * 10 ** np.minimum(power, 17)
        return np.where(wrong, -1, value.sum(1))

    @staticmethod
    def text(tokens: Iterable[int]) -> str:
        """Return tokens as they stand."""
        return "".join(ALPHABET[t] if 0 <= t < len(ALPHABET) else "?" for t in tokens)

    def batch(self, a: Int, b: Int) -> Batch:
        """Return `question`, `inputs` (each the target before it) and `targets`; weight = targets."""
        targets = self.answer(a, b)
        inputs = np.empty_like(targets)
        inputs[:, 0], inputs[:, 1:] = START, targets[:, :-1]
        inputs[inputs == IGNORED] = END
        fields = {"question": self.question(a, b), "inputs": inputs, "targets": targets}
        return Batch(fields, weight=int(np.count_nonzero(targets != IGNORED)))


def _digits(numbers: Int, width: int) -> Int:
    """Return i64[m, width], the least significant digit first."""
    digits = np.empty((len(numbers), width), dtype=np.int64)
    rest = numbers
    for place in range(width):
        up = rest // 10
        digits[:, place] = rest - 10 * up
        rest = up
    return digits


def _beyond(numbers: Int, width: int) -> NDArray[np.bool_]:
    """True [m, width] in the places that a number does not fill; zero fills one."""
    power = 10 ** np.arange(width)
    power[0] = 0
    found: NDArray[np.bool_] = numbers[:, None] < power
    return found
