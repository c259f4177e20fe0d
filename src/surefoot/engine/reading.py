"""What reading a checkpoint's files may raise: is it damaged, or can it only not be read now?

A damaged checkpoint is set aside, and a run goes on from the one before. What cannot be read now must
stay where it is: a resume without enough memory would else set all of them aside and begin anew.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from surefoot.engine.faults import out_of_memory
from surefoot.errors import CheckpointError

__all__ = ["UnreadableError", "reading"]

# What a disk says of a file that it has lost. All else (no right to read, no memory, too many open
# files, a server that is away) says nothing of the file, and will be another answer some day.
_NAMES = ("EIO", "ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "EBADMSG", "EUCLEAN")
_LOST = {getattr(errno, name, None) for name in _NAMES}  # macOS has no EUCLEAN


class UnreadableError(CheckpointError):
    """A checkpoint that cannot be read now, which says nothing about what is in it."""

    exit_code = 4


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what reading a broken or unreadable file raises into a CheckpointError."""
    try:
        yield
    except Exception as error:
        why = _passing(error.__cause__ if isinstance(error, CheckpointError) else error)
        if why is not None:
            what, fix = f"cannot be read now: {why}", "mend that, and try again; nothing was moved"
            raise UnreadableError(f"the checkpoint {what}", where=str(path), fix=fix) from error
        if isinstance(error, OSError):
            raise CheckpointError(f"cannot be read: {error.strerror}", where=str(path)) from error
        if isinstance(error, ValueError | RecursionError):
            raise CheckpointError(f"does not parse: {error}", where=str(path)) from error
        raise


def _passing(error: BaseException | None) -> str | None:
    """Return why something cannot be read now, where that says nothing of what it is."""
    if isinstance(error, OSError):
        return None if error.errno in _LOST else error.strerror or str(error)
    short = error is not None and out_of_memory(error)
    return os.strerror(errno.ENOMEM) if short else None
