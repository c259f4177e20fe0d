"""Append-only files of JSON lines that survive a kill at any byte and a full disk.

A line is written with one system call. What a crash tore is repaired on open; what a full disk
refuses waits in memory, and what does not fit there is counted as lost.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surefoot.track.durable import sync, sync_folder

__all__ = ["Lines", "encode", "kept"]

BACKLOG = 4_000_000  # bytes that wait in memory while the disk is full
BLOCK = 1 << 16  # bytes
_STEP = re.compile(rb'"step": ?(\d+)')
_LEARNER = re.compile(rb'"learner": ?"((?:[^"\\]|\\.)*)"')
_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False, default=lambda v: _plain(v)).encode


def encode(row: Mapping[str, Any]) -> bytes:
    """Return a row as one line of JSON; numbers that JSON lacks become "nan", "inf", "-inf".

    >>> encode({"step": 3, "loss": float("nan")})
    b'{"step": 3, "loss": "nan"}\\n'
    """
    try:
        text = _encode(row)
    except ValueError:
        text = _encode(_finite(row))
    return (text + "\n").encode("utf-8", "replace")


def encode_text(text: str) -> bytes:
    """Return a text as it stands between quotes in a line."""
    return _encode(text)[1:-1].encode("utf-8", "replace")


def _plain(value: Any) -> Any:
    """Turn what JSON does not know into what it does: scalars of arrays, paths, anything."""
    item = getattr(value, "item", None)
    if item is not None and getattr(value, "size", 1) == 1:
        return item()
    return str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    item = getattr(value, "item", None)
    return _finite(item()) if item is not None else value


class Lines:
    """One such file, open for appending by one process.

    `torn` is what the repair on open removed: (offset, bytes), or None. `waiting` and `lost`
    count lines that a full disk holds back and that were given up. `restored`: the last `sync` found
    the file deleted or replaced, and wrote it anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        for left in path.parent.glob(f".{path.stem}.*.new"):  # by a kill amid a move of lines
            left.unlink()
        self.torn = self._repair()
        self.lost, self.restored = 0, False
        self._cut = False  # whether the file ends in a part of a line
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._size = os.fstat(self._handle).st_size
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0

    @property
    def waiting(self) -> int:
        """Lines in memory that the disk has not taken yet."""
        return len(self._pending)

    def append(self, line: bytes) -> OSError | None:
        """Write one line; on failure keep it for the next call and return what went wrong."""
        self._pending.append(line)
        self._pending_bytes += len(line)
        trouble = self.flush()
        while self._pending_bytes > BACKLOG:
            self._pending_bytes -= len(self._pending.popleft())
            self.lost += 1
        return trouble

    def flush(self) -> OSError | None:
        """Write the lines that wait, as many as the disk takes; return what went wrong."""
        while self._pending:
            trouble = self._write(self._pending[0])
            if trouble is not None:
                return trouble
            self._pending_bytes -= len(self._pending.popleft())
        return None

    def sync(self) -> OSError | None:
        """Flush and wait until the disk has it."""
        trouble = self.flush()
        try:
            sync(self._handle)
            handle = kept(self.path, self._handle)
            self.restored, self._handle = handle != self._handle, handle
        except OSError as error:
            return trouble or error
        return trouble

    def close(self) -> OSError | None:
        """Sync and close."""
        trouble = self.sync()
        os.close(self._handle)
        return trouble

    def rewind(self, step: int, learners: Mapping[str, int] | None = None) -> int:
        """Move lines of later steps to `NAME.superseded.jsonl`; return how many there were.

        A learner named in `learners` has its own step, for one may be ahead of the others.
        Safe against a kill at any instant: the moved lines are in the other file, durable,
        before they leave this one, and what an interrupted move brought there is not brought
        again, to whichever step the next one goes.
        """
        later = _Later(step, {encode_text(name): at for name, at in (learners or {}).items()})
        self._drop_pending(later)
        cut, kept, moved = _partition(self.path, later)
        if not moved:
            return 0
        aside = self.path.with_name(f"{self.path.stem}.superseded.jsonl")
        known = set(aside.read_bytes().splitlines(keepends=True)) if aside.exists() else set()
        _extend_atomic(aside, b"".join(line for line in moved if line not in known))
        if kept:
            self._replace_tail(cut, b"".join(kept))
        else:
            os.ftruncate(self._handle, cut)
            sync(self._handle)
        self._size = os.fstat(self._handle).st_size
        return len(moved)

    def _write(self, line: bytes) -> OSError | None:
        """Write the whole line or nothing of it."""
        try:
            if self._cut:  # a part of a line, of which the disk would not let go
                os.ftruncate(self._handle, self._size)
            written = os.write(self._handle, line)
        except OSError as error:
            return error
        self._cut = written != len(line)
        if not self._cut:
            self._size += written
            return None
        with contextlib.suppress(OSError):
            os.ftruncate(self._handle, self._size)
            self._cut = False
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _drop_pending(self, later: _Later) -> None:
        self._pending = deque(line for line in self._pending if not later(line))
        self._pending_bytes = sum(map(len, self._pending))

    def _replace_tail(self, cut: int, tail: bytes) -> None:
        """Rewrite the file as its first `cut` bytes and `tail`, in one rename."""
        staging = self.path.with_name(f".{self.path.name}.new")
        with self.path.open("rb") as old, staging.open("wb") as new:
            while cut > 0 and (block := old.read(min(BLOCK, cut))):
                new.write(block)
                cut -= len(block)
            new.write(tail)
            new.flush()
            sync(new.fileno())
        staging.replace(self.path)
        sync_folder(self.path.parent)
        os.close(self._handle)
        self._handle = os.open(self.path, os.O_RDWR | os.O_APPEND)

    def _repair(self) -> tuple[int, bytes] | None:
        """Cut off a last line that a crash left unfinished, after keeping it in `NAME.torn`."""
        try:
            with self.path.open("rb") as file:
                start, tail = _last_line(file)
        except FileNotFoundError:
            return None
        if not tail:
            return None
        if _is_row(tail):  # whole but for its newline
            with self.path.open("ab") as file:
                file.write(b"\n")
            return None
        _extend_atomic(self.path.with_name(f"{self.path.name}.torn"), tail + b"\n")
        os.truncate(self.path, start)
        return start, tail


