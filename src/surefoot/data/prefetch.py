"""Batches computed ahead by threads. What a batch holds does not depend on it.

A batch is a pure function of its address, so working ahead is only guessing which addresses come
next; a wrong guess costs time and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Protocol, Self

from surefoot.data.batch import Batch

__all__ = ["Batches", "Prefetch"]

Address = tuple[int, int, int]  # step, start, size
Share = Callable[[int], range]  # which of so many pieces of a step are read here; `range`: all

_STREAMS = 4  # readers at different steps whose batches may wait here at the same time


class Batches(Protocol):
    """What can be prefetched: `Data`, or anything that answers the same two questions."""

    @property
    def batch_size(self) -> int:
        """Examples per step."""
        ...

    def size(self, step: int) -> int:
        """Examples that `step` consumes: `batch_size`, or fewer at the beginning."""
        ...

    def batch(self, step: int, start: int = 0, size: int | None = None) -> Batch:
        """Return `size` examples of `step` from the `start`-th on (default: all that follow)."""
        ...


class Prefetch:
    """`data`, with up to `depth` batches made ahead by `threads` threads (0: none, as is).

    Every batch is handed out once, so a caller may change its arrays; one that is asked for again
    is made again. Close it, or use it in a `with` block.

    >>> from surefoot.data.batch import Data
    >>> from surefoot.data.text import TextSource
    >>> import numpy as np
    >>> data = Data(TextSource(np.arange(100, dtype=np.uint8), context=4), seed=1, batch_size=2)
    >>> with Prefetch(data, threads=2, depth=4) as ahead:
    ...     bool((ahead.batch(7).fields["x"] == data.batch(7).fields["x"]).all())
    True
    """

    def __init__(
        self, data: Batches, threads: int, depth: int = 2, share: Share | None = None
    ) -> None:
        if threads < 0 or depth < 1:
            raise ValueError(f"threads must be at least 0 and depth at least 1: {threads}, {depth}")
        self._data, self._depth, self._share = data, depth, share or range
        self._waiting: dict[Address, Future[Batch]] = {}  # oldest first
        self._pool = ThreadPoolExecutor(threads, "prefetch") if threads else None

    @property
    def batch_size(self) -> int:
        """Examples per step."""
        return self._data.batch_size

    def size(self, step: int) -> int:
        """Examples that `step` consumes."""
        return self._data.size(step)

    def batch(self, step: int, start: int = 0, size: int | None = None) -> Batch:
        """Return what `data.batch` returns, or raise what it raises."""
        if self._pool is None:
            return self._data.batch(step, start, size)
        address = (step, start, self.size(step) - start if size is None else size)
        made = self._waiting.pop(address, None)
        for coming in islice(self._following(address), self._depth):
            if coming not in self._waiting:
                self._waiting[coming] = self._pool.submit(self._data.batch, *coming)
        while len(self._waiting) > _STREAMS * self._depth:
            self._waiting.pop(next(iter(self._waiting))).cancel()
        return self._data.batch(*address) if made is None else made.result()

    def close(self) -> None:
        """Stop working ahead and join the threads; batches are made on demand from then on."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
            self._waiting.clear()

    def _following(self, address: Address) -> Iterator[Address]:
        """Yield the addresses that come after `address` when pieces of one size are read on."""
        step, start, size = address
        while True:
            start += size
            mine = self._share(-(-self.size(step) // size))  # of the pieces of a step
            if start >= min(self.size(step), mine.stop * size):
                step += 1
                start = self._share(-(-self.size(step) // size)).start * size
            yield step, start, min(size, self.size(step) - start)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
