"""Tokens that stay on disk: a file of bare integers, read a window at a time.

Not memory-mapped on purpose. A page fault brings up to a megabyte of the file into this process's
memory, so drawing windows from a 1 GB file held 650 MB and took 4 microseconds a window; reading
them takes 0.3 and holds nothing.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from surefoot.errors import DataError

__all__ = ["Stored", "TokenFile", "TokenFiles", "Tokens"]


class TokenFile:
    """`dtype` integers in the file at `path`, as an array [n] that is never loaded whole.

    Any number of threads may read at the same time. The file is held open: it can be deleted or
    replaced meanwhile and still reads as it was.
    """

    ndim = 1

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path, self.dtype = path, np.dtype(dtype)
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._length = os.fstat(self._file).st_size // self.dtype.itemsize

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, where: slice) -> NDArray[Any]:
        """Return tokens `where` (a slice with step 1) as an array [k]."""
        start, stop, step = where.indices(self._length)
        if step != 1:
            raise IndexError("a file of tokens is read in sequence")
        return self.rows([start], max(0, stop - start))[0]

    def rows(self, begin: Any, width: int) -> NDArray[Any]:
        """Return `width` tokens from each of `begin` [m] on, as an array [m, width].

        Raises DataError when the file has become shorter than it was.
        """
        size = self.dtype.itemsize
        starts = begin.tolist() if isinstance(begin, np.ndarray) else begin
        pieces = [os.pread(self._file, width * size, at * size) for at in starts]
        content = b"".join(pieces)
        if len(content) != len(starts) * width * size:
            raise DataError(
                "a file of tokens was cut short while it was in use",
                where=str(self.path),
                fix="delete it; it is made again from the text at the next start",
            )
        return np.frombuffer(content, dtype=self.dtype).reshape(len(starts), width)


class TokenFiles:
    """Several files of `dtype` integers, one after the other, as one array [n]; see `TokenFile`."""

    ndim = 1

    def __init__(self, paths: Sequence[Path], dtype: np.dtype[Any]) -> None:
        self.dtype = np.dtype(dtype)
        self._files = [TokenFile(path, dtype) for path in paths]
        self._ends = np.cumsum([len(file) for file in self._files], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._files else 0

    def __getitem__(self, where: slice) -> NDArray[Any]:
        """Return tokens `where` (a slice with step 1) as an array [k]."""
        start, stop, step = where.indices(len(self))
        if step != 1:
            raise IndexError("files of tokens are read in sequence")
        return self._between(start, max(start, stop))

    def rows(self, begin: Any, width: int) -> NDArray[Any]:
        """Return `width` tokens from each of `begin` [m] on, as an array [m, width]."""
        found = np.empty((len(begin), width), dtype=self.dtype)
        for row, at in enumerate(np.asarray(begin).tolist()):
            found[row] = self._between(at, at + width)
        return found

    def _between(self, start: int, stop: int) -> NDArray[Any]:
        pieces = []
        number = int(np.searchsorted(self._ends, start, "right"))
        while start < stop and number < len(self._files):
            file, end = self._files[number], int(self._ends[number])
            first = end - len(file)
            pieces.append(file[start - first : min(stop, end) - first])
            start, number = min(stop, end), number + 1
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=self.dtype)


class Stored(Protocol):
    """Tokens that are somewhere else: `TokenFile`, `TokenFiles`, or those of shards far away."""

    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, where: slice) -> NDArray[Any]: ...
    def rows(self, begin: Any, width: int) -> NDArray[Any]: ...


Tokens = NDArray[Any] | Stored
