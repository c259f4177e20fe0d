"""Files that a crash or a power loss leaves whole, and names that survive one."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

__all__ = ["sync_folder", "write_atomic"]

_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)  # of shared and FUSE folders


def write_atomic(path: Path, text: str) -> None:
    """Replace a file so that a reader, or a crash, sees the old text or the new one, whole."""
    staging = path.with_name(f".{path.name}.new")
    try:
        with staging.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            staging.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(path: Path, strict: bool = False) -> None:
    """Make the names in a folder survive a power loss, where folders can be synced at all.

    A disk that fails is forgiven, as what is recorded is written again; `strict` raises OSError.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if strict and error.errno not in _NO_SYNC:
            raise
