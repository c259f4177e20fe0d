"""The journal: one checksummed record for each step, so that a resume can prove itself.

After a crash the steps since the checkpoint are computed again anyway. The journal holds what
they gave the first time (which examples, loss bits, gradient-norm bits), so the second time can
be compared bit for bit. Events that changed the numbers (a skipped update, a halved micro-batch,
a rollback) are records too, and every later resume repeats them.

Format 1: a header of 56 bytes, then records of 56 bytes, little-endian, each ending in an xxh3-64
of its first 48 bytes seeded with its number, so that no record can be altered, moved or doubled.
Records are numbered from 1. Each continues the one before it of the same learner, unless a BRANCH
record names another; so the file is a tree whose newest branch is what happened.
"""

from __future__ import annotations

import errno
import math
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from surefoot.errors import CheckpointError
from surefoot.track.durable import sync, sync_folder
from surefoot.track.lines import kept
from surefoot.track.lock import claim

__all__ = ["FORMAT", "Event", "Journal", "Kind", "Record", "check_header", "float_bits", "read"]

FORMAT = 1
_BODY = struct.Struct("<BBHIQQQffd")
_EXACT = (1 << 53) - 1  # integers that a float64 holds exactly
_SUM = struct.Struct("<Q")
_SIZE = _BODY.size + _SUM.size
_HEADER = struct.Struct("<8s32sII")
_MAGIC = b"SUREFOOT"
_TOO_LARGE = 2.0**128 - 2.0**103  # rounds to infinity in float32


class Kind(IntEnum):
    """What a record is about."""

    STEP = 1
    EVENT = 2
    SEGMENT = 3  # a process began; `step` is the checkpoint it went on from
    BRANCH = 4  # this learner's next record continues number `value`, whose mark is `digest`


class Event(IntEnum):
    """Things that change the numbers and are therefore repeated by every resume."""

    SKIP = 1  # the update of this step was not applied; `value` is the loss, `norm` the norm
    MICRO = 2  # from this step on, `value` examples per forward pass
    ROLLBACK = 3  # after this step, back to step `value`


