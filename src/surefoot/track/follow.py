"""Files that another process is writing: what is new since the last look."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import BinaryIO

from surefoot.track.reading import Row, lines_back

__all__ = ["Follower", "rows_of"]

TRACE = 64  # bytes before our place, by which we see that the file is still the same


class Follower:
    """Reads whole lines as they come. `anew`: the file was rewritten, and starts over."""

    def __init__(self, path: Path, place: int = 0) -> None:
        self.path, self.anew = path, False
        self._place, self._trace = 0, b""
        if place:
            line = next(lines_back(path, place), b"")  # one that is being written begins anew
            self._place = place if line.endswith(b"\n") else place - len(line)
            with contextlib.suppress(OSError), path.open("rb") as file:
                self._mark(file)

    def lines(self) -> list[bytes]:
        """Return the lines since the last call; a file that is gone has none."""
        self.anew = False
        try:
            file = self.path.open("rb")
        except OSError:
            return []
        with file:
            if self._place and self._moved(file.fileno()):
                self.anew, self._place = True, 0
            file.seek(self._place)
            block = file.read()
            block = block[: block.rfind(b"\n") + 1]
            self._place += len(block)
            self._mark(file)
        return block.splitlines()

    def _mark(self, file: BinaryIO) -> None:
        start = max(0, self._place - TRACE)
        file.seek(start)
        self._trace = file.read(self._place - start)

    def _moved(self, handle: int) -> bool:
        """Whether the bytes before our place are other ones: rows were taken back."""
        start = max(0, self._place - TRACE)
        found = os.pread(handle, self._place - start, start)
        return len(found) < self._place - start or found != self._trace


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
