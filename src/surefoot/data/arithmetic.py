"""Multiplication problems, computed and never stored: problem i is a function of (seed, i).

The split is by unordered pair, so 82 x 347 is held out wherever 347 x 82 is. Which part a pair
belongs to is a keyed hash of it against a threshold for its lengths; where the pairs of two
lengths can be counted out, the threshold is the one that gives exactly the wanted number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from surefoot.data.batch import Batch
from surefoot.data.notation import Form
from surefoot.data.order import Permutation, keyed_hash
from surefoot.errors import DataError
from surefoot.seeds import derive

__all__ = ["Pairs", "Problems", "Split"]

Int = NDArray[np.int64]
Order = Literal["both", "ascending", "descending"]

_WIDE = 10**6  # codes of ordered pairs are a * _WIDE + b
_COUNTED = 1_000_000  # pairs of two lengths that are counted out one by one


def _first(length: int) -> int:
    """The smallest number of so many digits; zero has one digit."""
    return 10 ** (length - 1) if length > 1 else 0


def _many(length: int) -> int:
    return 10**length - _first(length)


@dataclass(frozen=True)
class Split:
    """Which pairs of numbers train (0), validate (1) and test (2).

    Numbers have `shortest` to `longest` digits; `val` and `test` are shares of the unordered
    pairs, kept for each pair of lengths; at least one pair validates, and one trains.
    """

    shortest: int
    longest: int
    val: float
    test: float
    seed: int

    @cached_property
    def lengths(self) -> list[tuple[int, int]]:
        """Pairs of lengths, the shorter number first."""
        span = range(self.shortest, self.longest + 1)
        return [(m, n) for m in span for n in span if m <= n]

    @cached_property
    def _key(self) -> int:
        return derive(self.seed, "split")

    @cached_property
    def _bounds(self) -> NDArray[np.uint64]:
        """u64[2, longest + 1, longest + 1]: hashes below the first validate, the second test."""
        bounds = np.zeros((2, self.longest + 1, self.longest + 1), dtype=np.uint64)
        for m, n in self.lengths:
            bounds[:, m, n] = bounds[:, n, m] = self._thresholds(m, n)
        return bounds

    def _thresholds(self, m: int, n: int) -> list[int]:
        count = self.count(m, n)
        val, test = self._sizes(count)
        if count > _COUNTED:
            return [int(share / count * 2.0**64) for share in (val, val + test)]
        hashes = np.sort(keyed_hash(_all_pairs(m, n), self._key))
        return [int(hashes[val]), int(hashes[val + test])]

    def _sizes(self, count: int) -> tuple[int, int]:
        val = max(1, round(self.val * count))
        return val, min(round(self.test * count), count - val - 1)

    @staticmethod
    def count(m: int, n: int) -> int:
        """How many unordered pairs of an m-digit and an n-digit number there are."""
        return _many(m) * _many(n) if m != n else _many(m) * (_many(m) + 1) // 2

    @property
    def pairs(self) -> int:
        """All unordered pairs."""
        return sum(self.count(m, n) for m, n in self.lengths)

    @property
    def held_out(self) -> tuple[int, int]:
        """Unordered pairs that validate, and that test (expected, where they are not counted)."""
        sizes = [self._sizes(self.count(m, n)) for m, n in self.lengths]
        return sum(v for v, _ in sizes), sum(t for _, t in sizes)

    def trained(self, m: int, n: int) -> int:
        """How many unordered pairs of these lengths train."""
        return self.count(m, n) - sum(self._sizes(self.count(m, n)))

    @property
    def countable(self) -> bool:
        """Whether every pair of lengths has few enough pairs to be listed."""
        return self.count(self.longest, self.longest) <= _COUNTED

    def part(self, a: Int, b: Int) -> Int:
        """Return i64[m]: 0 where a pair trains, 1 where it validates, 2 where it tests."""
        found = keyed_hash(np.minimum(a, b) * _WIDE + np.maximum(a, b), self._key)
        bounds = self._bounds
        if self.shortest == self.longest:
            val, test = bounds[0, -1, -1], bounds[1, -1, -1]
        else:
            m, n = _length(a), _length(b)
            val, test = bounds[0, m, n], bounds[1, m, n]
        return np.where(found < val, 1, np.where(found < test, 2, 0))

    def listed(self, part: int) -> Int:
        """Return the codes of all unordered pairs of a part, in a keyed order."""
        found = []
        for m, n in self.lengths:
            codes = _all_pairs(m, n)
            found.append(codes[self.part(*np.divmod(codes, _WIDE)) == part])
        codes = np.concatenate(found)
        return codes[np.argsort(keyed_hash(codes, derive(self.seed, "list")), kind="stable")]


def _all_pairs(m: int, n: int) -> Int:
    """Codes of the unordered pairs of lengths m <= n, the smaller number first."""
    a = np.arange(_first(m), 10**m, dtype=np.int64)
    b = np.arange(_first(n), 10**n, dtype=np.int64)
    codes = a[:, None] * _WIDE + b
    return codes[a[:, None] <= b] if m == n else codes.ravel()


def _length(numbers: Int) -> Int:
    """Digits of each number."""
    return 1 + sum((numbers >= 10**k).astype(np.int64) for k in range(1, 6))


@dataclass(frozen=True)
class Problems:
    """Training problems by number: `size` of them, or without replacement None for all.

    With `replacement`, problem i draws the two lengths evenly and then the numbers among the
    pairs that train; without, the problems are different ones, each ordered pair at most once, so
    that long numbers make up most of them. Raises DataError, without replacement, when more are
    wanted than there are, or when there are too many pairs to list. `noise`: with each example
    come as many uniform numbers as its answer has tokens, for scheduled sampling.
    """

    split: Split
    form: Form
    size: int | None
    replacement: bool = True
    order: Order = "both"
    noise: bool = False

    def __post_init__(self) -> None:
        if self.replacement:
            assert self.size is not None
            return
        if not self.split.countable:
            what = f"pairs of up to {self.split.longest} digits are too many to list"
            raise DataError(what, fix="--replacement draws them one by one")
        if self.size is not None and self.size > len(self._codes):
            what = f"{self.size:,} different problems are asked for, and {len(self._codes):,} exist"
            fix = f"--num-problems {len(self._codes)}, or --replacement to draw some of them again"
            raise DataError(what, fix=fix)

    @property
    def fingerprint(self) -> str:
        s, f = self.split, self.form
        drawn = "drawn" if self.replacement else "listed"
        return (
            f"multiply/1/{s.shortest}-{s.longest}/{s.val:g}/{s.test:g}/{s.seed}/{self.order}/"
            f"{drawn}/{len(self)}/{f.reversed:d}{f.padding:d}{f.work:d}{self.noise:d}"
        )

    def __len__(self) -> int:
        return len(self._codes) if self.size is None else self.size

    @cached_property
    def _codes(self) -> Int:
        """Ordered pairs that train, where they are listed."""
        codes = self.split.listed(0)
        if self.order == "both":
            a, b = np.divmod(codes, _WIDE)
            codes = np.concatenate([codes, (b * _WIDE + a)[a != b]])
        return codes

    @property
    def distinct(self) -> int:
        """How many unordered pairs the problems hold; expected, where they are drawn."""
        split = self.split
        if not self.replacement:
            listed = np.arange(len(self), dtype=np.int64)
            a, b = self.pairs(listed)
            return len(np.unique(np.minimum(a, b) * _WIDE + np.maximum(a, b)))
        even = (split.longest - split.shortest + 1) ** 2
        found = 0.0
        for m, n in split.lengths:
            draws = len(self) * (1 if m == n else 2) / even
            found -= split.trained(m, n) * math.expm1(-draws / split.trained(m, n))
        return round(found)

    @cached_property
    def _choice(self) -> Permutation:
        return Permutation(len(self._codes), derive(self.split.seed, "choose"))

    def pairs(self, index: Int) -> tuple[Int, Int]:
        """Return the two numbers of each problem of `index` [m]."""
        if self.replacement:
            a, b = self._draw(index)
        else:
            a, b = np.divmod(self._codes[self._choice(index, np.zeros_like(index))], _WIDE)
        if self.order == "both":
            return a, b
        low, high = np.minimum(a, b), np.maximum(a, b)
        return (low, high) if self.order == "ascending" else (high, low)

    def _draw(self, index: Int) -> tuple[Int, Int]:
        a, b = self._try(index, 0)
        attempt, wrong = 0, np.flatnonzero(self.split.part(a, b))
        while wrong.size:
            attempt += 1
            a[wrong], b[wrong] = self._try(index[wrong], attempt)
            wrong = wrong[self.split.part(a[wrong], b[wrong]) != 0]
        return a, b

    def _try(self, index: Int, attempt: int) -> tuple[Int, Int]:
        lengths = self.split.longest - self.split.shortest + 1
        found = []
        for which in ("a", "b"):
            drawn = keyed_hash(index, derive(self.split.seed, "problem", which, attempt))
            if lengths == 1:
                length = np.asarray(self.split.longest)
            else:
                low = drawn & np.uint64(0xFFFFFFFF)
                length = self.split.shortest + _below(low, lengths)
            found.append(_FIRST[length] + _below(drawn >> np.uint64(32), _MANY[length]))
        return found[0], found[1]

    def batch(self, index: Int, epoch: Int, key: int) -> Batch:
        """Return the problems `index` [m]; each epoch has the same ones, with other noise."""
        batch = self.form.batch(*self.pairs(index))
        if not self.noise:
            return batch
        shape = len(index), self.form.answer_length
        counter = (epoch * len(self) + index)[:, None] * shape[1] + np.arange(shape[1])
        drawn = keyed_hash(counter.ravel(), derive(key, "noise")).reshape(shape)
        noise = (drawn >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        return Batch({**batch.fields, "noise": noise}, batch.weight)


_FIRST = np.array([0] + [_first(k) for k in range(1, 7)], dtype=np.int64)
_MANY = np.array([0] + [_many(k) for k in range(1, 7)], dtype=np.int64)


def _below(word: NDArray[np.uint64], many: Any) -> Int:
    """Turn uniform 32-bit words into numbers below `many` (each below 2^20: no bias to speak of)."""
    return ((word * np.asarray(many).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)


@dataclass(frozen=True)
class Pairs:
    """Held-out problems: up to `most` of a part, each pair in both orders where the order is free."""

    split: Split
    form: Form
    part: int
    most: int
    order: Order = "both"

    @cached_property
    def numbers(self) -> tuple[Int, Int]:
        """The two numbers of each problem."""
        codes = self._codes()
        a, b = np.divmod(codes, _WIDE)
        if self.order == "descending":
            a, b = b, a
        if self.order == "both":  # 12 x 34, 34 x 12, 5 x 6, 6 x 5, ...
            a, b = np.stack((a, b), 1).ravel(), np.stack((b, a), 1).ravel()
            twice = np.zeros(len(a), dtype=bool)
            twice[1::2] = a[1::2] == b[1::2]
            a, b = a[~twice], b[~twice]
        return a[: self.most], b[: self.most]

    def first(self, count: int) -> list[tuple[int, int]]:
        """Return the two numbers of the first few problems."""
        a, b = self.numbers
        return list(zip(a[:count].tolist(), b[:count].tolist(), strict=True))

    def _codes(self) -> Int:
        if self.split.countable:
            return self.split.listed(self.part)
        drawn = self._drawn()
        found: list[int] = []
        seen: set[int] = set()
        while len(found) < self.most:
            for code in next(drawn).tolist():
                if code not in seen:
                    seen.add(code)
                    found.append(code)
        return np.array(found, dtype=np.int64)

    def _drawn(self) -> Iterator[Int]:
        """Yield codes of the part, drawn with even lengths, the smaller number first."""
        source = Problems(self.split, self.form, 1)
        for start in range(0, 10**9, 1 << 16):
            index = np.arange(start, start + (1 << 16), dtype=np.int64)
            a, b = source._try(index, -1)
            kept = self.split.part(a, b) == self.part
            yield (np.minimum(a, b) * _WIDE + np.maximum(a, b))[kept]

    def __len__(self) -> int:
        return len(self.numbers[0])

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield all problems, `size` at a time."""
        a, b = self.numbers
        for start in range(0, len(a), size):
            yield self.form.batch(a[start : start + size], b[start : start + size])
