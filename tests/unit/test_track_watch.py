"""A run as a screen, curves in characters, and files that grow under our eyes."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from surefoot.errors import RunError
from surefoot.track.braille import plot
from surefoot.track.folder import RunFolder
from surefoot.track.follow import Follower, rows_of
from surefoot.track.record import Record
from surefoot.track.watch import Watch, frame


def make(runs: Path, steps: int = 200, learners: tuple[str, ...] = ("main",)) -> RunFolder:
    run = RunFolder.create(runs, "charlm", "watched", {}, {"max_steps": 400, "preset": "tiny"})
    with Record(run.path) as record:
        for step in range(1, steps + 1):
            for who in learners:
                values = {"loss": 4 / step + 1, "lr": 1e-3, "grad_norm": 1.5, "tokens_per_s": 1e5}
                record.row("train", step, who, **values)
                if step % 20 == 0:
                    record.row("eval", step, who, val_loss=4 / step + 1.1)
        record.sample(steps, learners[0], "ROMEO:", " hark\x1b[2J wide " + "x" * 300)
    return run


def shown(run: RunFolder, width: int = 80, height: int = 24, unicode: bool = True) -> list[str]:
    return [line.plain for line in frame(Watch(run), width, height, unicode)]


@pytest.mark.parametrize("width", [12, 20, 37, 80, 200])
@pytest.mark.parametrize("height", [4, 10, 24, 60])
def test_a_frame_fits_any_terminal(tmp_path: Path, width: int, height: int) -> None:
    from rich.cells import cell_len

    lines = shown(make(tmp_path), width, height)
    assert len(lines) <= height and max(map(cell_len, lines)) <= width
    assert not any("\x1b" in line for line in lines)


def test_what_a_frame_tells(tmp_path: Path) -> None:
    text = "\n".join(shown(make(tmp_path)))
    for part in ("watched  lost", "step 200/400", "loss 1.020", "val 1.120", "best 1.120 at 200",
                 "100k tok/s", "gradient 1.500", "sample at step 200", "ROMEO: hark␛[2J", "⡇"):  # fmt: skip
        assert part in text, part


def test_a_terminal_without_unicode_gets_stars(tmp_path: Path) -> None:
    text = "\n".join(shown(make(tmp_path), unicode=False))
    assert "*" in text and "#" in text and not any(0x2500 <= ord(c) < 0x2900 for c in text)


def test_several_learners_and_no_rows(tmp_path: Path) -> None:
    text = "\n".join(shown(make(tmp_path / "a", learners=("old", "new"))))
    assert "old 1.020" in text and "val new 1.120" in text and "new val loss" in text
    bare = RunFolder.create(tmp_path / "b", "charlm", "bare")
    assert "step 0" in "\n".join(shown(bare))


def test_a_running_process_is_measured(tmp_path: Path) -> None:
    run = make(tmp_path)
    with run.lock():
        watch = Watch(run)
        text = "\n".join(line.plain for line in frame(watch, 100, 24))
        assert "watched  running" in text and "memory " in text and watch.machine


def test_what_remains_is_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder.create(tmp_path, "charlm", "paced", {}, {"max_steps": 300})
    now = time.time()
    monkeypatch.setattr("surefoot.track.watch.time", SimpleNamespace(time=lambda: now))
    rows = [
        {
            "kind": "train",
            "step": s,
            "learner": "main",
            "segment": 0,
            "time": now - 100 + s,
            "loss": 1,
        }
        for s in range(1, 101)
    ]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    left = Watch(run).left()
    assert left is not None and left == pytest.approx(200)
    run.update(max_steps=None)
    assert Watch(run).left() is None


def test_a_watch_sees_what_comes_and_what_is_taken_back(tmp_path: Path) -> None:
    run = make(tmp_path, 50)
    watch = Watch(run)
    with Record(run.path, 1, 50) as record:
        for step in range(51, 61):
            record.row("train", step, loss=2.0)
        watch.refresh()
        assert [row["step"] for row in watch.history.train["main"]] == list(range(1, 61))
        record.rewind(40)
        for step in range(41, 81):
            record.row("train", step, loss=3.0)
        watch.refresh()
    rows = watch.history.train["main"]
    assert [row["step"] for row in rows] == list(range(1, 81)) and rows[45]["loss"] == 3.0
    shutil.rmtree(run.path)
    with pytest.raises(RunError, match="does not exist"):
        watch.refresh()


def test_a_follower_waits_for_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    follower = Follower(path)
    assert follower.lines() == []
    path.write_bytes(b'{"a": 1}\n{"b"')
    assert follower.lines() == [b'{"a": 1}']
    with path.open("ab") as file:
        file.write(b": 2}\nno row\n")
    assert rows_of(follower.lines()) == [{"b": 2}]
    path.write_bytes(path.read_bytes()[:-3])  # within a line
    late = Follower(path, late=True)
    assert late.lines() == [] and late.place == path.read_bytes().rfind(b"\n") + 1
    with path.open("ab") as file:
        file.write(b"ow\n")
    assert late.lines() == [b"no row"]
    path.write_bytes(b'{"c": 3}\n')
    assert follower.lines() == [b'{"c": 3}'] and follower.anew
    path.unlink()
    assert follower.lines() == []


def lines_of(*numbers: int) -> bytes:
    return b"".join(b"%d %s\n" % (number, b"x" * 100) for number in numbers)


def test_a_follower_goes_back_as_far_as_lines_were_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(lines_of(*range(1000)))
    early, late = Follower(path), Follower(path, late=True)
    assert len(early.lines()) == 1000 and late.lines() == []
    path.write_bytes(lines_of(*range(600), 7, *range(2000, 3000)))
    for follower in (early, late):
        assert b"\n".join(follower.lines()) + b"\n" == lines_of(7, *range(2000, 3000))
        assert follower.anew
        assert follower.lines() == [] and not follower.anew


def test_what_was_taken_back_further_than_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surefoot.track.follow.SEEN", 1000)
    path = tmp_path / "rows"
    path.write_bytes(lines_of(*range(1000)))
    follower = Follower(path, late=True)
    path.write_bytes(lines_of(*range(100), 7, 8))
    assert follower.lines() == [] and follower.anew
    with path.open("ab") as file:
        file.write(lines_of(9, 10))
    assert b"\n".join(follower.lines()) + b"\n" == lines_of(9, 10) and not follower.anew


def test_a_log_that_is_put_aside_loses_no_line(tmp_path: Path) -> None:
    from surefoot.track.log import Log

    log = Log(tmp_path / "log.txt", limit=2000)
    log.write("first", "info")
    follower = Follower(log.path, late=True)
    seen: list[bytes] = []
    for number in range(100):
        log.write(f"note {number}", "info")
        if number % 7 == 0:
            seen += follower.lines()
            assert not follower.anew
    seen += follower.lines()
    log.close()
    assert [line.split()[-1] for line in seen] == [b"%d" % number for number in range(100)]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_row_written_while_a_watch_begins_is_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    import surefoot.track.watch as room

    run, read = make(tmp_path, 50), room.read_history
    with Record(run.path, 1, 50) as record:

        def read_meanwhile(*arguments: Any) -> Any:
            monkeypatch.setattr(room, "read_history", read)
            if when == "before":
                record.row("train", 51, loss=2.0)
            found = read(*arguments)
            if when == "after":
                record.row("train", 51, loss=2.0)
            return found

        monkeypatch.setattr(room, "read_history", read_meanwhile)
        watch = Watch(run)
        watch.refresh()
    assert [row["step"] for row in watch.history.train["main"]] == list(range(1, 52))


def test_rows_taken_back_while_a_watch_begins_are_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import surefoot.track.watch as room

    run, read = make(tmp_path, 50), room.read_history

    def read_before(*arguments: Any) -> Any:
        monkeypatch.setattr(room, "read_history", read)
        found = read(*arguments)
        with Record(run.path, 1, 30) as record:
            for step in range(31, 61):
                record.row("train", step, loss=3.0)
        return found

    monkeypatch.setattr(room, "read_history", read_before)
    watch = Watch(run)
    watch.refresh()
    rows = watch.history.train["main"]
    assert [row["step"] for row in rows] == list(range(1, 61)) and rows[40]["loss"] == 3.0


def test_the_machine_is_shown_as_it_was_measured_last(tmp_path: Path) -> None:
    run = make(tmp_path, 20)
    watch = Watch(run)
    for step, size in ((20, 5_000_000), (30, 7_000_000)):
        with Record(run.path, 0, step) as record:
            record.row("system", step, memory_bytes=size)
        watch.refresh()
        assert watch.machine == [f"memory {size / 1e6:.1f} MB"]


def test_curves_in_characters() -> None:
    rows, low, high = plot([([0, 10], [1.0, 1.0])], 4, 2)
    assert (low, high) == (1.0, 1.0) and sum(char != " " for row in rows for char, _ in row) == 4
    rows, low, high = plot([([1, 2, 3], [float("nan"), 5.0, float("inf")])], 3, 1)
    assert (low, high) == (5.0, 5.0)
    assert plot([], 3, 1)[0] == [[(" ", -1)] * 3]
    rows, _, _ = plot([([0, 1], [0.0, 1.0]), ([0, 1], [1.0, 0.0])], 5, 3, unicode=False)
    assert rows[0][0][0] == rows[2][0][0] == "*" and rows[0][2][0] == " "
    assert {owner for row in rows for _, owner in row} == {-1, 0, 1}


def test_it_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, surefoot.track.watch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
