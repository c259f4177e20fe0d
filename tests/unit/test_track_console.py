"""The console: plain lines in pipes, one live line in a terminal, with real pipes and ptys."""

from __future__ import annotations

import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest

from surefoot.track import console as room
from surefoot.track.console import PlainConsole, Progress, open_console
from surefoot.track.terminal import TerminalConsole, live_line

DEMO = """
from types import SimpleNamespace
from surefoot.track import console as room
from surefoot.track.console import open_console
room.time = SimpleNamespace(monotonic=lambda: 100.0)  # however slow the machine is
console = open_console(total=2000, best=3.0)
console.note("plan · 0.4 GB", "info")
console.at(0)
main = {"learner": "main"}
console.row({"kind": "train", "step": 200, **main, "loss": 2.41, "tokens_per_s": 182345.0})
console.row({"kind": "eval", "step": 250, **main, "val_loss": 2.2, "top1": 0.5})
console.sample({"step": 250, **main, "prompt": "ROMEO:", "text": " [b]hark[/b]\\x1b[2J\\nno"})
print("somebody's own print")
console.note("no room for checkpoint 300", "warning")
console.row({"kind": "eval", "step": 500, **main, "val_loss": 2.3})
console.close()
console.note("done", "info")
"""


def train(step: int, learner: str = "main", **values: Any) -> dict[str, Any]:
    return {"kind": "train", "step": step, "learner": learner, "segment": 0, "time": 0.0, **values}


def in_terminal(columns: int, **environment: str) -> str:
    """Run the demo in a pseudo-terminal of that width and return all bytes that it got."""
    main, side = pty.openpty()
    ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    base = {key: os.environ[key] for key in ("PATH", "HOME", "PYTHONPATH") if key in os.environ}
    with subprocess.Popen(
        [sys.executable, "-c", DEMO],
        stdin=side, stdout=side, stderr=side,
        env={**base, "TERM": "xterm-256color", "PYTHONUTF8": "1", **environment},
    ) as child:  # fmt: skip
        os.close(side)
        found = b""
        while True:
            try:
                block = os.read(main, 65536)
            except OSError:  # Linux says so when the last writer is gone
                break
            if not block:
                break
            found += block
        assert child.wait() == 0
    os.close(main)
    return found.decode()


def scrolled(raw: str, columns: int) -> list[str]:
    """Return the lines left on the screen: what a terminal makes of erase and cursor movement."""
    screen: list[str] = [""]
    row = column = 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]", raw):
        if token == "\n":
            row += 1
            if row == len(screen):
                screen.append("")
        elif token == "\r":
            column = 0
        elif token.startswith("\x1b["):
            amount = int(re.sub(r"\D", "", token) or 1)
            if token.endswith("K"):
                screen[row] = ""
            elif token.endswith("A"):
                row -= amount
            else:
                assert token[-1] in "mhl", token
        else:
            line = screen[row].ljust(column)
            screen[row] = line[:column] + token + line[column + 1 :]
            column += 1
            assert column <= columns, f"a line is wider than the terminal: {screen[row]}"
    return [line.rstrip() for line in screen]


def test_a_pipe_gets_plain_lines_only() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DEMO], capture_output=True, check=True,
        env={**os.environ, "PYTHONUTF8": "1", "FORCE_COLOR": "1"},
    )  # fmt: skip
    assert b"\r" not in done.stdout and b"\x1b" not in done.stdout and done.stderr == b""
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "plan · 0.4 GB"
    assert re.fullmatch(r"step  200/2000  loss 2\.410  182k tok/s  0:00", lines[1])
    assert lines[2:] == [
        "step  250/2000  val loss 2.200  best  top-1 50.0 %",
        "sample at step 250:",
        "  | ROMEO: [b]hark[/b]␛[2J",
        "  | no",
        "somebody's own print",
        "warning: no room for checkpoint 300",
        "step  500/2000  val loss 2.300",
        "done",
    ]


