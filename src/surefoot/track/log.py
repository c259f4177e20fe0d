"""`log.txt`: what a run said, with times; bounded, because a run may talk for weeks."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

__all__ = ["Log"]

LIMIT = 1_000_000  # bytes of one file
OLD = 3  # files kept besides: log.1.txt (newest) to log.3.txt


class Log:
    """Appends lines `2026-11-21 03:40:05 warning  text`; a disk that refuses is no error."""

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        self.path, self._limit = path, limit
        self._file = path.open("ab", buffering=0)

    def write(self, text: str, level: str) -> None:
        """Append a text; its further lines are indented under the first."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        body = text.replace("\n", "\n" + " " * 8)
        with contextlib.suppress(OSError):
            self._file.write(f"{stamp} {level:<8} {body}\n".encode("utf-8", "replace"))
            if self._file.tell() > self._limit:
                self._rotate()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _rotate(self) -> None:
        for number in range(OLD, 0, -1):
            older = self.path.with_name(f"log.{number}.txt")
            newer = self.path.with_name(f"log.{number - 1}.txt") if number > 1 else self.path
            if newer.exists():
                newer.replace(older)
        self._file.close()
        self._file = self.path.open("ab", buffering=0)
