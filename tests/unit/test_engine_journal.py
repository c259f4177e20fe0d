"""The journal: checksummed records, a torn end, a disk that refuses."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from surefoot.engine.journal import Event, Journal, Kind, Record, check_header, float_bits, read
from surefoot.errors import CheckpointError
from surefoot.track.lock import Busy, hold, holder

SIZE = 56


def step(number: int, **values: Any) -> Record:
    return Record.of_step(number, 0, state=values.pop("state", number), **values)


def written(path: Path, *records: Record, run: str = "run") -> Path:
    journal = Journal(path, run)
    for record in records:
        journal.append(record)
    journal.close()
    return path


def test_records_come_back_numbered(tmp_path: Path) -> None:
    records = [
        Record(Kind.SEGMENT, 0),
        step(1, micro=4, digest=2**64 - 1, seed=2**63, loss=1.5, norm=0.25, state=2**60 + 1),
        Record(Kind.EVENT, 2, 3, Event.MICRO, value=2.0),
    ]
    path = written(tmp_path / "journal", *records)
    assert [(n, r) for n, r in read(path)] == list(enumerate(records, 1))
    assert list(read(path, after=2)) == [(3, records[2])]
    assert list(read(path, after=1, last=2)) == [(2, records[1])]
    assert path.stat().st_size == 4 * SIZE
    assert records[1].value == (2**60 + 1) % 2**53


def test_a_record_knows_its_place(tmp_path: Path) -> None:
    assert step(1).mark(1) != step(1).mark(2) and len(step(1).mark(1)) == 16
    path = written(tmp_path / "journal", step(1), step(2))
    data = path.read_bytes()
    path.write_bytes(data[:SIZE] + data[2 * SIZE :] + data[SIZE : 2 * SIZE])
    assert [r for _, r in read(path)] == [None, None], "moved records are damaged ones"


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf, 1e39, -1e300, 0.1])
def test_any_number_fits_and_equals_itself(value: float) -> None:
    record = step(1, loss=value, norm=value)
    again = Record.unpack(record.pack(5), 5)
    assert again is not None and again.same(record)
    assert float_bits(again.loss) == float_bits(value)


def test_zero_and_minus_zero_differ_and_nan_does_not() -> None:
    assert float_bits(0.0) != float_bits(-0.0)
    assert float_bits(math.nan) == float_bits(-math.nan)
    skip = Record(Kind.EVENT, 1, code=Event.SKIP, value=math.nan)
    assert skip.same(Record(Kind.EVENT, 1, code=Event.SKIP, value=-math.nan))


@pytest.mark.parametrize("cut", [1, 20, 55])
def test_a_torn_end_is_cut_off_and_said(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path / "journal", step(1), step(2))
    os.truncate(path, 3 * SIZE - cut)
    journal = Journal(path, "run")
    assert journal.count == 1 and journal.notes == [f"journal: {SIZE - cut} torn bytes cut off"]
    assert journal.append(step(2)) == 2
    journal.close()
    assert [r.step for _, r in read(path) if r] == [1, 2]


def test_zeros_that_a_power_loss_left_are_cut_off(tmp_path: Path) -> None:
    path = written(tmp_path / "journal", step(1))
    with path.open("ab") as file:
        file.write(bytes(3 * SIZE))
    journal = Journal(path, "run")
    journal.close()
    assert journal.count == 1 and path.stat().st_size == 2 * SIZE


def test_a_damaged_record_within_is_kept_and_shown(tmp_path: Path) -> None:
    path = written(tmp_path / "journal", step(1), step(2), step(3))
    data = bytearray(path.read_bytes())
    data[2 * SIZE + 10] ^= 1
    path.write_bytes(data)
    journal = Journal(path, "run")
    journal.close()
    assert journal.count == 3
    assert [r and r.step for _, r in read(path)] == [1, None, 3]


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * SIZE])
def test_a_file_without_our_header_is_moved_aside(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "journal"
    for name in ("journal.damaged", "journal.damaged-2"):
        path.write_bytes(damage)
        journal = Journal(path, "run")
        journal.close()
        assert journal.count == 0 and name in journal.notes[0]
        assert (tmp_path / name).read_bytes() == damage


def test_the_journal_of_another_run_is_moved_aside(tmp_path: Path) -> None:
    path = written(tmp_path / "journal", step(1), run="theirs")
    with pytest.raises(CheckpointError, match="another run"):
        check_header(path, "mine")
    journal = Journal(path, "mine")
    journal.close()
    assert "belongs to another run; moved to journal.damaged" in journal.notes[0]


def test_a_journal_of_the_future_is_refused_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("surefoot.engine.journal.FORMAT", 2)
        path = written(tmp_path / "journal", step(1))
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="format 2 is not one this Surefoot knows"):
        Journal(path, "run")
    assert path.read_bytes() == before


class FullDisk:
    """A disk that takes so many bytes and not one more."""

    def __init__(self, patch: pytest.MonkeyPatch, room: int) -> None:
        self.room, self.real = room, os.write
        patch.setattr(os, "write", self)

    def __call__(self, handle: int, data: bytes) -> int:
        taken = self.real(handle, data[: self.room]) if self.room else 0
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= taken
        return taken


@pytest.mark.parametrize("room", [0, 30, 56, 100])
def test_what_a_full_disk_refuses_waits_and_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    journal = Journal(tmp_path / "journal", "run")
    with monkeypatch.context() as patch:
        FullDisk(patch, room)
        numbers = [journal.append(step(i)) for i in (1, 2, 3)]
        assert numbers == [1, 2, 3] and journal.behind == 3 - room // SIZE
        with pytest.raises(OSError, match=r"No space|refuses"):
            journal.sync()
        assert [r.step for _, r in journal.records() if r] == [1, 2, 3], "those that wait too"
    assert journal.append(step(4)) == 4 and journal.behind == 0
    journal.close()
    assert [r.step for _, r in read(tmp_path / "journal") if r] == [1, 2, 3, 4]


def test_closing_on_a_disk_that_fails_is_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "journal", "run")

    def fail(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        journal.sync()
    journal.close()


def gone(path: Path) -> None:
    path.unlink()


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[:SIZE])
    other.replace(path)


@pytest.mark.parametrize("harm", [gone, replaced])
def test_a_journal_that_somebody_deletes_is_whole_again_after_a_sync(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    journal = Journal(tmp_path / "journal", "run")
    journal.append(step(1))
    harm(journal.path)
    journal.append(step(2))
    journal.sync()
    assert journal.restored
    journal.append(step(3))
    journal.sync()
    assert not journal.restored
    assert [r for _, r in read(journal.path)] == [step(1), step(2), step(3)]
    with pytest.raises(Busy), hold(tmp_path):
        pytest.fail("it is claimed")
    journal.close()


def test_a_deleted_lock_lets_no_second_process_in(tmp_path: Path) -> None:
    """People delete it because they take it for a leftover. Who trains has the journal, too."""
    with hold(tmp_path):
        journal = Journal(tmp_path / "journal", "run")
        (tmp_path / ".lock").unlink()
        with pytest.raises(Busy, match=r"though its \.lock was deleted"), hold(tmp_path):
            pytest.fail("two processes train one run")
        assert (found := holder(tmp_path)) is not None, "no run is lost that trains"
        assert "does not name" in str(found)
        journal.close()
        assert holder(tmp_path) is None
    with hold(tmp_path):
        assert holder(tmp_path) is not None


def test_half_a_record_that_the_disk_does_not_let_go_of_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, write = Journal(tmp_path / "journal", "run"), os.write

    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: write(handle, data[:9]))
        patch.setattr(os, "ftruncate", refuse)
        journal.append(step(1))
        patch.setattr(os, "write", write)
        journal.append(step(2))
        assert journal.behind == 2, "first the half must go"
    journal.append(step(3))
    journal.close()
    assert [r for _, r in read(journal.path)] == [step(1), step(2), step(3)]
