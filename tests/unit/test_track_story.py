"""What there is to say about a run, and about the machine it ran on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from surefoot.track import machine as place
from surefoot.track.clock import Clock
from surefoot.track.folder import RunFolder
from surefoot.track.machine import describe_machine, git_state
from surefoot.track.reading import History
from surefoot.track.story import facts, tell


def rows(*spans: tuple[int, float, float]) -> History:
    """Return a history with rows of (segment, first second, last second)."""
    made = History()
    for segment, first, last in spans:
        for moment in (first, (first + last) / 2, last):
            made.add({"kind": "train", "step": 1, "segment": segment, "time": moment})
    return made


def test_time_counts_what_processes_trained_not_the_pauses() -> None:
    assert Clock(rows((0, 100, 160), (1, 5000, 5030)), {}).total == 90
    assert Clock(History(), {}).total == 0


def test_a_running_run_tells_its_own_step_a_dead_one_the_higher(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "charlm", None, {}, {"max_steps": 10})
    run.update(step=8)
    history = rows((0, 1, 2))
    assert tell(run, history).place == "8/10"
    with run.lock():
        story = tell(run, history)  # it went back to an older checkpoint
    assert (story.place, story.share, story.status) == ("1/10", 0.1, "running")


def test_facts_leave_out_what_is_not_known(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, {"machine": {"memory": 25e9, "cores": 2, "gpu": None}, "seed": 3})
    assert facts(run) == [
        ("Machine", [("memory", "25 GB"), ("cores", "2")]),
        ("Run", [("seed", "3")]),
    ]


def test_the_machine_in_plain_facts() -> None:
    found = describe_machine()
    assert set(found) == {"host", "os", "cpu", "cores", "memory", "python"}
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["memory"] > 1e8 and found["cpu"] and found["python"] == sys.version.split()[0]


def test_an_unreadable_cpuinfo_is_no_error(monkeypatch: Any) -> None:
    monkeypatch.setattr(place, "_cpuinfo", lambda: None)
    assert describe_machine()["cpu"]


def test_the_state_of_a_repository(tmp_path: Path, monkeypatch: Any) -> None:
    for key in [key for key in os.environ if key.startswith("GIT_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert git_state(tmp_path) == (None, "")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    (tmp_path / "x").write_text("1")
    for words in (["init", "-q"], ["add", "x"], [*identity, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    (tmp_path / "runs" / "1").mkdir(parents=True)
    (tmp_path / "runs" / "1" / "log.txt").touch()
    clean, diff = git_state(tmp_path, tmp_path / "runs")
    assert clean is not None and len(clean["commit"]) == 40 and clean["dirty"] is False and not diff
    (tmp_path / "x").write_bytes(b"2\n \xff\n\n")
    (tmp_path / "new").touch()
    dirty, diff = git_state(tmp_path, tmp_path / "runs")
    assert dirty is not None and dirty["dirty"] and dirty["kept"] and dirty["diff"]
    assert (dirty["changed"], dirty["untracked"]) == (["x"], ["new"])
    assert diff.startswith("diff --git a/x b/x") and diff.endswith("+\n")
    (tmp_path / "x").write_text("2\n" * 600_000)
    huge, diff = git_state(tmp_path)
    assert huge is not None and huge["kept"] is False and huge["diff"] and diff == ""
    assert huge["untracked"] == ["new", "runs/1/log.txt"]


@pytest.mark.parametrize("error", [FileNotFoundError(), subprocess.TimeoutExpired("git", 5)])
def test_a_machine_without_git(tmp_path: Path, monkeypatch: Any, error: Exception) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(place.subprocess, "run", fail)
    assert git_state(tmp_path) == (None, "")
