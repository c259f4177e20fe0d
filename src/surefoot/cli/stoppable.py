"""SIGTERM and Ctrl-C before training has begun, and after it has ended."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["STOPPED", "stoppable"]

STOPPED = 75
_SOON = 0.05  # seconds


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM end what trains with the words and the code of a stop, also while it starts.

    Between the first step and the last save the engine listens itself, and saves. Here a signal waits
    for an import that is under way: modules like numpy take an exception from within for a failure of
    theirs, or swallow it. The second signal waits for nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before: dict[int, object] = {}

    def hear(number: int, frame: FrameType | None) -> None:
        came.append(number)
        again(number, frame)

    def again(_: int, frame: FrameType | None) -> None:
        if len(came) == 1 and _imports(frame):
            before.setdefault(signal.SIGALRM, signal.signal(signal.SIGALRM, again))
            signal.setitimer(signal.ITIMER_REAL, _SOON)
            return
        if came[0] == signal.SIGINT:
            raise KeyboardInterrupt
        _say()
        raise SystemExit(STOPPED)

    before[signal.SIGTERM] = signal.signal(signal.SIGTERM, hear)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and nobody ignores it
        before[signal.SIGINT] = signal.signal(signal.SIGINT, hear)
    try:
        yield
    finally:
        if signal.SIGALRM in before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _say() -> None:
    """Say why this ends. torchrun also sends SIGTERM where another rank has died."""
    if os.environ.get("RANK", "0") != "0":
        return
    from surefoot.track.exits import told

    asked = "RANK" not in os.environ or told()
    what = "stopped by SIGTERM" if asked else "rank 0 was sent SIGTERM"
    print(f"{what}; the same command goes on", file=sys.stderr)