def kept(path: Path, handle: int) -> int:
    """Return a handle of the file at `path`: this one, or of its copy where somebody has deleted it.

    Also where another one was put in its place. Raises OSError: then all is as it was.
    """
    if os.fstat(handle).st_nlink:
        return handle
    staging, place = path.with_name(f".{path.name}.new"), 0
    with staging.open("wb") as file:
        while block := os.pread(handle, BLOCK, place):
            place += file.write(block)
        file.flush()
        sync(file.fileno())
    staging.replace(path)
    sync_folder(path.parent)
    fresh = os.open(path, os.O_RDWR | os.O_APPEND)
    os.close(handle)
    return fresh


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _last_line(file: Any) -> tuple[int, bytes]:
    """Return (offset, bytes) of what follows the last newline."""
    end = start = file.seek(0, os.SEEK_END)
    tail = b""
    while start > 0 and b"\n" not in tail:
        start = max(0, start - BLOCK)
        file.seek(start)
        tail = file.read(min(BLOCK, end - start)) + tail
        end = start
    cut = tail.rfind(b"\n") + 1
    return start + cut, tail[cut:]


@dataclass(frozen=True)
class _Later:
    """Whether a line is of a step after `step`, or after its own learner's."""

    step: int
    learners: Mapping[bytes, int]

    def __call__(self, line: bytes) -> bool:
        match = _STEP.search(line)
        if match is None:
            return False
        bound = self.step
        if self.learners and (name := _LEARNER.search(line)):
            bound = self.learners.get(name[1], bound)
        return int(match[1]) > bound


def _partition(path: Path, later: _Later) -> tuple[int, list[bytes], list[bytes]]:
    """Return (offset of the first later line, lines from there to keep, lines to move)."""
    offset, cut, kept, moved = 0, -1, [], []
    with path.open("rb") as file:
        for line in file:
            if later(line):
                cut = offset if cut < 0 else cut
                moved.append(line)
            elif cut >= 0:
                kept.append(line)
            offset += len(line)
    return cut, kept, moved


def _extend_atomic(path: Path, block: bytes) -> None:
    """Append `block` in one rename, unless the file already ends with it."""
    old = path.read_bytes() if path.exists() else b""
    if old.endswith(block):
        return
    staging = path.with_name(f".{path.name}.new")
    with staging.open("wb") as file:
        file.write(old + block)
        file.flush()
        sync(file.fileno())
    staging.replace(path)
    sync_folder(path.parent)
