"""Tensors to bytes and back: the safetensors format, hashed while it is written.

The writer is ours because the library's renames its own temporary files and returns no hash, and
hashing afterwards would read every byte again. The reader is the library's, behind checks of
size and header length, so that no file can make us take memory that it does not fill.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from io import RawIOBase
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from surefoot.errors import CheckpointError
from surefoot.track.durable import sync

__all__ = [
    "TensorFile", "copy_file", "digest", "read_tensors", "safetensors", "write_bytes", "write_files",
    "write_tensors",
]  # fmt: skip

T = TypeVar("T")

_CHUNK = 1 << 22  # bytes per write, so that hashing works on cached memory
_HEADER_LIMIT = 100_000_000  # bytes; the format's own limit
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Write CPU tensors as safetensors, fsync, and return (bytes, xxh3-128 hex).

    Raises CheckpointError for a dtype that the format does not have, before anything is written.
    """
    return _write(path, safetensors(path, tensors))


def write_bytes(path: Path, data: bytes) -> tuple[int, str]:
    """Write `data`, fsync, and return (bytes, xxh3-128 hex)."""
    return _write(path, iter([memoryview(data)]))


def write_files(
    folder: Path, contents: Mapping[str, Iterator[memoryview]]
) -> dict[str, tuple[int, str]]:
    """Write files into `folder`, then fsync each; return (bytes, xxh3-128 hex) by name.

    All are read before the disk is waited for.
    """
    with ExitStack() as opened:
        files = {n: opened.enter_context((folder / n).open("wb", buffering=0)) for n in contents}
        found = {name: _pour(files[name], pieces) for name, pieces in contents.items()}
        for file in files.values():
            sync(file.fileno())
    return found


def _write(path: Path, pieces: Iterator[memoryview]) -> tuple[int, str]:
    return write_files(path.parent, {path.name: pieces})[path.name]


def _pour(file: RawIOBase, pieces: Iterator[memoryview]) -> tuple[int, str]:
    """Write what `pieces` yields and return (bytes, xxh3-128 hex)."""
    hasher, size = xxhash.xxh3_128(), 0
    for piece in pieces:
        for start in range(0, len(piece), _CHUNK):
            chunk = piece[start : start + _CHUNK]
            hasher.update(chunk)
            _write_all(file.fileno(), chunk)
        size += len(piece)
    return size, hasher.hexdigest()


def _write_all(handle: int, chunk: memoryview) -> None:
    while chunk:
        chunk = chunk[os.write(handle, chunk) :]


def safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    pieces: Callable[[str], Iterator[memoryview]] | None = None,
) -> Iterator[memoryview]:
    """Return the bytes of a file of CPU tensors for `path`, those of a tensor from `pieces` if given.

    Raises CheckpointError for a dtype that the format does not have.
    """
    header, offset = {}, 0
    for name, tensor in sorted(tensors.items()):
        if tensor.dtype not in _NAMES:
            what = f"cannot save {name}: {tensor.dtype} is not a type of the safetensors format"
            raise CheckpointError(what, where=str(path))
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    begin = iter([memoryview(struct.pack("<Q", len(text)) + text)])
    names = sorted(tensors)
    return chain(begin, *(pieces(n) if pieces else _bytes_of(tensors[n]) for n in names))


def _bytes_of(tensor: Tensor) -> Iterator[memoryview]:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    yield flat.numpy().data


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU.

    Raises CheckpointError when the file is no safetensors file or its header claims more than it
    holds. Nothing in such a file can run code.
    """
    return _sound(path, load_file)


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read when it is asked for and not kept here.

    Whoever copies them one at a time never holds the file beside what is made of it. Raises as
    `read_tensors` does.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _sound(path, self._open) as file:
            self._names = dict.fromkeys(file.keys())

    def _open(self, path: Path) -> Any:
        return safe_open(path, framework="pt")

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        with _sound(self._path, self._open) as file:  # what is mapped goes with the last tensor
            found: Tensor = file.get_tensor(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _sound(path: Path, read: Callable[[Path], T]) -> T:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise CheckpointError("header is longer than the file", where=str(path))
        return read(path)
    except CheckpointError:
        raise
    except Exception as error:  # the library's list of complaints is not documented
        raise CheckpointError(f"not a safetensors file: {error}", where=str(path)) from error


def copy_file(source: Path, target: Path) -> tuple[int, str]:
    """Copy a file, fsync, and return (bytes, xxh3-128 hex) of what was written."""
    with source.open("rb", buffering=0) as file:
        return _write(target, (memoryview(piece) for piece in iter(lambda: file.read(_CHUNK), b"")))


def digest(path: Path) -> tuple[int, str]:
    """Return (bytes, xxh3-128 hex) of a file, reading it in pieces."""
    hasher, size = xxhash.xxh3_128(), 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
            size += len(chunk)
    return size, hasher.hexdigest()