def test_a_terminal_scrolls_results_above_one_live_line() -> None:
    raw = in_terminal(100)
    assert scrolled(raw, 100)[:-1] == [
        "plan · 0.4 GB",
        "step  250/2000   val loss 2.200 best   top-1 50.0 %",
        "sample at step 250",
        "│ ROMEO: [b]hark[/b]␛[2J",
        "│ no",
        "somebody's own print",
        "warning: no room for checkpoint 300",
        "step  500/2000   val loss 2.300",
        "done",
    ]
    assert re.search(r"step .*200/2000.*loss.*2\.410.*182k tok/s", raw)
    shown, hidden = raw.rfind("\x1b[?25h"), raw.rfind("\x1b[?25l")
    assert shown > hidden  # a killed process must not leave a terminal without a cursor


def test_a_narrow_terminal_is_never_overrun() -> None:
    lines = scrolled(in_terminal(40), 40)
    assert "step  250/2000   val loss 2.200 best" in lines


def test_what_follows_a_label_is_wrapped_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    drawn = TerminalConsole(Progress(), stream)
    drawn.note("data   src: 313 python, 5 javascript, 2 css; 289 / 12 / 19 files", "info")
    drawn.note("       micro_batch_size: 4 x 0.1 MB of activations in 10.2 GB", "info")
    drawn.note("a sentence without a label goes on at the beginning of a line", "info")
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert lines == [
        "data   src: 313 python, 5 javascript, 2",
        "       css; 289 / 12 / 19 files",
        "       micro_batch_size: 4 x 0.1 MB of",
        "       activations in 10.2 GB",
        "a sentence without a label goes on at",
        "the beginning of a line",
    ]


def test_no_color_is_respected() -> None:
    raw = in_terminal(100, NO_COLOR="1")
    colours = re.findall(r"\x1b\[([0-9;]*)m", raw)
    assert not any(re.search(r"\b(3[0-7]|9[0-7]|38)\b", colour) for colour in colours)
    coloured = re.findall(r"\x1b\[([0-9;]*)m", in_terminal(100))
    assert any(re.search(r"\b3[0-7]\b", colour) for colour in coloured)


def test_a_dumb_terminal_gets_plain_lines() -> None:
    assert "\x1b" not in in_terminal(80, TERM="dumb")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: Any) -> Clock:
    made = Clock()
    monkeypatch.setattr(room, "time", made)
    return made


def test_at_most_one_train_line_in_ten_seconds(clock: Clock) -> None:
    stream = io.StringIO()
    console = PlainConsole(Progress(1000), stream)
    for step in range(1, 101):
        clock.now += 0.5
        console.row(train(step, loss=2.0))
        if step % 40 == 0:
            console.row({**train(step), "kind": "eval", "val_loss": 1.0})
    console.close()
    lines = stream.getvalue().splitlines()
    moments = [int(line.split("/")[0].split()[1]) for line in lines if " loss 2.000" in line]
    assert moments == [1, 21, 41, 61, 81, 100]
    assert sum("val loss" in line for line in lines) == 2
    assert "left 7:30" in lines[-1]  # 900 steps at half a second


def test_where_steps_are_slow_a_line_says_how_far_they_are(clock: Clock) -> None:
    """However rarely rows are logged, and not where something else was said."""
    stream = io.StringIO()
    console = PlainConsole(Progress(10), stream)
    console.at(0)
    for step in range(1, 7):
        clock.now += 20.0
        console.at(step)
        if step == 5:
            console.note("a note", "info")
    lines = stream.getvalue().splitlines()
    assert lines == [
        "step  2/10  0:40  left 2:40",
        "step  4/10  1:20  left 2:00",
        "a note",
    ]


def test_a_live_line_begins_before_the_first_step() -> None:
    progress = Progress(200)
    progress.at(0)
    assert live_line(progress, 60).plain.startswith("step   0/200")
    assert progress.left is None


def test_the_last_step_is_not_told_twice(clock: Clock) -> None:
    stream = io.StringIO()
    console = PlainConsole(Progress(10), stream)
    console.row(train(5, loss=2.0))
    console.row(train(10, loss=1.0))
    console.row({**train(10), "kind": "eval", "val_loss": 1.5})
    console.close()
    assert len(stream.getvalue().splitlines()) == 2


