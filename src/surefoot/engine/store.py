"""Checkpoints on disk: complete and verified, or absent.

A save is built in a staging folder on the same file system, every file fsynced, the manifest with
sizes and hashes last, then one rename and an fsync of the parent. Whatever instant the machine
dies at, a checkpoint folder either verifies or is not there. Loading takes the newest that
verifies; a damaged one is moved aside and named, never deleted and never accepted.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import xxhash
from torch import Tensor

from surefoot.engine import codec, parts
from surefoot.engine.reading import UnreadableError, reading
from surefoot.engine.state import Payload
from surefoot.errors import CheckpointError
from surefoot.track.durable import sync_folder

__all__ = ["FORMAT", "Checkpoint", "FutureFormatError", "Store"]

FORMAT = 1
OPTIM = ".optim.safetensors"  # the files that only a resume needs
_MANIFEST_LIMIT = 4_000_000  # bytes; a manifest lists files, not tensors
_NAME = re.compile(r"step-(\d{9,})")
_FILE = re.compile(r"[A-Za-z0-9_.\-]+")  # no separators: a manifest cannot point out of its folder


class FutureFormatError(CheckpointError):
    """A sound checkpoint of a format that a newer release wrote."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose manifest parses and belongs to the run. `verify` reads the rest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    @property
    def sequence(self) -> int:
        """Order of saving; differs from the step after a rollback or an added learner."""
        return int(self.manifest["sequence"])

    @property
    def metric(self) -> float | None:
        """Validation loss at this step, if there was an evaluation."""
        return self.manifest.get("metric")

    @property
    def size(self) -> int:
        """Bytes of all files that the manifest lists."""
        return sum(int(entry["size"]) for entry in self.manifest["files"].values())

    @property
    def resumable(self) -> bool:
        """Whether optimiser state is still there (best-only checkpoints drop it)."""
        return not self.manifest.get("slim", False)

    def verify(self) -> None:
        """Raise CheckpointError unless every file has the listed size and hash."""
        for name, entry in self.manifest["files"].items():
            with reading(self.path):
                self._verify(self.path / name, entry["size"], entry["xxh3_128"])

    def _verify(self, path: Path, size: int, hashed: str) -> None:
        if path.is_symlink() or not path.is_file():
            what = "is a link, which is not followed" if path.is_symlink() else "is missing"
            raise CheckpointError(f"{path.name} {what}", where=str(self.path))
        if path.stat().st_size != size:
            text = f"{path.name} has {path.stat().st_size} of {size} bytes"
            raise CheckpointError(text, where=str(self.path))
        if codec.digest(path) != (size, hashed):
            raise CheckpointError(f"{path.name} does not match its hash", where=str(self.path))

    def weights(self) -> dict[str, Mapping[str, Tensor]]:
        """Verify and return the tensors of models by file, read when they are asked for.

        Raises CheckpointError, also when one is asked for that is gone by then.
        """
        self.verify()
        files = [name for name in self.manifest["files"] if parts.holds_weights(name)]
        if any(map(parts.is_part, files)):
            return dict(self.read().tensors)
        with reading(self.path):
            return {name: codec.TensorFile(self.path / name) for name in files}

    def read(self) -> Payload:
        """Verify and return the contents. Raises CheckpointError."""
        self.verify()
        files = self.manifest["files"]
        with reading(self.path):
            tensors = parts.joined(
                {n: codec.read_tensors(self.path / n) for n in files if n.endswith(".safetensors")}
            )
            small = json.loads((self.path / "state.json").read_bytes())
        if not isinstance(small, dict) or not isinstance(small.get("learners"), dict):
            raise CheckpointError("state.json holds no learners", where=str(self.path))
        return Payload(tensors, small)


