"""Garbage collection beside the steps and not in them.

Python looks through all its objects for cycles now and then; after set-up there are a million that
will never be garbage. They are frozen, so that nobody looks at them again, and what a collection
still takes is measured.
"""

from __future__ import annotations

import gc
import time
from contextlib import ExitStack
from typing import Any, Self

from surefoot.engine.memory import set_aside

__all__ = ["Pauses"]

_EVERY = 10.0  # seconds


class Pauses:
    """Inside the block what is there already is never looked through; `seconds` were spent anyway."""

    def __init__(self) -> None:
        self.seconds = self.longest = self._begun = 0.0
        self._last = time.perf_counter()
        self._aside = ExitStack()

    def __enter__(self) -> Self:
        gc.collect()
        self._aside.enter_context(set_aside())
        gc.callbacks.append(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        gc.callbacks.remove(self._note)
        self._aside.close()

    def boundary(self) -> None:
        """Look through what came since, between steps; at most every ten seconds."""
        moment = time.perf_counter()
        if moment - self._last >= _EVERY:
            self._last = moment
            gc.collect()

    def _note(self, phase: str, _: dict[str, Any]) -> None:
        if phase == "start":
            self._begun = time.perf_counter()
        else:
            taken = time.perf_counter() - self._begun
            self.seconds += taken
            self.longest = max(self.longest, taken)
