"""What a data set must be, and how a step turns into a batch.

A batch is a pure function of (seed, step, position in the batch). There is no cursor, no epoch
counter and no generator state, so there is nothing to save and nothing to restore.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from surefoot.data.order import Permutation
from surefoot.seeds import derive

__all__ = ["Batch", "Data", "Source"]

Int = NDArray[np.int64]

_AT_ONCE = 4096  # examples


@dataclass(frozen=True)
class Batch:
    """Some examples, stacked.

    `fields` are arrays of shape [m, ...] (NumPy, until the engine moves them to a device).
    `weight` counts the units that the loss sums over: tokens, pixels, examples.
    """

    fields: Mapping[str, Any]
    weight: int


class Source(Protocol):
    """All that a data set must be: sized, named by its bytes, and addressable."""

    @property
    def fingerprint(self) -> str:
        """A name of the bytes and of how they are cut: equal fingerprints, equal examples."""
        ...

    def __len__(self) -> int: ...

    def batch(self, index: Int, epoch: Int, key: int) -> Batch:
        """Return examples `index` [m] as they look in `epoch` [m]; `key` seeds augmentation.

        Must be pure: the same arguments give the same bytes in any process and any order.
        """
        ...


@dataclass(frozen=True)
class Data:
    """Batches of a source in an endless keyed order: `data.batch(step, start, size)`.

    Example j of step k has position k * batch_size + j; each epoch is another permutation.
    """

    source: Source
    seed: int
    batch_size: int

    @cached_property
    def _order(self) -> Permutation:
        return Permutation(len(self.source), derive(self.seed, "order"))

    @cached_property
    def _key(self) -> int:
        return derive(self.seed, "augment")

    @cached_property
    def _block(self) -> Callable[[int], tuple[Int, Int]]:
        return lru_cache(maxsize=4)(self._addresses)

    @cached_property
    def _span(self) -> int:
        """Steps whose addresses are computed at once: one call costs as much as a thousand."""
        return max(1, _AT_ONCE // self.batch_size)

    def _addresses(self, block: int) -> tuple[Int, Int]:
        first = block * self._span * self.batch_size
        position = np.arange(first, first + self._span * self.batch_size, dtype=np.int64)
        epoch, place = np.divmod(position, len(self.source))
        index = self._order(place, epoch)
        index.flags.writeable = epoch.flags.writeable = False
        return index, epoch

    def address(self, step: int, start: int = 0, size: int | None = None) -> tuple[Int, Int]:
        """Return (index [m], epoch [m]) of `size` examples of `step` from the `start`-th on."""
        block, offset = divmod(step, self._span)
        index, epoch = self._block(block)
        first = offset * self.batch_size + start
        last = first + (self.batch_size - start if size is None else size)
        return index[first:last], epoch[first:last]

    def batch(self, step: int, start: int = 0, size: int | None = None) -> Batch:
        """Return `size` examples of `step` from the `start`-th on (default: the whole batch)."""
        index, epoch = self.address(step, start, size)
        return self.source.batch(index, epoch, self._key)

    def digest(self, step: int) -> int:
        """Return 64 bits that name which examples `step` consumes, for the journal."""
        index, epoch = self.address(step)
        return xxhash.xxh3_64_intdigest(index.tobytes() + epoch.tobytes())
