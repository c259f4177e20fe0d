"""`surefoot compare`, through the door."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from surefoot.cli import main
from surefoot.track.folder import RunFolder
from surefoot.track.record import Record


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: Any) -> Path:
    runs = tmp_path / "runs"
    monkeypatch.setenv("SUREFOOT_RUNS", str(runs))
    for name, loss in (("base", 2.0), ("wide", 1.5), ("weird", 1.0)):
        text = f"model:\n  d_model: {int(loss * 10)}\ntrain:\n  seed: 1\n"
        run = RunFolder.create(runs, "charlm", name, {"config.yaml": text})
        with Record(run.path) as record:
            for step in range(10, 101, 10):
                record.row("eval", step, val_loss=loss + 1 / step)
        run.update(status="done", step=100)
    return runs


def test_the_screen(runs: Path, capsys: Any) -> None:
    assert main(["compare", "base", "wide"]) == 0
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    assert lines[:4] == [
        ["what", "differs"], ["base", "wide"], ["model.d_model", "20", "15"],
        ["equal:", "1", "settings", "(--all", "shows", "them)"],
    ]  # fmt: skip
    assert ["best", "val", "loss", "2.010", "1.510*"] in lines
    assert "wide against base: val loss 0.500 better at step 100" in text and "\x1b" not in text
    assert (runs / "compare" / "base-wide.html").exists()
    assert main(["runs", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3  # the pages are no run


def test_all_shows_what_is_equal(runs: Path, capsys: Any, tmp_path: Path) -> None:
    assert main(["compare", "base", "wide", "--all", "--out", str(tmp_path / "here")]) == 0
    assert "  train.seed 1\n" in capsys.readouterr().out
    assert (tmp_path / "here" / "base-wide.png").exists() and not (runs / "compare").exists()


def test_json_alone_writes_nothing(runs: Path, capsys: Any) -> None:
    assert main(["compare", "base", "wide", "weird", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == ["base", "wide", "weird"] and found["at"]["step"] == 100
    assert found["results"][1]["at"]["step"]["val_loss"] == [1.51]
    assert not (runs / "compare").exists()


def test_a_narrow_terminal_gets_a_line_a_value(runs: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["compare", "base", "wide", "weird"]) == 0
    text = capsys.readouterr().out
    assert "  best val loss\n    base   2.010\n    wide   1.510\n    weird  1.010*\n" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare", "base"], "nothing to differ from"),
        (["compare", "base", "wid", "base"], "base is named twice"),
        (["compare", "base", "wdie"], "did you mean wide?"),
        (["compare", "base", "w"], "2 runs match 'w'"),
        (["compare"], "required: run"),
    ],
)
def test_mistakes_are_explained(runs: Path, capsys: Any, words: list[str], said: str) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_a_run_deleted_meanwhile(runs: Path, capsys: Any, monkeypatch: Any) -> None:
    from surefoot.track import compare as room

    read = room.read_history

    def late(path: Path) -> Any:
        shutil.rmtree(runs / "wide", ignore_errors=True)
        return read(path)

    monkeypatch.setattr(room, "read_history", late)
    assert main(["compare", "base", "wide"]) == 0
    assert "wide has none yet" in capsys.readouterr().out


def test_no_room_for_the_page_is_a_note(runs: Path, capsys: Any) -> None:
    (runs / "compare").write_text("in the way")
    assert main(["compare", "base", "wide"]) == 0
    captured = capsys.readouterr()
    assert "no page was written" in captured.err and "1.510*" in captured.out
