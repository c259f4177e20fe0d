"""Sweeps on disk: which are found, and what is said of those that cannot be read."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from surefoot.cli import main
from surefoot.errors import ConfigError, RunError, SurefootError
from surefoot.sweep import folder
from surefoot.sweep.folder import create, find, known
from surefoot.sweep.plan import Plan
from surefoot.sweep.space import Dimension
from surefoot.sweep.trials import Files

SPACE = [Dimension("model.num_layers", "num_layers", (1, 2))]
PLAN = Plan("charlm", "tiny", {}, {}, "grid", SPACE, 2, [1], False, "val_loss", "main", "min")


@pytest.mark.parametrize(
    "change", [{"format": 99}, {"more": 1}, {"space": None}, {"space": [{"path": 1}]}]
)
def test_one_that_cannot_be_read_hides_no_other(tmp_path: Path, change: dict[str, object]) -> None:
    good, bad = create(tmp_path, PLAN, "good"), create(tmp_path, PLAN, "bad")
    path = bad.path / "sweep.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "plan": document["plan"] | change}))
    assert [sweep.name for sweep in known(tmp_path)] == ["good"]
    assert find(tmp_path, "last").path == good.path
    with pytest.raises((RunError, ConfigError), match=r"cannot be read|has format 99"):
        find(tmp_path, "bad")


@pytest.mark.parametrize("name", ["last", "", "1st", "a/b", "-x"])
def test_names_that_could_not_be_typed_again(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="cannot be the name"):
        create(tmp_path, PLAN, name)


def test_a_name_that_no_file_could_have_is_unknown(tmp_path: Path) -> None:
    create(tmp_path, PLAN, "good")
    with pytest.raises(RunError, match="no such sweep"):
        find(tmp_path, "x" * 5000)


def test_a_folder_that_is_no_sweep_is_left_alone(tmp_path: Path) -> None:
    notes = tmp_path / "sweeps" / "mine" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("keep", "utf-8")
    with pytest.raises(RunError, match="already a sweep called mine") as caught:
        create(tmp_path, PLAN, "mine")
    assert "holds no sweep" in str(caught.value.fix)
    assert [path.name for path in notes.parent.iterdir()] == ["notes.txt"]


def test_two_workers_may_make_the_folder_of_a_sweep_that_a_database_knows(tmp_path: Path) -> None:
    made = [folder._made(tmp_path / "sweeps" / "shared", PLAN) for _ in range(2)]
    assert made[0].path == made[1].path and find(tmp_path, "shared").plan == PLAN


def test_where_no_file_can_be_locked_a_worker_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would wait for ever for whoever has the trial."""

    def flock(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("surefoot.track.lock.fcntl.flock", flock)
    with pytest.raises(RunError, match="cannot lock files"):
        Files(tmp_path, PLAN).claim()


def test_where_nothing_can_be_written_a_worker_says_so(tmp_path: Path) -> None:
    (tmp_path / "trials").write_text("in the way", "utf-8")
    with pytest.raises(SurefootError, match="cannot write the run"):
        Files(tmp_path, PLAN).claim()


def test_a_recipe_whose_file_is_gone_is_still_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = create(tmp_path, PLAN, "moved")
    path = sweep.path / "sweep.json"
    path.write_text(path.read_text().replace('"charlm"', '"/gone/mine.py"'))
    assert main(["sweep", "list", "--runs", str(tmp_path)]) == 0
    assert "mine tiny" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["--grid", "devices=1,2"], ["--grid", "lr=1e-3,3e-4", "--devices", "2"]]
)
def test_devices_that_no_trial_would_use_are_refused(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "charlm", *words, "--workers", "0", "--runs", str(tmp_path)]) == 2
    assert "a trial trains in one process" in capsys.readouterr().err
    assert known(tmp_path) == []


@pytest.mark.parametrize("count", ["-1", "257"])
def test_workers_are_counted_before_anything_begins(
    tmp_path: Path, count: str, capsys: pytest.CaptureFixture[str]
) -> None:
    create(tmp_path, PLAN, "good")
    assert main(["sweep", "resume", "--runs", str(tmp_path), "--workers", count]) == 2
    assert "expected 0 to 256" in capsys.readouterr().err
