"""An order that reads a few blocks of the data at a time, for data that are fetched piece by piece.

In each epoch the blocks are shuffled, some are taken together, and what is in those is shuffled
among them; then come the next. So an epoch visits every example once and every block during one
stretch of time only. As with `order.Permutation`, any place of any epoch is answered at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from surefoot.data.order import Permutation
from surefoot.seeds import derive

__all__ = ["BlockOrder"]

Int = NDArray[np.int64]


@dataclass(frozen=True)
class _Epoch:
    """The blocks of one epoch in their order: where each begins, and how far it fills the epoch."""

    first: Int  # [blocks] index of the first example
    ends: Int  # [blocks] places up to the end of each
    groups: Int  # [groups] places up to the end of each group


class BlockOrder:
    """A keyed permutation for each epoch that mixes `together` blocks at a time.

    `starts(epoch)` returns the ends of the blocks in that epoch, int64 [blocks], the last of which
    is the number of examples; empty blocks are allowed.

    >>> order = BlockOrder(lambda epoch: np.array([2, 4, 6]), together=1, key=7)
    >>> (order(np.arange(6), np.zeros(6, dtype=np.int64)) // 2).tolist()
    [1, 1, 2, 2, 0, 0]
    """

    def __init__(self, starts: Callable[[int], Int], together: int, key: int) -> None:
        self._starts, self._together, self._key = starts, together, key
        self._epoch = lru_cache(maxsize=4)(self._arrange)
        self._within = lru_cache(maxsize=64)(self._permutation)

    def __call__(self, place: Int, epoch: Int) -> Int:
        """Return the example at each `place` [m] of `epoch` [m], as int64 [m]."""
        found = np.empty(len(place), dtype=np.int64)
        for number in np.unique(epoch).tolist():
            mine = np.flatnonzero(epoch == number)
            found[mine] = self._in_epoch(place[mine], number)
        return found

    def _in_epoch(self, place: Int, number: int) -> Int:
        epoch, found = self._epoch(number), np.empty(len(place), dtype=np.int64)
        group = np.searchsorted(epoch.groups, place, "right")
        for one in np.unique(group).tolist():
            mine = np.flatnonzero(group == one)
            begin = int(epoch.groups[one - 1]) if one else 0
            mix = self._within(int(epoch.groups[one]) - begin)
            shift = np.full(len(mine), number * len(epoch.groups) + one, dtype=np.int64)
            found[mine] = mix(place[mine] - begin, shift) + begin
        block = np.searchsorted(epoch.ends, found, "right")
        before = np.where(block > 0, epoch.ends[block - 1], 0)
        return epoch.first[block] + found - before

    def _arrange(self, number: int) -> _Epoch:
        ends = self._starts(number)
        first = np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]])
        count = np.arange(len(ends), dtype=np.int64)
        mixed = Permutation(len(ends), derive(self._key, "blocks"))
        order = mixed(count, np.full(len(ends), number, dtype=np.int64))
        filled = np.cumsum((ends - first)[order])
        groups = filled[self._together - 1 :: self._together]
        if len(groups) * self._together < len(filled):
            groups = np.append(groups, filled[-1])
        return _Epoch(first[order], filled, groups)

    def _permutation(self, size: int) -> Permutation:
        return Permutation(size, derive(self._key, "within"))
