"""Files that another process is writing: what is new since the last look."""

from __future__ import annotations

import contextlib
import json
import os
from bisect import bisect_left
from pathlib import Path
from typing import BinaryIO

from surefoot.track.reading import Row

__all__ = ["Follower", "rows_of"]

SEEN = 1 << 22  # bytes before our place that are remembered, to see what was taken back


class Follower:
    """Reads whole lines as they come, each once. `anew`: some were taken back; what came instead follows.

    With `late` it begins at the end of the file as it is now. Who wants to know what was before reads
    the first `place` bytes, after this was made: then no line is missed, and none is there twice.
    """

    def __init__(self, path: Path, late: bool = False) -> None:
        self.path, self.anew, self.place = path, False, 0
        self._seen, self._inode = b"", 0  # the bytes before our place; the file that has them
        if late:
            with contextlib.suppress(OSError), path.open("rb") as file:
                self.place = max(0, file.seek(0, os.SEEK_END) - SEEN)
                self._take(file)

    def lines(self) -> list[bytes]:
        """Return the lines since the last call; a file that is gone has none."""
        self.anew = False
        try:
            file = self.path.open("rb")
        except OSError:
            return []
        with file:
            block = b""
            if self._inode not in (0, os.fstat(file.fileno()).st_ino):
                block = self._rest()
            self._turn_back(file.fileno())
            block += self._take(file)
        return block.splitlines()

    def _take(self, file: BinaryIO) -> bytes:
        file.seek(self.place)
        block = file.read()
        block = block[: block.rfind(b"\n") + 1]
        self.place += len(block)
        self._seen = (self._seen + block)[-SEEN:]
        self._inode = os.fstat(file.fileno()).st_ino
        return block

    def _rest(self) -> bytes:
        """Return what came to a file that was put aside for a fresh one, as a log is."""
        older = self.path.with_name(f"{self.path.stem}.1{self.path.suffix}")
        block = b""
        with contextlib.suppress(OSError), older.open("rb") as file:
            if os.fstat(file.fileno()).st_ino == self._inode:
                block = self._take(file)
                self.place, self._seen = 0, b""
        return block

    def _turn_back(self, handle: int) -> None:
        """Go back to where the file is not what was seen any more."""
        start, seen = self.place - len(self._seen), self._seen
        found = os.pread(handle, len(seen), start)
        if found == seen:
            return
        self.anew = True
        same = bisect_left(range(1, len(seen) + 1), True, key=lambda n: found[:n] != seen[:n])
        self._seen = seen[: seen.rfind(b"\n", 0, same) + 1]
        self.place = min(start + len(self._seen), os.fstat(handle).st_size)


def rows_of(lines: list[bytes]) -> list[Row]:
    """Return the rows in lines; what is damaged is left out."""
    found = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            found.append(row)
    return found
