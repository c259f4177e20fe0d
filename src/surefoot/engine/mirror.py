"""A second place for a run's checkpoints: a mounted drive, another disk.

Each committed checkpoint is copied there in the background, every hash checked on the way, with
the small files that make the copy a run of its own. A mirror that is lost never stops training;
a resume takes the newest sound checkpoint of both places.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path

from surefoot.engine import codec
from surefoot.engine.store import Checkpoint, Store
from surefoot.errors import CheckpointError, ConfigError

__all__ = ["Mirror", "prepare"]

_NEVER = {".lock", "report.html"}


def prepare(target: Path, runs: Path) -> None:
    """Make the folder `target` for the first run that is mirrored there.

    Only its last part is made: where a drive is not mounted, its copies would fill another one.
    Raises ConfigError for that, and for the folder of the runs itself; OSError from the disk.
    """
    place = target.expanduser()
    if place.resolve() == runs.resolve():
        text = f"keep.mirror: {target} is the folder of the runs; a second copy needs another place"
        raise ConfigError(text, fix="a folder on another disk")
    if not place.parent.is_dir():
        text = f"keep.mirror: there is no folder {place.parent}"
        raise ConfigError(text, fix=f"mount the drive, or: mkdir -p {place}")
    place.mkdir(exist_ok=True)


class Mirror:
    """The copy of the run at `path` in the folder `target`/NAME."""

    def __init__(self, path: Path, target: Path, run: str) -> None:
        self.path = path
        self.folder = target.expanduser() / path.name
        self.store = Store(self.folder / "checkpoints", run)
        self._disk: int | None = None  # that of the last copy

    def follow(self, local: Store) -> None:
        """Make the mirror hold what `local` holds, newest first.

        Raises OSError when the place is lost or full, CheckpointError when a local checkpoint
        turns out to be damaged.
        """
        self._same_place()
        kept = {c.path.name: c for c in local.checkpoints()}
        here = {c.path.name: c for c in self.store.checkpoints()}
        for name, checkpoint in reversed(kept.items()):
            if name not in here or here[name].manifest != checkpoint.manifest:
                self.store.copy(checkpoint)
        for name, checkpoint in here.items():
            if name not in kept:
                self.store.remove(checkpoint)
        self._small_files()

    def _same_place(self) -> None:
        """Raise OSError where the drive is not mounted any more, and another one would fill."""
        disk = self.folder.parent.stat().st_dev
        if self._disk not in (None, disk):
            raise OSError(
                errno.ENODEV, "another disk is mounted there now", str(self.folder.parent)
            )
        self._disk = disk

    def _small_files(self) -> None:
        for source in self.path.iterdir():
            if source.is_file() and source.name not in _NEVER and not source.name.startswith("."):
                fresh = self.folder / f".{source.name}.new"
                codec.copy_file(source, fresh)
                fresh.replace(self.folder / source.name)

    def bring_back(self, local: Store) -> Checkpoint | None:
        """Copy the mirror's newest sound checkpoint into `local` where that has none as new.

        Returns the copy, or None when there was nothing to bring. A mirror that is out of reach
        is no failure.
        """
        newest = max((c.sequence for c in local.checkpoints()), default=0)
        with suppress(OSError):
            for checkpoint in reversed(self.store.checkpoints()):
                if checkpoint.sequence <= newest:
                    return None
                with suppress(CheckpointError, OSError):
                    return local.copy(checkpoint)
        return None
