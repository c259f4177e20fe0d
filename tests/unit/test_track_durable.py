"""What was saved is on the disk: by which call, and where a file system knows only another one."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import surefoot
from surefoot.engine.journal import Journal
from surefoot.engine.state import Payload
from surefoot.engine.store import Store
from surefoot.track import durable
from surefoot.track.durable import sync, write_atomic
from surefoot.track.folder import RunFolder
from surefoot.track.lines import Lines

FULL = 51  # macOS's number of F_FULLFSYNC


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Play a system that can flush a drive's cache; return the calls that are made."""
    made: list[str] = []
    real, real_sync = fcntl.fcntl, os.fsync

    def control(handle: int, what: int, *more: Any) -> Any:
        if what != FULL:
            return real(handle, what, *more)
        made.append("flush")
        os.fstat(handle)
        return 0

    def fsync(handle: int) -> None:
        made.append("fsync")
        real_sync(handle)

    monkeypatch.setattr(durable, "_FLUSH", FULL)
    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "fsync", fsync)
    return made


def refusing(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "fcntl", refuse)


def _checkpoint(folder: Path) -> None:
    tensors = {"main.model.safetensors": {"w": torch.ones(3)}}
    store = Store(folder / "checkpoints", "r" * 32)
    store.slim(store.save(3, Payload(tensors, {"learners": {}})))


def _journal(folder: Path) -> None:
    Journal(folder / "journal", "r" * 32).close()


def _lines(folder: Path) -> None:
    lines = Lines(folder / "metrics.jsonl")
    for step in (1, 2):
        assert lines.append(b'{"step": %d}\n' % step) is None
    assert lines.sync() is None and lines.rewind(1) == 1
    assert lines.close() is None


def _record(folder: Path) -> None:
    RunFolder.create(folder / "runs", "charlm", "a", {}, {}).update(status="done")


@pytest.mark.parametrize("save", [_checkpoint, _journal, _lines, _record])
def test_what_is_promised_to_last_is_flushed_through_the_drive(
    tmp_path: Path, calls: list[str], save: Callable[[Path], None]
) -> None:
    save(tmp_path)
    assert calls and set(calls) == {"flush"}


def test_a_page_that_is_written_again_does_not_wait_for_the_drive(
    tmp_path: Path, calls: list[str]
) -> None:
    write_atomic(tmp_path / "report.html", "a page", lasting=False)
    assert calls == ["fsync"] and (tmp_path / "report.html").read_text() == "a page"


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS])
def test_where_the_drive_cannot_be_asked_the_file_system_is(
    tmp_path: Path, calls: list[str], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(monkeypatch, number)
    with (tmp_path / "a").open("wb") as file:
        sync(file.fileno())
    assert calls == ["fsync"]


def test_a_drive_that_fails_is_no_file_system_that_cannot(
    tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(monkeypatch, errno.EIO)
    with (tmp_path / "a").open("wb") as file, pytest.raises(OSError, match="Input/output"):
        sync(file.fileno())
    assert not calls


def test_nothing_else_of_the_project_syncs_but_the_cache_of_downloads() -> None:
    source = Path(surefoot.__file__).parent
    found = [p.relative_to(source) for p in source.rglob("*.py") if "os.fsync(" in p.read_text()]
    assert sorted(map(str, found)) == ["data/fetch.py", "track/durable.py"]
