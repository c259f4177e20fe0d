"""log.txt: readable, indented, bounded."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from surefoot.track.log import Log, read_log


def test_lines_have_a_time_and_a_level(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.txt")
    log.write("one\ntwo", "info")
    log.write("careful", "warning")
    log.close()
    first, second, third = (tmp_path / "log.txt").read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d info     0  one", first)
    assert second == "        two"
    assert third.endswith("warning  0  careful")


def test_old_lines_go_when_it_grows(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.txt", 7, limit=1000)
    for number in range(500):
        log.write(f"line {number}", "info")
    log.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["log.1.txt", "log.2.txt", "log.3.txt", "log.txt"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 5000
    text = "".join((tmp_path / name).read_text() for name in [*reversed(files[:3]), "log.txt"])
    numbers = [int(line.rsplit(" ", 1)[1]) for line in text.splitlines()]
    assert numbers == list(range(numbers[0], 500))  # in order, the newest kept
    entries = list(read_log(tmp_path / "log.txt"))
    assert [entry.text for entry in entries] == [f"line {number}" for number in numbers]
    assert {(entry.segment, entry.level) for entry in entries} == {(7, "info")}


def test_appends_over_processes(tmp_path: Path) -> None:
    for text in ("first", "second"):
        log = Log(tmp_path / "log.txt")
        log.write(text, "info")
        log.close()
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2


def test_what_was_said_can_be_read_again(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.txt", 2)
    log.write("one\ntwo\n\nthree \x1b[2J", "info")
    log.write("careful", "warning")
    log.close()
    with (tmp_path / "log.txt").open("a") as file:
        file.write("2026-11-21 torn")
    first, second = read_log(tmp_path / "log.txt")
    assert (first.text, first.segment) == ("one\ntwo\n\nthree ␛[2J", 2)
    assert (second.level, second.text) == ("warning", "careful")
    assert list(read_log(tmp_path / "nothing.txt")) == []


def test_a_warning_is_new_once_and_counted(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.txt")
    new = [log.write("no room", "warning") for _ in range(1000)]
    assert new == [True] + [False] * 999
    assert [log.write("told", "info") for _ in range(2)] == [True, True]
    log.close()
    texts = [entry.text for entry in read_log(tmp_path / "log.txt")]
    assert texts[:2] == ["no room", "no room (said 2 times)"] and len(texts) == 12
    assert texts[9] == "no room (said 512 times)"


def test_programs_that_log_hear_of_it_and_keep_their_handlers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    handlers = [logging.getLogger().handlers[:], logging.getLogger("surefoot").handlers[:]]
    log = Log(tmp_path / "log.txt")
    with caplog.at_level(logging.INFO, "surefoot"):
        log.write("one", "info")
        log.write("careful", "warning")
    log.close()
    told = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    assert told == [("surefoot", "INFO", "one"), ("surefoot", "WARNING", "careful")]
    assert [logging.getLogger().handlers[:], logging.getLogger("surefoot").handlers[:]] == handlers
    assert [type(handler) for handler in handlers[1]] == [logging.NullHandler]
    assert capfd.readouterr() == ("", "")
