"""Turn SIGINT and SIGTERM into a flag that the conductor reads between steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupts", "later", "watching"]


class Interrupts:
    """`received` names the first signal; a second Ctrl-C raises KeyboardInterrupt at once."""

    def __init__(self) -> None:
        self.received: str | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name


@contextmanager
def later() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait until the block has ended, so that it is done wholly or not begun."""
    with watching() as interrupts:
        yield
    if interrupts.received is not None:
        signal.raise_signal(signal.Signals[interrupts.received])


@contextmanager
def watching() -> Iterator[Interrupts]:
    """Catch SIGINT and SIGTERM while the block runs; outside the main thread, catch nothing."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, interrupts) for number in numbers]
    try:
        yield interrupts
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)
