"""A disk that is full or fails: what a run does about it, in words for people."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from surefoot.engine.tape import Tape
from surefoot.errors import OutOfResources, RunError
from surefoot.track.record import RESTORED, Record
from surefoot.track.text import bytes_text

__all__ = ["refusals", "room_for", "synced"]

_FULL = (errno.ENOSPC, errno.EDQUOT)
# Of a server or a drive that is away.
_AWAY = (errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ENODEV, errno.ENXIO)
_REFUSED = (*_FULL, *_AWAY, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS)


def synced(record: Record, tape: Tape) -> None:
    """Put on the disk what a checkpoint refers to.

    Raises OSError when the disk is full: then the save waits, so that no row is lost. A disk that
    fails otherwise must not cost the checkpoint too; a resume then says what it cannot prove.
    """
    trouble = record.sync()
    try:
        tape.sync()
        if tape.journal.restored:
            record.note(f"journal {RESTORED}", "warning")
    except OSError as error:
        trouble = trouble or error
    if trouble is not None and trouble.errno in _FULL:
        raise trouble


@contextmanager
def refusals(run: Path) -> Iterator[None]:
    """Raise OutOfResources where the disk refuses what the run in folder `run` cannot do without."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        raise OutOfResources(
            f"the disk refuses: {error.strerror}",
            where=str(error.filename) if error.filename else None,
            fix=f"free space or mend the disk, then: surefoot resume {run.name}",
        ) from error


def room_for(runs: Path, need: int) -> None:
    """Raise RunError when the plan needs more disk than is free around `runs`."""
    place = runs
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < need:
        raise RunError(
            f"the run needs {bytes_text(need)} of disk, {bytes_text(need - free)} more than are free",
            where=str(place), fix="--runs on another disk, --keep.last 2 --keep.best 0, or free space",
        )  # fmt: skip
