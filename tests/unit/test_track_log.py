"""log.txt: readable, indented, bounded."""

from __future__ import annotations

import re
from pathlib import Path

from surefoot.track.log import Log


def test_lines_have_a_time_and_a_level(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.txt")
    log.write("one\ntwo", "info")
    log.write("careful", "warning")
    log.close()
    first, second, third = (tmp_path / "log.txt").read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d info     one", first)
    assert second == "        two"
    assert third.endswith("warning  careful")


def test_old_lines_go_when_it_grows(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.txt", limit=1000)
    for number in range(500):
        log.write(f"line {number}", "info")
    log.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["log.1.txt", "log.2.txt", "log.3.txt", "log.txt"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 5000
    text = "".join((tmp_path / name).read_text() for name in [*reversed(files[:3]), "log.txt"])
    numbers = [int(line.rsplit(" ", 1)[1]) for line in text.splitlines()]
    assert numbers == list(range(numbers[0], 500))  # in order, the newest kept


def test_appends_over_processes(tmp_path: Path) -> None:
    for text in ("first", "second"):
        log = Log(tmp_path / "log.txt")
        log.write(text, "info")
        log.close()
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2
