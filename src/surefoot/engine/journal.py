"""The journal: one checksummed record for each step, so that a resume can prove itself.

After a crash the steps since the checkpoint are computed again anyway. The journal holds what
they gave the first time (which examples, loss bits, gradient-norm bits), so the second time can
be compared bit for bit. Events that changed the numbers (a skipped update, a halved micro-batch,
a rollback) are records too, and every later resume repeats them.

Format 1: a header of 56 bytes, then records of 56 bytes, little-endian, each ending in an xxh3-64
of its first 48 bytes seeded with its number, so that no record can be altered, moved or doubled.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import xxhash

from surefoot.errors import CheckpointError

__all__ = ["Event", "Journal", "Kind", "Record", "float_bits"]

_BODY = struct.Struct("<BBHIQQQffd")
_SUM = struct.Struct("<Q")
_SIZE = _BODY.size + _SUM.size
_HEADER = struct.Struct("<8s32sII")
_MAGIC = b"SUREFOOT"
FORMAT = 1


class Kind(IntEnum):
    """What a record is about."""

    STEP = 1
    EVENT = 2
    SEGMENT = 3  # a process began; `step` is the checkpoint it went on from


class Event(IntEnum):
    """Things that change the numbers and are therefore repeated by every resume."""

    SKIP = 1  # the update of this step was not applied
    MICRO = 2  # from this step on, `value` examples per forward pass
    ROLLBACK = 3  # after this step, back to step `value`


@dataclass(frozen=True)
class Record:
    """One record. `loss` and `norm` are float32, compared by their bits; `digest` names examples.

    `code` is the Event of an event record; `seed` keyed the global generators of the step.
    """

    kind: Kind
    step: int
    learner: int = 0
    code: int = 0
    micro: int = 0
    digest: int = 0
    seed: int = 0
    loss: float = 0.0
    norm: float = 0.0
    value: float = 0.0

    def pack(self, number: int) -> bytes:
        """Return the 56 bytes of this record as the `number`-th of its file."""
        body = _BODY.pack(
            self.kind, self.learner, self.code, self.micro, self.step,
            self.digest, self.seed, self.loss, self.norm, self.value,
        )  # fmt: skip
        return body + _SUM.pack(xxhash.xxh3_64_intdigest(body, seed=number))

    @classmethod
    def unpack(cls, data: bytes, number: int) -> Record | None:
        """Return the record, or None when its checksum does not hold."""
        body = data[: _BODY.size]
        if _SUM.unpack_from(data, _BODY.size)[0] != xxhash.xxh3_64_intdigest(body, seed=number):
            return None
        kind, learner, code, micro, step, digest, seed, loss, norm, value = _BODY.unpack(body)
        return cls(Kind(kind), step, learner, code, micro, digest, seed, loss, norm, value)


def float_bits(value: float) -> int:
    """Return the bits of `value` as a float32, so that NaN equals itself and 0 differs from -0."""
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


class Journal:
    """The append-only journal of one run. Opening it repairs a torn end and says so in `notes`."""

    def __init__(self, path: Path, run: str) -> None:
        self.path, self.run = path, run
        self.notes: list[str] = []
        self._count = self._repair()
        self._waiting: list[Record] = []  # what a full disk refused; tried again at each append
        self._handle = os.open(path, os.O_RDWR | os.O_APPEND)

    @property
    def behind(self) -> int:
        """Records that the disk has refused so far; they are kept and tried again."""
        return len(self._waiting)

    def append(self, record: Record) -> None:
        """Write one record; it survives the death of the process, and a power loss after `sync`.

        Never raises for a full or failing disk: the record waits in memory (see `behind`).
        """
        self._waiting.append(record)
        try:
            while self._waiting:
                data = self._waiting[0].pack(self._count + 1)
                if os.write(self._handle, data) != len(data):
                    break
                self._count += 1
                self._waiting.pop(0)
        except OSError:
            pass  # the conductor reports `behind` once; nothing is lost
        if self._waiting:
            self._untear()

    def _untear(self) -> None:
        with suppress(OSError):
            os.ftruncate(self._handle, (self._count + 1) * _SIZE)

    def sync(self) -> None:
        """Put everything written so far on the disk."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        os.close(self._handle)

    def _repair(self) -> int:
        """Create the file or cut off what a crash left torn; return the number of records."""
        header = _HEADER.pack(_MAGIC, self.run.encode()[:32], FORMAT, _SIZE)
        header += _SUM.pack(xxhash.xxh3_64_intdigest(header))
        if not self.path.exists() or self.path.stat().st_size < len(header):
            self.path.write_bytes(header)
            return 0
        check_header(self.path, self.run)
        size = self.path.stat().st_size
        count = size // _SIZE - 1
        with self.path.open("rb+") as file:
            while count and _read(file, count) is None:
                count -= 1
            if size != (count + 1) * _SIZE:
                self.notes.append(f"journal: {size - (count + 1) * _SIZE} torn bytes cut off")
                file.truncate((count + 1) * _SIZE)
        return count

    def after(self, step: int) -> list[Record]:
        """Return the records that belong to steps after `step`, oldest first."""
        return [r for r in read(self.path, self.run) if isinstance(r, Record) and r.step > step]


def check_header(path: Path, run: str | None = None) -> None:
    """Raise CheckpointError unless `path` is a journal of a known format (and of `run`)."""
    with path.open("rb") as file:
        data = file.read(_SIZE)
    body = data[: _HEADER.size]
    if len(data) < _SIZE or _SUM.unpack_from(data, _HEADER.size)[0] != xxhash.xxh3_64_intdigest(body):
        raise CheckpointError("journal: the header is damaged", where=str(path), fix=_without(path))
    magic, owner, version, size = _HEADER.unpack(body)
    if magic != _MAGIC or version != FORMAT or size != _SIZE:
        text = f"journal: format {version} is not one this Surefoot knows ({FORMAT})"
        raise CheckpointError(text, where=str(path), fix="update Surefoot; nothing was touched")
    if run is not None and owner.rstrip(b"\0").decode() != run[:32]:
        text = "journal: belongs to another run"
        raise CheckpointError(text, where=str(path), fix=_without(path))


def _without(path: Path) -> str:
    return f"move {path.name} away to go on without proof; checkpoints are not affected"


def _read(file: object, number: int) -> Record | None:
    file.seek(number * _SIZE)  # type: ignore[attr-defined]
    return Record.unpack(file.read(_SIZE), number)  # type: ignore[attr-defined]


def read(path: Path, run: str | None = None) -> Iterator[Record | int]:
    """Yield every record of a journal, or the number of a record whose checksum does not hold."""
    check_header(path, run)
    with path.open("rb") as file:
        file.seek(_SIZE)
        number = 0
        while len(data := file.read(_SIZE)) == _SIZE:
            number += 1
            record = Record.unpack(data, number)
            yield number if record is None else record
