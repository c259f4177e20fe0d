"""The record of a run: rows, samples, notes, and sinks that may fail."""

from __future__ import annotations

import errno
import json
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from surefoot.engine.ranks.follow import Silence
from surefoot.errors import OutOfResources
from surefoot.track.picture import Bars
from surefoot.track.record import Record, Row


class Memory:
    """A sink that remembers."""

    name = "memory"

    def __init__(self) -> None:
        self.said: list[tuple[str, Any]] = []

    def row(self, row: Row) -> None:
        self.said.append(("row", dict(row)))

    def sample(self, sample: Row) -> None:
        self.said.append(("sample", dict(sample)))

    def picture(self, picture: Row) -> None:
        self.said.append(("picture", dict(picture)))

    def note(self, text: str, level: str) -> None:
        self.said.append((level, text))

    def rewind(self, step: int, learners: Mapping[str, int]) -> None:
        self.said.append(("rewind", (step, dict(learners))))

    def sync(self) -> None:
        self.said.append(("sync", None))

    def close(self) -> None:
        self.said.append(("close", None))

    def all(self, kind: str) -> list[Any]:
        return [what for word, what in self.said if word == kind]


class Broken(Memory):
    """A sink that fails at one call."""

    name = "broken"

    def __init__(self, verb: str) -> None:
        super().__init__()
        setattr(self, verb, self.fail)
        self.calls = 0

    def fail(self, *arguments: Any) -> None:
        self.calls += 1
        raise RuntimeError("no screen")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_have_the_documented_keys_in_order(tmp_path: Path) -> None:
    sink = Memory()
    with Record(tmp_path, 2, 0, [sink]) as record:
        record.row("train", 10, loss=2.5, lr=1e-3)
        record.row("eval", 10, "latent", val_loss=float("nan"))
        record.sample(10, "main", "ROMEO:", " hark")
    first, second = rows(tmp_path / "metrics.jsonl")
    assert list(first) == ["kind", "step", "learner", "segment", "time", "loss", "lr"]
    assert (first["kind"], first["step"], first["learner"], first["segment"]) == (
        "train", 10, "main", 2,
    )  # fmt: skip
    assert second["val_loss"] == "nan" and second["learner"] == "latent"
    (sample,) = rows(tmp_path / "samples.jsonl")
    assert list(sample) == ["step", "learner", "segment", "time", "prompt", "text"]
    assert [word for word, _ in sink.said] == ["rewind", "row", "row", "sample", "close"]


def test_a_second_process_writes_each_step_once(tmp_path: Path) -> None:
    with Record(tmp_path, 0, 0) as record:
        for step in range(1, 8):
            record.row("train", step, loss=float(step))
        record.sample(2, "main", "", "two")
        record.sample(6, "main", "", "six")
    with Record(tmp_path, 1, 4) as record:
        assert record.superseded == 3
        for step in range(5, 10):
            record.row("train", step, loss=float(step))
        record.sample(6, "main", "", "six again")
    found = rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["segment"]) for row in found] == [
        (s, 0 if s <= 4 else 1) for s in range(1, 10)
    ]
    assert [row["text"] for row in rows(tmp_path / "samples.jsonl")] == ["two", "six again"]
    assert [row["step"] for row in rows(tmp_path / "metrics.superseded.jsonl")] == [5, 6, 7]
    assert [row["text"] for row in rows(tmp_path / "samples.superseded.jsonl")] == ["six"]


def test_learners_ahead_keep_their_own_rows(tmp_path: Path) -> None:
    with Record(tmp_path) as record:
        for step in (1, 2, 3):
            record.row("train", step, "ahead")
        for step in (1, 2):
            record.row("train", step, 'be"hind')
    sink = Memory()
    with Record(tmp_path, 1, 3, [sink], {"ahead": 3, 'be"hind': 1}) as record:
        assert record.superseded == 1
    found = rows(tmp_path / "metrics.jsonl")
    assert [(row["learner"], row["step"]) for row in found] == [
        ("ahead", 1), ("ahead", 2), ("ahead", 3), ('be"hind', 1),
    ]  # fmt: skip
    assert sink.all("rewind") == [(3, {"ahead": 3, 'be"hind': 1})]


def test_what_is_of_this_machine_or_drawn_has_files_of_its_own(tmp_path: Path) -> None:
    memory = Memory()
    with Record(tmp_path, 0, 0, [memory]) as record:
        record.row("system", 10, memory_bytes=5)
        record.picture(20, "main", "digits", Bars("Errors", ["a", "b"], [0.123456789, math.nan]))
        record.picture(30, "main", "digits", Bars("Errors", ["a", "b"], [1, 2]))
    with Record(tmp_path, 1, 20) as record:
        assert record.superseded == 0
    assert rows(tmp_path / "metrics.jsonl") == []
    assert [row["step"] for row in rows(tmp_path / "system.jsonl")] == [10]
    (drawn,) = rows(tmp_path / "pictures.jsonl")
    assert drawn["name"] == "digits" and drawn["kind"] == "bars"
    assert drawn["values"] == [0.12346, None]
    assert len(memory.all("picture")) == 2 and memory.all("row")[0]["kind"] == "system"


def test_rewind_while_running_tells_the_sinks(tmp_path: Path) -> None:
    sink = Memory()
    with Record(tmp_path, 0, 0, [sink]) as record:
        for step in range(1, 6):
            record.row("train", step)
        assert record.rewind(2) == 3
        record.row("train", 3)
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert sink.all("rewind") == [(2, {})]


