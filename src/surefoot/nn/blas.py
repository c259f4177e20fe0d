"""Threads of numpy's products: as many as help at the moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from statistics import median
from typing import Any, Protocol

from threadpoolctl import ThreadpoolController

__all__ = ["Pool", "openblas"]

_ROUNDS, _GAIN = 21, 1.05  # more threads must be so much faster by the clock on the wall


class Library(Protocol):
    """What `threadpoolctl` knows of one."""

    num_threads: int

    def set_num_threads(self, num_threads: int) -> None: ...


@cache
def openblas() -> Library | None:
    """Return numpy's OpenBLAS, if its products are that library's."""
    found: list[Any] = ThreadpoolController().lib_controllers
    known = [x for x in found if x.internal_api == "openblas"]
    return next((x for x in known if "numpy" in x.filepath), known[0] if known else None)


class Pool:
    """While it is entered, products use `most` threads (None: all), or one where that is not slower.

    Threads wait for each other at every product. On a machine with other programs each of them may
    have to wait for its turn, and two threads then take many times as long as one.
    """

    def __init__(
        self,
        library: Library,
        product: Callable[[], object],
        most: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._library, self._usual = library, library.num_threads
        self.threads = most or self._usual
        if self.threads > 1:
            took = {n: self._median(n, product, clock) for n in (self.threads, 1)}
            self._leave()
            self.threads = self.threads if took[1] > _GAIN * took[self.threads] else 1

    def __enter__(self) -> None:
        if self.threads != self._usual:
            self._library.set_num_threads(self.threads)

    def __exit__(self, *_: object) -> None:
        if self.threads != self._usual:
            self._leave()

    def _leave(self) -> None:
        self._library.set_num_threads(self._usual)

    def _median(
        self, threads: int, product: Callable[[], object], clock: Callable[[], float]
    ) -> float:
        self._library.set_num_threads(threads)
        took = []
        for _ in range(_ROUNDS):
            begun = clock()
            product()
            took.append(clock() - begun)
        return median(took)
