"""The lock of a run, with real processes."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from surefoot.errors import RunError
from surefoot.track import lock as room
from surefoot.track.lock import Busy, hold, holder, scratch

HOLD = (
    "import sys; from pathlib import Path; from surefoot.track.lock import hold\n"
    "with hold(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
)


def test_a_second_process_is_refused_with_host_and_pid(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        who = holder(tmp_path)
        assert who is not None and who.pid == other.pid and who.host == os.uname().nodename
        with pytest.raises(RunError, match=f"process {other.pid} on {who.host}"), hold(tmp_path):
            pytest.fail("two processes hold one run")
        other.kill()
        other.wait()
        assert other.stdin is not None
    assert holder(tmp_path) is None  # the text is still there, its process is not
    with hold(tmp_path):
        mine = holder(tmp_path)
        assert mine is not None and mine.pid == os.getpid()


def test_a_temporary_folder_of_a_killed_process_is_removed_by_the_next(tmp_path: Path) -> None:
    """Not one that is held, nor one that is being made, nor a run of that name, nor what a link shows."""
    named = {name: tmp_path / f"surefoot-{name}" for name in ("dead", "held", "young", "run")}
    locked = {n: folder / room.OURS if n != "run" else folder for n, folder in named.items()}
    for folder in locked.values():
        folder.mkdir(parents=True)
        (folder / ".lock").touch()
    elsewhere = tmp_path / "elsewhere" / room.OURS
    elsewhere.mkdir(parents=True)
    (elsewhere / ".lock").touch()
    (tmp_path / "surefoot-link").symlink_to(elsewhere.parent)
    before = set(tmp_path.iterdir())
    with hold(locked["held"]):
        for folder in (locked["dead"], locked["held"], locked["run"], elsewhere):
            os.utime(folder / ".lock", (0, 0))
        with scratch(tmp_path) as mine:
            assert set(tmp_path.iterdir()) == before - {named["dead"]} | {mine}
            with scratch(tmp_path):
                assert mine.is_dir() and holder(mine / room.OURS) is not None
    assert elsewhere.is_dir() and not mine.exists()


def test_a_temporary_folder_where_nothing_can_be_locked(tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(room.fcntl, "flock", refuse)
        with scratch(tmp_path) as mine:
            os.utime(mine / room.OURS, (0, 0))
            with scratch(tmp_path):
                assert mine.is_dir(), "nobody can know that it is abandoned"


def test_a_reader_that_asks_does_not_turn_a_trainer_away(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / ".lock").touch()
    reader = os.open(tmp_path / ".lock", os.O_RDONLY)
    fcntl.flock(reader, fcntl.LOCK_SH)
    monkeypatch.setattr(room.time, "sleep", lambda pause: os.close(reader))  # it leaves meanwhile
    with hold(tmp_path):
        assert holder(tmp_path) is not None


def test_a_reader_that_is_held_up_does_not_turn_a_trainer_away(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """It has the lock for microseconds, and then perhaps no core for seconds."""
    (tmp_path / ".lock").touch()
    reader, pauses = os.open(tmp_path / ".lock", os.O_RDONLY), []
    fcntl.flock(reader, fcntl.LOCK_SH)

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 100:
            os.close(reader)

    monkeypatch.setattr(room.time, "sleep", pause)
    with hold(tmp_path):
        assert holder(tmp_path) is not None and sum(pauses) > 2
        pauses.clear()
        with pytest.raises(Busy), hold(tmp_path):
            pytest.fail("held twice")
        assert 0.1 < sum(pauses) < 1, "who trains is not waited for"


def test_a_read_only_folder_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*arguments: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(RunError, match="cannot write the run: Permission denied"), hold(tmp_path):
        pytest.fail("held a folder that cannot be written")


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(room.fcntl, "flock", refuse)
    with pytest.raises(RunError, match="cannot lock files"), hold(tmp_path):
        pytest.fail("held without a lock")
    assert holder(tmp_path) is None


def test_a_lock_whose_text_the_full_disk_refused_still_holds(
    tmp_path: Path, monkeypatch: Any
) -> None:
    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with hold(tmp_path):
        who = holder(tmp_path)
        assert who is not None and who.host == "an unknown host"


def test_no_lock_no_holder(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    assert holder(tmp_path / "gone") is None