class Store:
    """The checkpoints of one run, under `folder`. `run` is the run's id, written into manifests."""

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run

    def save(
        self,
        step: int,
        payload: Payload,
        *,
        metric: float | None = None,
        write: Callable[[Path], dict[str, tuple[int, str]]] | None = None,
        **facts: Any,
    ) -> Checkpoint:
        """Write a checkpoint of host tensors; it is complete when this returns.

        `write` writes the files of tensors where that is not done here, and returns sizes and hashes.
        Saving a step that exists replaces it. Raises OSError when the disk says no; then nothing
        of the new checkpoint remains and older ones are untouched.
        """
        final = self._final(step)
        with self._staged(final) as staging:
            files = self._write_payload(staging, payload, write(staging) if write else {})
            manifest = {
                "format": FORMAT, "run": self.run, "step": step, "sequence": self._next(),
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "metric": metric, "files": files, **facts,
            }  # fmt: skip
            codec.write_bytes(staging / "manifest.json", seal(manifest))
        return Checkpoint(final, manifest)

    def copy(self, other: Checkpoint) -> Checkpoint:
        """Copy a checkpoint of another store of this run, checking every hash on the way.

        Raises CheckpointError when `other` is damaged, OSError when a disk says no.
        """
        final = self._final(other.step)
        with self._staged(final) as staging:
            for name, entry in other.manifest["files"].items():
                found = codec.copy_file(other.path / name, staging / name)
                if found != (entry["size"], entry["xxh3_128"]):
                    raise CheckpointError(f"{name} does not match its hash", where=str(other.path))
            codec.write_bytes(staging / "manifest.json", seal(other.manifest))
        return Checkpoint(final, other.manifest)

    def _final(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    @contextmanager
    def _staged(self, final: Path) -> Iterator[Path]:
        """Lend a staging folder that becomes `final` when the block ends, and else is no more."""
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            sync_folder(self.folder.parent, strict=True)
        staging = self.folder / f".staging-{final.name}"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            yield staging
            sync_folder(staging, strict=True)
            self._commit(staging, final)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise

    def _write_payload(
        self, staging: Path, payload: Payload, written: Mapping[str, tuple[int, str]]
    ) -> dict[str, dict[str, Any]]:
        contents: dict[str, Iterator[memoryview]] = {}
        for name, tensors in payload.tensors.items():
            pieces = None if payload.pieces is None else partial(payload.pieces, name)
            contents[name] = codec.safetensors(staging / name, tensors, pieces)
        small = json.dumps(payload.small, indent=1, sort_keys=True).encode()
        contents["state.json"] = iter([memoryview(small)])
        files = {**written, **codec.write_files(staging, contents)}
        return {name: {"size": size, "xxh3_128": hashed} for name, (size, hashed) in files.items()}

    def _commit(self, staging: Path, final: Path) -> None:
        aside = self.folder / f".replaced-{final.name}"
        replacing = final.exists()
        if replacing:
            shutil.rmtree(aside, ignore_errors=True)
            final.rename(aside)
        try:
            staging.rename(final)
            sync_folder(self.folder, strict=True)
        except BaseException:
            if replacing:
                self._put_back(aside, staging, final)
            raise
        shutil.rmtree(aside, ignore_errors=True)

    @staticmethod
    def _put_back(aside: Path, staging: Path, final: Path) -> None:
        with suppress(OSError):
            if final.exists():
                final.rename(staging)
            aside.rename(final)

    def _next(self) -> int:
        return 1 + max((c.sequence for c in self.checkpoints()), default=0)

    def sweep(self) -> list[str]:
        """Tidy what a killed process left; return the names of incomplete saves removed.

        A checkpoint that was being replaced when the process died is put back. What cannot be
        removed now is left for the next time.
        """
        for aside in self.folder.glob(".replaced-step-*"):
            final = self.folder / aside.name.removeprefix(".replaced-")
            if final.exists():
                shutil.rmtree(aside, ignore_errors=True)
            else:
                aside.rename(final)
        orphans = sorted(self.folder.glob(".staging-step-*"))
        for orphan in (*orphans, *self.folder.glob(".removed-step-*")):
            shutil.rmtree(orphan, ignore_errors=True)
        for checkpoint in self.checkpoints():
            self._finish_slimming(checkpoint)
        return [o.name.removeprefix(".staging-") for o in orphans]

    @staticmethod
    def _finish_slimming(checkpoint: Checkpoint) -> None:
        unlisted = [checkpoint.path / "manifest.json.new"]
        if not checkpoint.resumable:
            found = checkpoint.path.glob(f"*{OPTIM}")
            unlisted += [p for p in found if p.name not in checkpoint.manifest["files"]]
        for path in unlisted:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def checkpoints(self) -> list[Checkpoint]:
        """Return the checkpoints with a sound manifest, oldest save first; contents unverified."""
        found = [c for _, c in self._examine() if isinstance(c, Checkpoint)]
        return sorted(found, key=lambda c: c.sequence)

    def damaged(self) -> list[tuple[Path, CheckpointError]]:
        """Return the checkpoint folders whose manifest is missing, broken or foreign."""
        return [(path, e) for path, e in self._examine() if isinstance(e, CheckpointError)]

    def _examine(self) -> Iterator[tuple[Path, Checkpoint | CheckpointError]]:
        if self.folder.is_symlink():
            fix = "move them back; to keep a run elsewhere, move its whole folder and link that"
            raise CheckpointError(
                "is a link, which is not followed", where=str(self.folder), fix=fix
            )
        for path in sorted(p for p in self.folder.glob("step-*") if _NAME.fullmatch(p.name)):
            try:
                yield path, self.open(path)
            except CheckpointError as error:
                yield path, error

    def open(self, path: Path) -> Checkpoint:
        """Return the checkpoint at `path` after checking its manifest (not its files).

        Raises CheckpointError when it is missing, broken, of another run, or of a format that
        this version does not know.
        """
        match = _NAME.fullmatch(path.name)
        if path.is_symlink() or not match:
            what = "is a link, which is not followed" if path.is_symlink() else "has another name"
            raise CheckpointError(what, where=str(path))
        manifest = unseal(path / "manifest.json")
        if manifest["run"] != self.run:
            raise CheckpointError(f"belongs to another run, {manifest['run']}", where=str(path))
        if manifest["step"] != int(match[1]):
            text = f"holds step {manifest['step']}: it was renamed or swapped"
            raise CheckpointError(text, where=str(path))
        return Checkpoint(path, manifest)

    def newest(self) -> tuple[Checkpoint, Payload, list[str]] | tuple[None, None, list[str]]:
        """Return the newest checkpoint that verifies, its contents, and what was set aside.

        Damaged ones are moved to `damaged/` and described. A format from the future is never
        moved: it raises CheckpointError, because an older release must not touch it. Nor is what
        cannot be read now: UnreadableError.
        """
        damaged = self.damaged()
        for _, error in damaged:
            if isinstance(error, FutureFormatError | UnreadableError):
                raise error
        aside = [self._set_aside(path, error) for path, error in damaged]
        for checkpoint in reversed(self.checkpoints()):
            if not checkpoint.resumable:
                continue
            try:
                return checkpoint, checkpoint.read(), aside
            except UnreadableError:
                raise
            except CheckpointError as error:
                aside.append(self._set_aside(checkpoint.path, error))
        return None, None, aside

    def _set_aside(self, path: Path, error: CheckpointError) -> str:
        pen = self.folder / "damaged"
        target, count = pen / path.name, 1
        try:
            pen.mkdir(exist_ok=True)
            while target.exists() or target.is_symlink():
                count += 1
                target = pen / f"{path.name}-{count}"
            path.rename(target)
        except OSError as refused:
            return f"{path.name}: {error.what}; not used (cannot be moved: {refused.strerror})"
        return f"{path.name}: {error.what}; moved to {pen.name}/{target.name}"

    def slim(self, checkpoint: Checkpoint) -> Checkpoint:
        """Drop the optimiser's files: the manifest changes first, so every instant is whole."""
        gone = [n for n in checkpoint.manifest["files"] if n.endswith(OPTIM)]
        files = {n: e for n, e in checkpoint.manifest["files"].items() if n not in gone}
        manifest = checkpoint.manifest | {"files": files, "slim": True}
        fresh = checkpoint.path / "manifest.json.new"
        codec.write_bytes(fresh, seal(manifest))
        fresh.rename(checkpoint.path / "manifest.json")
        sync_folder(checkpoint.path, strict=True)
        for name in gone:
            (checkpoint.path / name).unlink(missing_ok=True)
        return Checkpoint(checkpoint.path, manifest)

    def remove(self, checkpoint: Checkpoint) -> None:
        """Delete a checkpoint: out of sight by one rename first, so that no half is ever seen."""
        gone = self.folder / f".removed-{checkpoint.path.name}"
        shutil.rmtree(gone, ignore_errors=True)
        checkpoint.path.rename(gone)
        sync_folder(self.folder, strict=True)
        shutil.rmtree(gone, ignore_errors=True)  # `sweep` comes back for what refuses now


def seal(manifest: dict[str, Any]) -> bytes:
    """Return the exact bytes of a manifest, with a checksum of everything else in it."""
    bare = {k: v for k, v in manifest.items() if k != "checksum"}
    checksum = xxhash.xxh3_128_hexdigest(json.dumps(bare, sort_keys=True).encode())
    return (json.dumps(bare | {"checksum": checksum}, indent=1, sort_keys=True) + "\n").encode()


def unseal(path: Path) -> dict[str, Any]:
    """Read a manifest and check that not one of its bytes changed.

    Raises CheckpointError when it is missing, unreadable, altered or of an unknown format.
    """
    with reading(path.parent):
        if path.is_symlink() or not path.is_file():
            raise CheckpointError("manifest.json is missing", where=str(path.parent))
        if path.stat().st_size > _MANIFEST_LIMIT:
            raise CheckpointError("manifest.json is too large to be one", where=str(path.parent))
        data = path.read_bytes()
        manifest = json.loads(data)
        sound = isinstance(manifest, dict) and seal(manifest) == data
    if not sound:
        raise CheckpointError("manifest.json was altered", where=str(path.parent))
    version = manifest.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise FutureFormatError(
            f"checkpoint format {version} is newer than this Surefoot knows ({FORMAT})",
            where=str(path.parent), fix="update Surefoot; nothing was touched",
        )  # fmt: skip
    if version != FORMAT or not _well_formed(manifest):
        raise CheckpointError("manifest.json is not one of ours", where=str(path.parent))
    return manifest


def _well_formed(manifest: dict[str, Any]) -> bool:
    """Whether every field that is read has its type, and no name points out of the folder."""
    files = manifest.get("files")
    return (
        isinstance(manifest.get("run"), str)
        and all(isinstance(manifest.get(key), int) for key in ("step", "sequence"))
        and isinstance(manifest.get("metric"), int | float | None)
        and isinstance(files, dict)
        and "state.json" in files
        and all(_FILE.fullmatch(name) for name in files)
        and all(isinstance(e, dict) and isinstance(e.get("size"), int) for e in files.values())
        and all(isinstance(e.get("xxh3_128"), str) for e in files.values())
    )
