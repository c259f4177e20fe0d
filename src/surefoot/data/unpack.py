"""Files that may be packed, as streams of bytes."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from surefoot.errors import Unsupported

__all__ = ["PACKED", "unpacking"]

PACKED = (".zst", ".gz")
_BLOCK = 1 << 14  # packed bytes at a time; they may be a thousand times as many unpacked
_BUFFER = 1 << 16  # bytes that `peek` can see


def unpacking(path: Path) -> Any:
    """Open `path` for reading bytes, unpacked if its name says so; has `peek`.

    Reading raises OSError or EOFError for what is damaged or cut short. Raises Unsupported where
    the package that unpacks it is missing.
    """
    if path.suffix not in PACKED:
        return path.open("rb", buffering=_BUFFER)
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.open(path), _BUFFER)
    try:
        import zstandard
    except ImportError:
        raise Unsupported(
            f"{path.name} is packed with zstd, and the package zstandard is missing",
            where=str(path), fix="pip install zstandard, or unpack it: zstd -d FILE",
        ) from None  # fmt: skip
    return io.BufferedReader(_Zstd(path, zstandard), _BUFFER)


class _Zstd(io.RawIOBase):
    """Says when a file is cut short; the library's own reader just ends there."""

    def __init__(self, path: Path, library: Any) -> None:
        super().__init__()
        self._library, self._file = library, path.open("rb")
        self._pieces, self._ready = self._unpacked(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._ready = piece
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()

    def _unpacked(self) -> Iterator[bytes]:
        frame, begun = self._library.ZstdDecompressor().decompressobj(), False
        while block := self._file.read(_BLOCK):
            while block:
                try:
                    yield frame.decompress(block)
                except self._library.ZstdError as error:
                    raise OSError(f"it is damaged ({error})") from None
                begun, block = True, b""
                if frame.eof:
                    begun, block = False, frame.unused_data
                    frame = self._library.ZstdDecompressor().decompressobj()
        if begun:
            raise EOFError("it is cut short")
