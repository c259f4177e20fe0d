"""What a data set must be, and how a step turns into a batch.

A batch is a pure function of (seed, step, position in the batch). There is no cursor, no epoch
counter and no generator state, so there is nothing to save and nothing to restore.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np
import xxhash
from numpy.typing import NDArray

from surefoot.data.order import Permutation
from surefoot.seeds import derive

__all__ = ["Batch", "Data", "Ordered", "Source"]

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


@runtime_checkable
class Ordered(Protocol):
    """What a source may be besides, whose examples lie far away."""

    def order(self, seed: int) -> Callable[[Int, Int], Int]:
        """Return which example stands at a place [m] of an epoch [m]: as `Permutation`, pure."""
        ...

    def expect(self, index: Int, epoch: Int, key: int) -> None:
        """Be told which examples come next, in this order; changes no batch."""
        ...


@dataclass(frozen=True)
class Data:
    """Batches of a source in an endless keyed order: `data.batch(step, start, size)`.

    Example j of step k has position first(k) + j; each epoch is another permutation, or what the
    source itself says (see `Ordered`). Batches grow from an eighth of `batch_size` over the
    first `warmup` steps: a third of them at 1/8, 1/4, 1/2.

    >>> import numpy as np
    >>> from surefoot.data.text import TextSource
    >>> data = Data(TextSource(np.arange(99, dtype=np.uint8), context=4), 1, 8, warmup=3)
    >>> [data.size(step) for step in range(5)], [data.first(step) for step in range(5)]
    ([1, 2, 4, 8, 8], [0, 1, 3, 7, 15])
    """

    source: Source
    seed: int
    batch_size: int
    warmup: int = 0

    @cached_property
    def _far(self) -> Ordered | None:
        return self.source if isinstance(self.source, Ordered) else None

    @cached_property
    def _order(self) -> Callable[[Int, Int], Int]:
        if self._far is not None:
            return self._far.order(self.seed)
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

    def size(self, step: int) -> int:
        """Return how many examples `step` consumes."""
        if step >= self.warmup:
            return self.batch_size
        return max(1, self.batch_size >> (3 - 3 * step // self.warmup))

    def first(self, step: int) -> int:
        """Return how many examples were consumed before `step`."""
        ends = [-(-part * self.warmup // 3) for part in range(4)] if self.warmup else [0]
        young = sum(
            self.size(begin) * max(0, min(step, end) - begin)
            for begin, end in pairwise(ends)
            if begin < end
        )
        return young + max(0, step - self.warmup) * self.batch_size

    def _addresses(self, block: int) -> tuple[Int, Int]:
        first, last = (self.first(b * self._span) for b in (block, block + 1))
        position = np.arange(first, last, dtype=np.int64)
        epoch, place = np.divmod(position, len(self.source))
        index = self._order(place, epoch)
        index.flags.writeable = epoch.flags.writeable = False
        return index, epoch

    def address(self, step: int, start: int = 0, size: int | None = None) -> tuple[Int, Int]:
        """Return (index [m], epoch [m]) of `size` examples of `step` from the `start`-th on."""
        block = step // self._span
        index, epoch = self._block(block)
        first = self.first(step) - self.first(block * self._span) + start
        last = first + (self.size(step) - start if size is None else size)
        return index[first:last], epoch[first:last]

    def batch(self, step: int, start: int = 0, size: int | None = None) -> Batch:
        """Return `size` examples of `step` from the `start`-th on (default: the whole batch)."""
        index, epoch = self.address(step, start, size)
        if self._far is not None:
            self._look_ahead(step // self._span)
        return self.source.batch(index, epoch, self._key)

    @cached_property
    def _look_ahead(self) -> Callable[[int], None]:
        return lru_cache(maxsize=4)(self._tell)

    def _tell(self, block: int) -> None:
        """Tell the source once what the steps of this block and of the next will read."""
        assert self._far is not None
        pairs = zip(self._block(block), self._block(block + 1))
        index, epoch = (np.concatenate(pair) for pair in pairs)
        self._far.expect(index, epoch, self._key)

    def digest(self, step: int) -> int:
        """Return 64 bits that name which examples `step` consumes, for the journal."""
        index, epoch = self.address(step)
        return xxhash.xxh3_64_intdigest(index.tobytes() + epoch.tobytes())
