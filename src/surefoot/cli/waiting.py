"""A line that says what somebody at a terminal waits for, and is gone afterwards."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from shutil import get_terminal_size

__all__ = ["waiting"]


@contextmanager
def waiting() -> Iterator[Callable[[str], None]]:
    """Yield what shows a text in place of the one before; where no terminal is, nothing is shown."""
    if not sys.stderr.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        yield lambda text: None
        return

    def show(text: str) -> None:
        print(
            f"\r\033[K{text[: get_terminal_size().columns - 1]}",
            end="",
            file=sys.stderr,
            flush=True,
        )

    try:
        yield show
    finally:
        show("")
