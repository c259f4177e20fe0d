"""Who trains a run: a lock that dies with its process, and a text that names the holder.

The lock is `flock` on `.lock` in the run's folder. The kernel drops it when the process ends in
whatever way, so there are no stale locks to clean; the text in the file is only for messages.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from surefoot.errors import OutOfResources, RunError, SurefootError

__all__ = ["Busy", "Holder", "alone", "claim", "hold", "holder", "scratch", "unwritable"]

ATTEMPTS, PAUSE = 10, 0.03  # a reader that asks who holds the lock takes it for microseconds,
HELD_UP = 1000  # attempts while only readers have it, of which one may have no core meanwhile
SCRATCH = "surefoot-"  # how temporary folders begin,
OURS = ".scratch"  # and what is in each that `scratch` made, and in nothing that a person keeps
STALE = 60.0  # seconds after which nobody is about to lock one any more


class Busy(RunError):
    """Another process holds the lock."""


@dataclass(frozen=True)
class Holder:
    """The process that trains a run; `since` is a time as in `run.json`.

    `pid` is 0 where nobody can tell: the lock file, which says it, was deleted or cannot be read.
    """

    host: str
    pid: int
    since: str

    def __str__(self) -> str:
        if not self.pid:
            return "a process that its .lock does not name"
        return f"process {self.pid} on {self.host} since {self.since}"


_UNKNOWN = Holder("an unknown host", 0, "an unknown time")


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, or raise Busy naming who does; RunError where nobody can."""
    path = folder / ".lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        if not _take(handle, path):
            raise _refusal(folder)
        if _trained(folder):
            what = f"{folder.name} is being trained, though its {path.name} was deleted"
            raise Busy(what, where=str(folder), fix="wait for it or stop it")
        _sign(handle)
        yield
    finally:
        os.close(handle)


def claim(handle: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Lock an open file; False: another process has it. Where files cannot be locked, True."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


def _trained(folder: Path) -> bool:
    """Whether somebody trains here whose lock file was deleted: who trains has claimed the journal, too."""
    try:
        handle = os.open(folder / "journal", os.O_RDONLY)
    except OSError:
        return False
    try:
        return not claim(handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)


def unwritable(folder: Path, error: OSError) -> SurefootError:
    """Return the error for a run in `folder` that cannot be written, with what to do about it."""
    what = f"cannot write the run: {error.strerror}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        fix = "make the folder writable, or copy the run to one that is"
        return RunError(what, where=str(folder), fix=fix)
    return OutOfResources(what, where=str(folder), fix="free some space: surefoot prune --empty")


def holder(folder: Path) -> Holder | None:
    """Return who holds the lock of `folder`, also where the lock file was deleted, or None."""
    path = folder / ".lock"
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            if not claim(handle, fcntl.LOCK_SH):
                return _signature(path)
        finally:
            os.close(handle)
    return _UNKNOWN if _trained(folder) else None


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait for a turn to change a small file of `folder`; where folders cannot be locked, go on."""
    handle = -1
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle >= 0:
            os.close(handle)


@contextlib.contextmanager
def scratch(where: Path | None = None) -> Iterator[Path]:
    """Lend a temporary folder (in `where`), and remove those that killed processes left there."""
    with (
        tempfile.TemporaryDirectory(prefix=SCRATCH, dir=where) as made,
        contextlib.ExitStack() as ours,
    ):
        mine = Path(made)
        for other in mine.parent.glob(f"{SCRATCH}*/{OURS}"):
            with contextlib.suppress(OSError):  # it had no lock, or its owner has just removed it
                old = time.time() - (other / ".lock").stat().st_mtime > STALE
                if old and holder(other) is None:
                    shutil.rmtree(other.parent, ignore_errors=True)
        held = mine / OURS
        held.mkdir()
        try:
            ours.enter_context(hold(held))
        except SurefootError:  # nothing can be locked here: then it must not look abandoned
            (held / ".lock").unlink(missing_ok=True)
        yield mine


def _take(handle: int, path: Path) -> bool:
    for attempt in range(1, HELD_UP):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if attempt >= ATTEMPTS and holder(path.parent) is not None:
                break
            time.sleep(PAUSE)
        except OSError as error:
            what = f"this file system cannot lock files: {error.strerror}"
            raise RunError(what, where=str(path), fix="--runs DIR on a local disk") from error
    return False


def _sign(handle: int) -> None:
    since = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    text = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since})
    with contextlib.suppress(OSError):  # the lock holds without its text
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)


def _signature(path: Path) -> Holder:
    try:
        said = json.loads(path.read_text())
        return Holder(str(said["host"]), int(said["pid"]), str(said["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return _UNKNOWN


def _refusal(folder: Path) -> Busy:
    who = _signature(folder / ".lock")
    return Busy(
        f"{folder.name} is being trained by {who}",
        where=str(folder),
        fix="wait for it or stop it; --new starts another run beside it",
    )
