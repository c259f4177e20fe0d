"""`surefoot top` and `surefoot tail`, through the door."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from surefoot.cli import main
from surefoot.track.folder import RunFolder
from surefoot.track.record import Record


@pytest.fixture
def run(tmp_path: Path, monkeypatch: Any) -> RunFolder:
    monkeypatch.setenv("SUREFOOT_RUNS", str(tmp_path))
    made = RunFolder.create(tmp_path, "charlm", "one", {}, {"max_steps": 60})
    with Record(made.path) as record:
        record.note("going on from the beginning")
        for step in range(10, 61, 10):
            record.row("train", step, loss=10 / step, lr=1e-3)
        record.row("event", 60, event="skip", why="loss is nan")
        record.row("eval", 60, val_loss=0.5)
        record.sample(60, "main", "ROMEO:", " hark\x1b[2J\nthere")
        record.note("no room", "warning")
    return made


def test_top_in_a_pipe_is_one_plain_frame(run: RunFolder, capsys: Any) -> None:
    assert main(["top"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("one  lost  charlm") and "step 60/60" in text
    assert "\x1b" not in text and "\r" not in text


def test_top_in_a_terminal_lives_until_the_run_ends(run: RunFolder) -> None:
    screen, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "60", "LINES": "20"}
    with run.lock():
        child = subprocess.Popen(
            [sys.executable, "-m", "surefoot", "top", "one"],
            stdout=terminal, stderr=terminal, stdin=terminal, env=environment,
        )  # fmt: skip
        os.close(terminal)
        said = read_until(screen, b"running")
        assert b"\x1b[?1049h" in said  # the other screen, so that ours stays as it was
    last = read_until(screen).partition(b"\x1b[?1049l")[2]  # nobody holds it now
    assert child.wait(600) == 0 and b"lost" in last  # the last frame stays
    os.close(screen)


def read_until(handle: int, word: bytes | None = None) -> bytes:
    """Read the terminal until `word` was said, or until nobody has it open."""
    said = b""
    while word is None or word not in said:
        ready, _, _ = select.select([handle], [], [], 600)
        assert ready, said
        try:
            said += os.read(handle, 1 << 16)
        except OSError:
            break
    return said


def test_tail(run: RunFolder, capsys: Any) -> None:
    assert main(["tail", "one", "-n", "5"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert main(["tail", "one", "-n", "50"]) == 0
    lines = [line[10:] for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 11 and set(lines) > {  # the log knows only seconds, so no order
        "step 60  skip: loss is nan", "step 60  val loss 0.500",
        "step 60  sample: ROMEO: hark␛[2J …", "going on from the beginning", "warning: no room",
    }  # fmt: skip
    assert main(["tail", "-n", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row.get("kind", "sample") for row in rows] == ["event", "eval", "sample"]
    assert main(["tail", "-n", "0"]) == 0
    assert capsys.readouterr().out == ""


def test_tail_follows_until_the_run_ends(run: RunFolder) -> None:
    with run.lock():
        child = subprocess.Popen(
            [sys.executable, "-m", "surefoot", "tail", "one", "-f", "-n", "1"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stdout is not None
        child.stdout.readline()
        with Record(run.path, 1, 60) as record:
            record.row("train", 70, loss=0.25)
        line = child.stdout.readline()
    rest = child.stdout.read()
    assert "step 70  loss 0.250" in line and rest == "" and child.wait(600) == 0
    child.stdout.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_row_written_while_tail_begins_is_said_once(
    run: RunFolder, monkeypatch: Any, capsys: Any, when: str
) -> None:
    import surefoot.cli.watch as room

    read = room.read_back

    def read_meanwhile(path: Path, *arguments: Any) -> Any:
        monkeypatch.setattr(room, "read_back", read)
        row = {"kind": "train", "step": 61, "loss": 0.125, "time": 1}
        with path.open("a") as file:
            found = list(read(path, *arguments)) if when == "after" else None
            file.write(json.dumps(row) + "\n")
        return iter(found or read(path, *arguments))

    monkeypatch.setattr(room, "read_back", read_meanwhile)
    assert main(["tail", "one", "-f", "-n", "50"]) == 0
    assert capsys.readouterr().out.count("step 61") == 1


def test_tail_says_what_is_computed_again(run: RunFolder, monkeypatch: Any, capsys: Any) -> None:
    import surefoot.cli.watch as room

    make = room.Follower

    def follow_then_rewind(path: Path, **more: Any) -> Any:
        made = make(path, **more)
        if path.name == "log.txt":  # the last one: all are following now
            with Record(run.path, 1, 30) as record:
                for step in range(31, 34):
                    record.row("train", step, loss=float(step))
        return made

    monkeypatch.setattr(room, "Follower", follow_then_rewind)
    assert main(["tail", "one", "-f", "-n", "0"]) == 0
    said = [line[10:] for line in capsys.readouterr().out.splitlines()]
    assert said == [
        "steps are computed again", "step 31  loss 31.000", "step 32  loss 32.000",
        "step 33  loss 33.000",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tail", "one", "-n", "-1"], "expected 0 or more"),
        (["tail", "one", "-f", "--json"], "has no end"),
        (["tail", "oen"], "did you mean one?"),
        (["top", "nosuch"], "no such run"),
    ],
)
def test_mistakes_are_explained(run: RunFolder, capsys: Any, words: list[str], said: str) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_an_empty_place(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("SUREFOOT_RUNS", str(tmp_path))
    assert main(["top"]) == 2
    assert "there are no runs" in capsys.readouterr().err
    RunFolder.create(tmp_path, "charlm", "bare")
    assert main(["tail"]) == 0 and main(["top"]) == 0
    assert "bare" in capsys.readouterr().out