def test_a_torn_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"st')
    sink = Memory()
    Record(tmp_path, 1, 9, [sink]).close()
    (text,) = sink.all("warning")
    assert "metrics.jsonl: the last line was cut off" in text and "4 bytes at byte 12" in text
    assert "cut off" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("verb", ["row", "sample", "note", "rewind", "sync", "close"])
def test_a_failing_sink_is_switched_off_with_a_note(tmp_path: Path, verb: str) -> None:
    broken, other = Broken(verb), Memory()
    with Record(tmp_path, 0, 0, [broken, other]) as record:
        for _ in range(2):
            record.row("train", 1)
            record.sample(1, "main", "", "x")
            record.note("hello")
            record.rewind(1)
            record.sync()
    assert broken.calls == 1
    said = [text for text in other.all("warning") if "switched off" in text]
    if verb != "close":  # then there is nobody left to tell
        assert said == ["broken is switched off: RuntimeError: no screen"]
        assert len(other.all("row")) == 2
    assert "broken is switched off" in (tmp_path / "log.txt").read_text()
    assert other.all("close") == [None]


def test_all_sinks_may_fail(tmp_path: Path) -> None:
    with Record(tmp_path, 0, 0, [Broken("note"), Broken("note"), Broken("row")]) as record:
        record.note("hello")
        record.row("train", 1)
    assert len(rows(tmp_path / "metrics.jsonl")) == 1


def full(handle: int, data: bytes) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_warns_once_and_loses_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    sink = Memory()
    with Record(tmp_path, 0, 0, [sink]) as record:
        record.row("train", 1)
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full)
            for step in range(2, 50):
                record.row("train", step)
            record.sample(49, "main", "", "x")
            record.sync()
        record.row("train", 50)
        record.sync()
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == list(range(1, 51))
    assert len(rows(tmp_path / "samples.jsonl")) == 1
    (warning,) = sink.all("warning")
    assert "No space left on device; training goes on" in warning
    assert sink.all("info") == ["the disk takes the record again; no row is lost"]
    assert len(sink.all("row")) == 50  # the console saw everything


def test_what_memory_cannot_hold_becomes_an_event(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("surefoot.track.lines.BACKLOG", 400)
    with Record(tmp_path) as record:
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full)
            for step in range(1, 41):
                record.row("train", step)
        record.row("train", 41)
    found = rows(tmp_path / "metrics.jsonl")
    (gap,) = [row for row in found if row["kind"] == "event"]
    kept = [row["step"] for row in found if row["kind"] == "train"]
    assert gap["event"] == "gap" and gap["lost"] == 41 - len(kept) > 30
    assert kept[-1] == 41


def test_a_full_disk_at_the_end_is_no_error(tmp_path: Path, monkeypatch: Any) -> None:
    with monkeypatch.context() as patched, Record(tmp_path) as record:
        patched.setattr(os, "write", full)
        record.row("train", 1)
    assert "could not be completed" in (tmp_path / "log.txt").read_text()


def test_a_full_disk_while_rewinding_is_no_error(tmp_path: Path, monkeypatch: Any) -> None:
    sink = Memory()
    with Record(tmp_path, 0, 0, [sink]) as record:
        record.row("train", 5)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", lambda *a: full(0, b""))
            assert record.rewind(2) == 0
    assert "rows after step 2 stay" in sink.all("warning")[0]


def test_a_full_disk_at_the_start_says_what_to_do(tmp_path: Path, monkeypatch: Any) -> None:
    with Record(tmp_path) as record:
        record.row("train", 5)
    monkeypatch.setattr(Path, "replace", lambda *a: full(0, b""))
    with pytest.raises(OutOfResources, match="No space left") as caught:
        Record(tmp_path, 1, 2)
    assert caught.value.fix is not None and caught.value.where == str(tmp_path)


def test_notes_and_rows_from_threads_do_not_mix(tmp_path: Path) -> None:
    with Record(tmp_path, 0, 0, [Memory()]) as record:

        def work(who: int) -> None:
            for step in range(100):
                record.row("train", step, f"t{who}", text="x" * 50)
                record.note(f"note {who} {step}")

        threads = [threading.Thread(target=work, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(rows(tmp_path / "metrics.jsonl")) == 400
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 400


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_somebody_deletes_is_whole_again_after_a_sync(
    tmp_path: Path, replaced: bool
) -> None:
    """As when a folder is synchronised, or a person tidies while it trains."""
    path, memory = tmp_path / "metrics.jsonl", Memory()
    with Record(tmp_path, sinks=[memory]) as record:
        record.row("train", 1, loss=1.0)
        record.row("train", 2, loss=1.0)
        if replaced:
            other = tmp_path / "other"
            other.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
            other.replace(path)
        else:
            path.unlink()
        record.row("train", 3, loss=1.0)
        assert record.sync() is None
        record.row("train", 4, loss=1.0)
        assert record.sync() is None
        assert record.rewind(3) == 1, "it is the file that is written on"
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    told = [text for level, text in memory.said if level == "warning"]
    assert told == ["metrics.jsonl was deleted or replaced while it was written; it is whole again"]


def test_a_folder_that_is_gone_is_trouble_and_no_more(tmp_path: Path) -> None:
    import shutil

    place = tmp_path / "run"
    place.mkdir()
    record = Record(place)
    record.row("train", 1, loss=1.0)
    shutil.rmtree(place)
    trouble = record.sync()
    assert trouble is not None and trouble.errno == errno.ENOENT
    record.close()
    assert not place.exists()


def test_a_record_that_nobody_keeps_takes_all_that_one_takes(tmp_path: Path) -> None:
    """What a rank that leaves the record to the first one holds in its place."""
    public = {name for name in dir(Record) if not name.startswith("_")}
    assert {"row", "at", "note"} <= public <= set(dir(Silence.of(tmp_path)))
