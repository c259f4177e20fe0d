"""Tensors to bytes and back: the safetensors format, hashed while it is written.

The writer is ours because the library's renames its own temporary files and returns no hash, and
hashing afterwards would read every byte again. The reader is the library's, behind checks of
size and header length, so that no file can make us take memory that it does not fill.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import xxhash
from safetensors.torch import load_file
from torch import Tensor

from surefoot.errors import CheckpointError

__all__ = ["copy_file", "digest", "read_tensors", "sync_folder", "write_bytes", "write_tensors"]

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
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            text = f"cannot save {name}: {tensor.dtype} is not a type of the safetensors format"
            raise CheckpointError(text, where=str(path))
    return _write(path, _safetensors(tensors))


def write_bytes(path: Path, data: bytes) -> tuple[int, str]:
    """Write `data`, fsync, and return (bytes, xxh3-128 hex)."""
    return _write(path, iter([memoryview(data)]))


def _write(path: Path, pieces: Iterator[memoryview]) -> tuple[int, str]:
    hasher, size = xxhash.xxh3_128(), 0
    with path.open("wb", buffering=0) as file:
        for piece in pieces:
            for start in range(0, len(piece), _CHUNK):
                chunk = piece[start : start + _CHUNK]
                hasher.update(chunk)
                _write_all(file.fileno(), chunk)
            size += len(piece)
        os.fsync(file.fileno())
    return size, hasher.hexdigest()


def _write_all(handle: int, chunk: memoryview) -> None:
    while chunk:
        chunk = chunk[os.write(handle, chunk) :]


def _safetensors(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    header, offset = {}, 0
    ordered = sorted(tensors.items())
    for name, tensor in ordered:
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(struct.pack("<Q", len(text)) + text)
    for _, tensor in ordered:
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        yield flat.numpy().data


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU.

    Raises CheckpointError when the file is no safetensors file or its header claims more than it
    holds. Nothing in such a file can run code.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise CheckpointError("header is longer than the file", where=str(path))
        return load_file(path)
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


def sync_folder(path: Path) -> None:
    """fsync a folder, so that names in it survive a power loss (a no-op where impossible)."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
