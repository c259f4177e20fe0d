"""Check a run on disk without changing it: every checkpoint, and the journal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from surefoot.engine.journal import Kind, check_header, read
from surefoot.engine.store import Checkpoint, Store
from surefoot.errors import CheckpointError
from surefoot.track.folder import RunFolder, reference

__all__ = ["Finding", "last_step", "problem_of", "verify"]


@dataclass(frozen=True)
class Finding:
    """One thing that was checked; `problem` is None where it is sound."""

    what: str
    problem: str | None
    fix: str | None = None


def verify(folder: Path, run: str) -> Iterator[Finding]:
    """Yield a finding for every checkpoint and for the journal of the run in `folder`."""
    store = Store(folder / "checkpoints", run)
    found = [Finding(c.path.name, problem_of(c)) for c in store.checkpoints()]
    found += [Finding(path.name, error.what, error.fix) for path, error in store.damaged()]
    meant = RunFolder.open(folder)
    again = f"surefoot resume {reference(folder)}"
    if not found and meant.status != "running":  # else the first is still to come
        found = [Finding("checkpoints", "there is none", f"{again} computes them again")]
    yield from found
    if meant.meta.get("segments"):  # it was trained, not only made
        yield _journal(folder / "journal", run, again)


def problem_of(checkpoint: Checkpoint) -> str | None:
    """Return what is wrong with a checkpoint's files, or None."""
    try:
        checkpoint.read()
    except CheckpointError as error:
        return error.what
    except OSError as error:
        return str(error.strerror)
    return None


def _journal(path: Path, run: str, again: str) -> Finding:
    if not path.exists():
        fix = f"restore it from a copy; {again} goes on without it, and begins a new one"
        return Finding("journal", "missing: what is computed again cannot be proven", fix)
    records, damaged = 0, 0
    try:
        check_header(path, run)
        for _, record in read(path):
            records += 1
            damaged += record is None
    except (CheckpointError, OSError) as error:
        return Finding("journal", str(error).partition("\n")[0])
    text = f"{damaged} of {records} records are damaged" if damaged else None
    fix = f"{again} goes on, and proves what the sound records tell"
    return Finding(f"journal, {records} records", text, fix)


def last_step(path: Path) -> int:
    """Return the last step that the journal at `path` records; 0 where there is none."""
    last = 0
    with suppress(CheckpointError, OSError):
        for _, record in read(path):
            if record is not None and record.kind is Kind.STEP:
                last = record.step
    return last