def test_several_learners_are_named(clock: Clock) -> None:
    stream = io.StringIO()
    console = PlainConsole(Progress(10), stream)
    console.row({**train(5, "latent"), "kind": "eval", "val_loss": 1.5})
    console.sample({"step": 5, "learner": "latent", "prompt": "", "text": "x"})
    assert stream.getvalue().splitlines()[0] == "step  5/10  latent  val loss 1.500  best"
    assert "sample of latent at step 5" in stream.getvalue()


def test_an_ascii_stream_gets_what_is_most_like_it() -> None:
    raw = io.BytesIO()
    console = PlainConsole(Progress(), io.TextIOWrapper(raw, encoding="ascii"))
    console.note("naïve · \ud800", "info")
    assert raw.getvalue() == b"na?ve - ?\n"


def test_long_samples_are_cut_with_a_word() -> None:
    stream = io.StringIO()
    text = "\n".join(map(str, range(40)))
    console = PlainConsole(Progress(), stream)
    console.sample({"step": 1, "learner": "main", "prompt": "\n", "text": text})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 13 and lines[-1] == "  | (29 more lines in samples.jsonl)"


def test_progress_knows_best_pace_and_rewinds(clock: Clock) -> None:
    progress = Progress(100, best=2.0)
    assert progress.left is None and progress.place() == "  0/100"
    assert not progress.row({**train(1), "kind": "eval", "val_loss": 2.1})
    assert not progress.row({**train(1), "kind": "eval", "val_loss": float("nan")})
    assert progress.row({**train(1), "kind": "eval", "val_loss": 1.9})
    for step in range(1, 51):
        clock.now += 2.0
        progress.row(train(step))
    assert progress.left == pytest.approx(100)
    clock.now += 30
    assert progress.left == pytest.approx(70)  # it goes down between rows
    progress.rewind(20)
    assert progress.step == 20 and progress.left is None


def test_progress_without_an_end() -> None:
    progress = Progress(None)
    progress.row(train(7))
    assert progress.place() == "7" and progress.left is None
    assert "step 7" in live_line(progress, 80).plain


def test_the_live_line_keeps_what_matters_at_any_width(clock: Clock) -> None:
    progress = Progress(2000)
    for step in (900, 1000):
        clock.now += 50
        progress.row(train(step, loss=1.512, tokens_per_s=182345.0))
    progress.row({**train(1000), "kind": "eval", "val_loss": 1.602})
    wide = live_line(progress, 110).plain
    for part in ("step 1000/2000", "loss 1.512", "val 1.602", "best 1.602", "182k tok/s",
                 "1:40", "left 8:20", "━━━"):  # fmt: skip
        assert part in wide
    assert live_line(progress, 60).plain == ("step 1000/2000   loss 1.512   val 1.602   left 8:20")
    assert live_line(progress, 31).plain == "step 1000/2000   loss 1.512"
    assert live_line(progress, 18).plain == "step 1000/2000"
    for width in range(1, 120):  # the echo of Ctrl-C still fits behind it
        assert live_line(progress, width, unicode=width % 2 == 0).cell_len <= max(0, width - 4)
    assert live_line(progress, 110, unicode=False).plain.isascii()


def test_the_live_line_shows_learners_and_bad_losses(clock: Clock) -> None:
    progress = Progress(10)
    progress.row(train(1, "simple", loss=2.0))
    progress.row(train(1, "latent", loss=float("nan")))
    assert "simple 2.000   latent nan" in live_line(progress, 100).plain


def test_a_closed_pipe_switches_the_console_off(tmp_path: Path) -> None:
    from surefoot.track.record import Record

    read, write = os.pipe()
    os.close(read)
    stream = os.fdopen(write, "w")
    with Record(tmp_path, 0, 0, [open_console(10, stream=stream)]) as record:
        record.note("hello")
        record.row("train", 1, loss=1.0)
    assert "the console is switched off: BrokenPipeError" in (tmp_path / "log.txt").read_text()
    with pytest.raises(BrokenPipeError):
        stream.close()
