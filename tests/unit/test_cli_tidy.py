"""`surefoot prune`, `keep`, `tag` and `du`, through the door."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surefoot.cli import main
from surefoot.track.folder import RunFolder, list_runs


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: Any) -> Path:
    runs = tmp_path / "runs"
    monkeypatch.setenv("SUREFOOT_RUNS", str(runs))
    for name, loss, test in (("good", 1.0, False), ("bad", 2.0, False), ("probe", 0.5, "--test")):
        run = RunFolder.create(runs, "charlm", name, {}, {"test": test, "max_steps": 100})
        run.update(status="done", best={"main": [50, loss]})
    return runs


def names(runs: Path) -> list[str]:
    return [run.name for run in list_runs(runs)]


def test_prune_says_first_and_does_then(runs: Path, capsys: Any) -> None:
    assert main(["prune"]) == 0
    said = capsys.readouterr().out
    assert "probe" in said and "test (--test)" in said
    assert "would move 1 of 3 runs" in said and "add --yes" in said
    assert len(names(runs)) == 3 and not (runs / ".trash").exists()
    assert main(["prune", "--yes"]) == 0
    assert "moved 1 of 3 runs" in capsys.readouterr().out and names(runs) == ["good", "bad"]
    assert main(["prune", "--undo"]) == 0
    assert capsys.readouterr().out == "  probe is back\n" and len(names(runs)) == 3


def test_prune_as_json(runs: Path, capsys: Any) -> None:
    assert main(["prune", "--newest", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in found["runs"]] == ["bad", "probe"]
    assert found["stays"] == [{"name": "good", "reason": "best of charlm on its data"}]
    assert found["moved"] is False and found["bytes"] > 0


def test_the_trash_is_emptied_only_when_meant(runs: Path, capsys: Any) -> None:
    main(["prune", "bad", "--yes"])
    capsys.readouterr()
    assert main(["prune", "--empty"]) == 0
    assert "would delete 1 runs for good" in capsys.readouterr().out
    assert main(["prune", "--empty", "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == ["bad"]
    assert main(["prune", "--undo"]) == 2
    assert "the trash is empty" in capsys.readouterr().err


def test_keep_and_tag(runs: Path, capsys: Any) -> None:
    assert main(["keep", "bad"]) == 0
    assert main(["prune", "bad", "--yes"]) == 0
    assert "kept by you" in capsys.readouterr().out and "bad" in names(runs)
    assert main(["keep", "bad", "--no-longer", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"name": "bad", "kept": False}]
    assert main(["tag", "bad", "wide", "try/2"]) == 0
    assert main(["tag", "bad", "wide", "--remove", "--json"]) == 0
    said = capsys.readouterr().out.partition("\n")
    assert said[0] == "bad: wide, try/2" and json.loads(said[2])["tags"] == ["try/2"]
    assert main(["runs", "--tag", "try/2", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == ["bad"]
    assert main(["runs", "--tag", "nothing"]) == 0
    assert "none of the 3 runs" in capsys.readouterr().out


def test_du(runs: Path, capsys: Any) -> None:
    (runs / "bad" / "checkpoints").mkdir()
    (runs / "bad" / "checkpoints" / "x").write_bytes(b"x" * 5000)
    assert main(["du", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bad"]["checkpoints"] == 5000 and found["(trash)"]["total"] == 0
    assert main(["du"]) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows[2:] == ["bad", "(trash)", "(cache)"]  # the largest run last
    assert main(["du", "bad", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["bad"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["keep", "godo"], "did you mean good?"),
        (["keep"], "required: run"),
        (["tag", "good", "two words"], "cannot be a tag"),
        (["prune", "--newest", "-1"], "expected 0 or more"),
        (["prune", "--metric", "loss"], "expected a metric and a bound"),
        (["prune", "--older-than", "old"], "expected a time"),
        (["prune", "--max-disk", "much"], "expected a size"),
        (["prune", "nosuch"], "no such run"),
    ],
)
def test_mistakes_are_explained(runs: Path, capsys: Any, words: list[str], said: str) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err and len(names(runs)) == 3


@pytest.mark.parametrize("words", [["keep", "good"], ["tag", "good", "mine"]])
def test_a_run_of_somebody_else_is_not_a_full_disk(
    runs: Path, capsys: Any, monkeypatch: Any, words: list[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("surefoot.track.folder.write_atomic", refuse)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "cannot write the run: Permission denied" in said and "folder writable" in said


def test_a_disk_that_refuses_is_no_traceback(runs: Path, capsys: Any, monkeypatch: Any) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("surefoot.track.folder.write_atomic", full)
    assert main(["keep", "good"]) == 4
    said = capsys.readouterr().err
    assert "cannot write the run: No space left" in said and "prune --empty" in said
    monkeypatch.setattr(Path, "rename", full)
    assert main(["prune", "probe", "--yes"]) == 2
    assert "cannot move runs to the trash: No space left" in capsys.readouterr().err
    assert len(names(runs)) == 3