@dataclass(frozen=True)
class Record:
    """One record. `loss` and `norm` are float32, compared by their bits; `digest` names examples.

    `code` is the Event of an event record; `seed` keyed the global generators of the step. In a
    step record `value` is the checksum of a part of the state before the step, modulo 2**53.
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
            self.kind, self.learner, self.code, self.micro, self.step, self.digest, self.seed,
            _narrow(self.loss), _narrow(self.norm), _one_nan(self.value),
        )  # fmt: skip
        return body + _SUM.pack(xxhash.xxh3_64_intdigest(body, seed=number))

    def mark(self, number: int) -> str:
        """Return 16 hex digits that name this record at this place, for a checkpoint to keep."""
        return self.pack(number)[-_SUM.size :].hex()

    def same(self, other: Record) -> bool:
        """Whether both have the same bits (so that NaN equals itself)."""
        return self.pack(0) == other.pack(0)

    @classmethod
    def of_step(cls, step: int, learner: int, state: int, **values: Any) -> Record:
        """Return a step record; `state` is the checksum before the step."""
        return cls(Kind.STEP, step, learner, value=float(state & _EXACT), **values)

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
    return int(struct.unpack("<I", struct.pack("<f", _narrow(value)))[0])


def _one_nan(value: float) -> float:
    return math.nan if math.isnan(value) else value


def _narrow(value: float) -> float:
    """Return `value` so that float32 can hold it: one NaN for all, infinite what is too large."""
    value = _one_nan(value)
    return math.copysign(math.inf, value) if abs(value) >= _TOO_LARGE else value


class Journal:
    """The append-only journal of one run.

    Opening it cuts off a torn end; a file whose header is damaged or of another run is moved
    aside, never overwritten. Both are said in `notes`. Raises CheckpointError for a format from
    the future, OSError when the disk refuses.
    """

    def __init__(self, path: Path, run: str) -> None:
        self.path, self.run = path, run
        self.notes: list[str] = []
        self._torn = False  # whether the file ends in a part of a record
        self.restored = False  # whether the last sync found the file deleted or replaced
        self._set_aside_if_foreign()
        self._count = self._repair() if path.exists() else self._create()
        self._waiting: list[Record] = []  # what a full disk refused; tried again at each append
        self._handle = os.open(path, os.O_RDWR | os.O_APPEND)
        claim(self._handle)
        self._lock = threading.Lock()  # training appends while a save in the background syncs

    @property
    def count(self) -> int:
        """Records appended so far, with those that the disk has not taken yet."""
        return self._count + len(self._waiting)

    @property
    def behind(self) -> int:
        """Records that the disk has refused so far; they are kept and tried again."""
        return len(self._waiting)

    def append(self, record: Record) -> int:
        """Write one record and return its number.

        It survives the death of the process, and a power loss after `sync`. Never raises for a
        full or failing disk: the record waits in memory (see `behind`).
        """
        with self._lock:
            self._waiting.append(record)
            with suppress(OSError):  # the conductor reports `behind` once; nothing is lost
                self._flush()
            return self.count

    def _flush(self) -> None:
        while self._waiting:
            data = self._waiting[0].pack(self._count + 1)
            if self._torn:  # of which the disk would not let go
                os.ftruncate(self._handle, (self._count + 1) * _SIZE)
            self._torn = os.write(self._handle, data) != len(data)
            if self._torn:
                os.ftruncate(self._handle, (self._count + 1) * _SIZE)
                self._torn = False
                return
            self._count += 1
            self._waiting.pop(0)

    def sync(self) -> None:
        """Put everything on the disk. Raises OSError when it refuses even one record."""
        with self._lock:
            self._flush()
            behind = self.behind
            self._keep()
        sync(self._handle)  # outside the lock, for it may take long and appends go on
        if behind:
            raise OSError(errno.ENOSPC, f"the disk refuses the journal, {behind} records wait")

    def _keep(self) -> None:
        handle = kept(self.path, self._handle)
        self.restored = handle != self._handle
        if self.restored:
            self._handle = handle
            claim(handle)

    def close(self) -> None:
        """Write what waits as far as the disk takes it, and close."""
        with suppress(OSError):
            self.sync()
        os.close(self._handle)

    def records(self, after: int = 0) -> Iterator[tuple[int, Record | None]]:
        """Yield (number, record) of every record numbered above `after`; None is a damaged one."""
        yield from read(self.path, after, last=self._count)
        for number, record in enumerate(self._waiting, self._count + 1):
            if number > after:
                yield number, record

    def _create(self) -> int:
        """Write the header in one rename, so that no crash leaves half of one."""
        header = _HEADER.pack(_MAGIC, self.run.encode()[:32], FORMAT, _SIZE)
        header += _SUM.pack(xxhash.xxh3_64_intdigest(header))
        fresh = self.path.with_name(f".{self.path.name}.new")
        with fresh.open("wb") as file:
            file.write(header)
            file.flush()
            sync(file.fileno())
        fresh.replace(self.path)
        sync_folder(self.path.parent, strict=True)
        return 0

    def _set_aside_if_foreign(self) -> None:
        if not (self.path.exists() or self.path.is_symlink()):
            return
        try:
            check_header(self.path, self.run)
        except DamagedHeaderError as error:
            number, target = 1, self.path.with_name(f"{self.path.name}.damaged")
            while target.exists() or target.is_symlink():
                number += 1
                target = self.path.with_name(f"{self.path.name}.damaged-{number}")
            self.path.rename(target)
            self.notes.append(f"{error.what}; moved to {target.name}, steps in it are not compared")

    def _repair(self) -> int:
        """Cut off what a crash left torn at the end; return the number of records."""
        size = self.path.stat().st_size
        count = size // _SIZE - 1
        with self.path.open("rb+") as file:
            while count and _at(file, count) is None:
                count -= 1
            if size != (count + 1) * _SIZE:
                self.notes.append(f"journal: {size - (count + 1) * _SIZE} torn bytes cut off")
                file.truncate((count + 1) * _SIZE)
        return count


class DamagedHeaderError(CheckpointError):
    """A journal that cannot be used, and is not of the future."""


def check_header(path: Path, run: str | None = None) -> None:
    """Raise CheckpointError unless `path` is a journal of a known format (and of `run`)."""
    if path.is_symlink() or not path.is_file():
        raise DamagedHeaderError("journal: not a file", where=str(path))
    with path.open("rb") as file:
        data = file.read(_SIZE)
    body = data[: _HEADER.size]
    if len(data) < _SIZE or _SUM.unpack_from(data, _HEADER.size)[0] != xxhash.xxh3_64_intdigest(
        body
    ):
        raise DamagedHeaderError("journal: the header is damaged", where=str(path))
    magic, owner, version, size = _HEADER.unpack(body)
    if magic != _MAGIC or version != FORMAT or size != _SIZE:
        text = f"journal: format {version} is not one this Surefoot knows ({FORMAT})"
        raise CheckpointError(text, where=str(path), fix="update Surefoot; nothing was touched")
    if run is not None and owner.rstrip(b"\0").decode("utf-8", "replace") != run[:32]:
        raise DamagedHeaderError("journal: belongs to another run", where=str(path))


def _at(file: BinaryIO, number: int) -> Record | None:
    file.seek(number * _SIZE)
    return Record.unpack(file.read(_SIZE), number)


def read(
    path: Path, after: int = 0, last: int | None = None
) -> Iterator[tuple[int, Record | None]]:
    """Yield (number, record) of a journal from record `after` + 1 to `last`; None is damaged.

    A torn record at the end is left out. Raises CheckpointError as `check_header` does.
    """
    check_header(path)
    with path.open("rb") as file:
        file.seek((after + 1) * _SIZE)
        number = after
        while (last is None or number < last) and len(data := file.read(_SIZE)) == _SIZE:
            number += 1
            yield number, Record.unpack(data, number)
