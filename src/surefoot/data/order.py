"""In which order examples are seen: a permutation that is computed, never stored.

Each epoch visits every example once, in another order. Where a shuffled list would take memory
that grows with the data and time to reach a position, this one answers for any position of any
epoch at once. It keeps no state, so there is nothing to save and nothing to restore.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from surefoot.seeds import derive

__all__ = ["Permutation", "keyed_hash"]

Int = NDArray[np.int64]
Word = NDArray[np.uint64]

_SORTED = 48  # up to this many places, sorting hashes is cheap and exactly uniform
_SMALL = 1024  # below this, a domain is so narrow that a Feistel network needs more rounds


def _word(value: int) -> Word:
    # A 0-d array: ufuncs take it as it is, where a NumPy scalar is converted at each call.
    return np.array(value & 0xFFFFFFFFFFFFFFFF, dtype=np.uint64)


_32, _29 = _word(32), _word(29)


@lru_cache(maxsize=256)
def _stream(key: int) -> tuple[Word, Word]:
    return _word(derive(key, "stride") * 2 + 1), _word(derive(key, "start"))


def keyed_hash(numbers: Int, key: int) -> Word:
    """Return 64 bits for each of `numbers` [m], as uint64 [m]: another hash for each key.

    >>> zero, one, again = keyed_hash(np.array([0, 1, 0]), key=7).tolist()
    >>> zero == again, zero == one
    (True, False)
    """
    odd, start = _stream(key)
    t = numbers.astype(np.uint64)
    t *= odd
    t += start
    t ^= t >> _29
    t *= odd
    t ^= t >> _32
    return t


class Permutation:
    """A keyed permutation of range(n) for each epoch, in constant memory.

    A Feistel network over Z_a x Z_b with a * b just above n, and cycle walking for the few values
    outside (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, method "generalized
    Feistel"). The round function is the middle of a square (Widynski, "Squares", 2020), keyed by
    the round and shifted by the epoch. Fast and well mixed; not meant to hide anything.

    >>> order = Permutation(5, key=1)
    >>> place = np.arange(5)
    >>> sorted(order(place, np.zeros(5, dtype=np.int64)).tolist())
    [0, 1, 2, 3, 4]
    """

    __slots__ = ("_a", "_b", "_epochs", "_keys", "_limit", "_walks", "key", "n")

    def __init__(self, n: int, key: int) -> None:
        if not 1 <= n < 1 << 62:
            raise ValueError(f"a permutation needs 1 <= n < 2**62, not {n}")
        self.n, self.key = n, key
        # Of a few nearly square shapes the one with the fewest values outside range(n). One side is
        # even: with two odd ones, every round would be an even permutation.
        side = math.isqrt(n - 1) + 1
        side += side % 2
        a = min(range(side, side + min(side // 2, 128) + 1, 2), key=lambda a: -n % a)
        b = -(-n // a)
        self._walks = a * b - n  # values outside range(n), and so the longest walk
        self._a, self._b, self._limit = _word(a), _word(b), _word(n)
        rounds = 8 if n < _SMALL else 6
        self._keys = tuple(_word(derive(key, "round", i) * 2 + 1) for i in range(rounds))
        self._epochs = derive(key, "epoch")

    def __call__(self, place: Int, epoch: Int) -> Int:
        """Return what stands at `place` [m] (each in range(n)) in `epoch` [m], as int64 [m]."""
        shift = keyed_hash(epoch, self._epochs)
        if self.n <= _SORTED:
            return self._sort(place, shift)
        value = self._mix(place.astype(np.uint64), shift)
        for _ in range(self._walks):
            outside = np.flatnonzero(value >= self._limit)
            if not outside.size:
                break
            value[outside] = self._mix(value[outside], shift[outside])
        return value.view(np.int64)

    def _mix(self, value: Word, shift: Word) -> Word:
        """Permute range(a * b). Small batches pay per operation, so a round has only six."""
        left = value // self._b
        right = value - left * self._b
        side, other = self._a, self._b
        for key in self._keys:
            t = right + shift
            t *= key
            t *= t
            t >>= _32
            left += t
            left %= side
            left, right, side, other = right, left, other, side
        left *= self._b  # an even number of rounds: the sides are where they began
        left += right
        return left

    def _sort(self, place: Int, shift: Word) -> Int:
        """Sort a hash of every number below n: for tiny n cheaper and exactly uniform."""
        t = np.arange(self.n, dtype=np.uint64) * self._keys[0] + shift[:, None]  # [m, n]
        for key in self._keys[1:4]:
            t ^= t >> _29
            t *= key
        t ^= t >> _32
        return np.argsort(t, axis=1, kind="stable")[np.arange(len(place)), place]
