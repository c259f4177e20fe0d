"""A supervisor that is told to stop stops, whatever its child was doing."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from surefoot.cli import main, supervise


class Child:
    """Ends with `code`; a supervisor that waits for it is sent SIGTERM if `told`."""

    def __init__(self, code: int, told: bool) -> None:
        self.code, self.told, self.heard = code, told, []

    def wait(self) -> int:
        if self.told:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.code

    def send_signal(self, number: int) -> None:
        self.heard.append(number)


@pytest.fixture
def run(monkeypatch: Any) -> Any:
    def run(*children: Child) -> int:
        waiting = iter(children)
        monkeypatch.setattr(supervise.subprocess, "Popen", lambda words: next(waiting))
        return supervise.supervise(["train"], ["train"], 5, lambda: None)

    return run


@pytest.mark.parametrize("code", [-15, 143, 1])
def test_a_child_that_a_signal_ends_is_not_started_again(run: Any, code: int, capsys: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    child = Child(code, told=True)
    assert run(child) == 75 and child.heard == [signal.SIGTERM]
    assert "stopped by SIGTERM" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_between_two_children_is_heard(run: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(
        supervise.time, "sleep", lambda seconds: os.kill(os.getpid(), signal.SIGTERM)
    )
    assert run(Child(1, told=False)) == 75
    assert "stopped by SIGTERM" in capsys.readouterr().err


def test_a_signal_before_the_first_step_ends_like_any_stop(monkeypatch: Any, capsys: Any) -> None:
    import surefoot.cli.train

    def start(verb: str, argv: list[str]) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    monkeypatch.setattr(surefoot.cli.train, "run", start)
    assert main(["train", "charlm"]) == 75
    assert "stopped by SIGTERM; the same command goes on" in capsys.readouterr().err


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C as at a terminal; what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_for_an_import(
    number: int, monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    """numpy takes an exception that comes while it is imported for a failure of its own."""
    import surefoot.cli.train

    (tmp_path / "slow_to_import.py").write_text(
        f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(0.12)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    whole = []

    def start(verb: str, argv: list[str]) -> int:
        whole.append(importlib.import_module("slow_to_import").whole)
        time.sleep(30)
        raise AssertionError("it went on")

    monkeypatch.setattr(surefoot.cli.train, "run", start)
    alarm = signal.getsignal(signal.SIGALRM)
    assert main(["train", "charlm"]) == {signal.SIGTERM: 75, signal.SIGINT: 130}[number]
    assert whole == [True]
    assert signal.getsignal(signal.SIGALRM) is alarm
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    del sys.modules["slow_to_import"]


@pytest.mark.usefixtures("heard")
def test_a_second_ctrl_c_waits_for_nothing(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    import surefoot.cli.train

    again = "os.kill(os.getpid(), 2)"
    (tmp_path / "never_imported.py").write_text(f"import os\n{again}\n{again}\nraise ValueError\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        surefoot.cli.train, "run", lambda *_: importlib.import_module("never_imported")
    )
    assert main(["train", "charlm"]) == 130


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [["runs"], ["--help"], ["config", "explain", "train.seed"]])
def test_a_full_disk_at_the_other_end(words: list[str], monkeypatch: Any, capsys: Any) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert main(words) == 4
        monkeypatch.undo()
    assert "cannot write what was found: No space left" in capsys.readouterr().err


def test_a_closed_output_is_no_bug(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setattr("sys.stdout", None)
    assert main(["runs", "--runs", str(tmp_path)]) == 0
    sys.stdout.close()
