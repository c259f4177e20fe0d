"""Files that a crash or a power loss leaves whole, and names that survive one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

__all__ = ["sync", "sync_folder", "write_atomic"]

_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)  # of shared and FUSE folders
_NO_FLUSH = (*_NO_SYNC, errno.ENOTTY)  # of what has no drive whose cache it could flush
_FLUSH: int | None = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync stops at the drive's cache


def sync(handle: int) -> None:
    """Wait until the disk holds what was written to an open file or folder. Raises OSError.

    On macOS that is `F_FULLFSYNC`, or fsync where a file system does not know it.
    """
    if _FLUSH is not None:
        try:
            fcntl.fcntl(handle, _FLUSH)
            return
        except OSError as error:
            if error.errno not in _NO_FLUSH:
                raise
    os.fsync(handle)


def write_atomic(path: Path, text: str, lasting: bool = True) -> None:
    """Replace a file so that a reader, or a crash, sees the old text or the new one, whole.

    One that is not `lasting` can be made again: nobody waits for the drive.
    """
    staging = path.with_name(f".{path.name}.new")
    try:
        with staging.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(text)
            file.flush()
            (sync if lasting else os.fsync)(file.fileno())
        staging.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            staging.unlink()
        raise
    if lasting:
        sync_folder(path.parent)


def sync_folder(path: Path, strict: bool = False) -> None:
    """Make the names in a folder survive a power loss, where folders can be synced at all.

    A disk that fails is forgiven, as what is recorded is written again; `strict` raises OSError.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            sync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if strict and error.errno not in _NO_SYNC:
            raise
