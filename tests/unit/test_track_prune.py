"""What may go and what never does; the trash, and back."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from surefoot.errors import RunError
from surefoot.track.choose import Choice, parse_bound
from surefoot.track.folder import RunFolder, list_runs
from surefoot.track.prune import Rules, batches, disk, empty, judge, move, shields, undo
from surefoot.track.record import Record


def make(runs: Path, name: str, best: float | None = None, **meta: Any) -> RunFolder:
    """Return an ended run; `days` old, with a checkpoint at each of `saved`."""
    days, saved = meta.pop("days", 0), meta.pop("saved", (0, 50))
    ended = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    values = {"id": name, "status": "done", "max_steps": 100, "test": False, "source": "data/1"}
    run = RunFolder.create(runs, "charlm", name, {}, values | {"ended": ended} | meta)
    for step in saved:
        (run.path / "checkpoints" / f"step-{step:09d}").mkdir(parents=True)
    run.update(best={"main": [50, best]} if best is not None else {})
    return run


def going(runs: Path, **rules: Any) -> dict[str, str]:
    return {v.run.name: v.reason for v in judge(runs, Rules(**rules)) if not v.shield}


def staying(runs: Path, **rules: Any) -> dict[str, str]:
    return {v.run.name: v.shield for v in judge(runs, Rules(**rules)) if v.shield}


def test_tests_and_failures_go_where_nothing_else_is_asked(tmp_path: Path) -> None:
    make(tmp_path, "good", 2.0)
    make(tmp_path, "short", 1.0, test="under 20 steps", max_steps=10)
    make(tmp_path, "grown", 3.0, test="under 20 steps")
    make(tmp_path, "probe", test="made in CI")
    make(tmp_path, "fell", status="failed", saved=(0,))
    make(tmp_path, "lost-early", status="running", saved=())
    make(tmp_path, "lost-late", status="running")
    make(tmp_path, "fork", status="failed", saved=(50,), parent={"id": "none", "step": 50})
    assert going(tmp_path) == {
        "short": "test (under 20 steps)",
        "probe": "test (made in CI)",
        "fell": "failed before its first checkpoint",
        "lost-early": "lost before its first checkpoint",
        "fork": "failed before its first checkpoint",
    }
    assert set(going(tmp_path, tests=True)) == {"short", "probe"}
    assert set(going(tmp_path, failed=True)) == {"fell", "lost-early", "fork"}


def test_age_count_and_names(tmp_path: Path) -> None:
    for number in range(4):
        make(tmp_path, f"run{number}", 2.0 + number, days=40 - 10 * number)
    make(tmp_path, "best", 1.0, days=50)
    assert going(tmp_path, older=25 * 86400.0) == {"run0": "40 days old", "run1": "30 days old"}
    assert staying(tmp_path, older=25 * 86400.0) == {"best": "best of charlm on its data"}
    assert set(going(tmp_path, newest=2)) == {"run0", "run1", "run2"}
    assert set(going(tmp_path, newest=0)) == {"run0", "run1", "run2", "run3"}
    assert going(tmp_path, names=("run3",)) == {"run3": "named"}
    assert set(going(tmp_path, newest=3, names=("run0", "run3"))) == {"run0"}


def test_a_budget_takes_the_oldest_and_counts_what_goes_anyway(tmp_path: Path) -> None:
    for number, kept in enumerate((False, True, False, False)):
        run = make(tmp_path, f"run{number}", 2.0 - number, kept=kept)
        (run.path / "weights").write_bytes(b"x" * 100_000)
    room = Rules(max_disk=250_000)
    verdicts = {v.run.name: v.reason for v in judge(tmp_path, room) if not v.shield}
    assert verdicts == {"run0": "over 250 kB in all", "run2": "over 250 kB in all"}
    assert going(tmp_path, max_disk=10**9) == {}


def test_filters_restrict_rules_and_alone_are_reasons(tmp_path: Path) -> None:
    make(tmp_path, "top", 1.0)
    make(tmp_path, "good", 2.0, tags=["base"])
    bad = make(tmp_path, "bad", 5.0, tags=["try"], days=9)
    with Record(bad.path) as record:
        record.row("eval", 50, val_loss=5.0, exact=0.1)
    assert going(tmp_path, choice=Choice(tag="try")) == {"bad": "tag try"}
    assert going(tmp_path, choice=Choice(bound=parse_bound("val_loss>3"))) == {"bad": "val_loss>3"}
    assert set(going(tmp_path, choice=Choice(bound=parse_bound("exact<0.5")))) == {"bad"}
    assert going(tmp_path, choice=Choice(recipe="gpt")) == {}
    assert set(going(tmp_path, choice=Choice(state="done"))) == {"good", "bad"}
    assert going(tmp_path, older=86400.0, choice=Choice(tag="base")) == {}


def test_what_never_goes(tmp_path: Path) -> None:
    make(tmp_path, "old-parent", 9.0)
    make(tmp_path, "parent", 8.0, parent={"id": "old-parent", "step": 50})
    make(tmp_path, "child", 7.0, kept=True, parent={"id": "parent", "step": 50})
    make(tmp_path, "first", 3.0)
    make(tmp_path, "elsewhere", 6.0, source="data/2")
    make(tmp_path, "lucky-test", 0.1, test="--test")
    runs = make(tmp_path, "busy", 4.0)
    with runs.lock():
        found = shields(list_runs(tmp_path))
    assert found == {
        "old-parent": "parent of parent",
        "parent": "parent of child",
        "child": "kept by you",
        "first": "best of charlm on its data",
        "elsewhere": "best of charlm on its data",
        "busy": f"running, process {os.getpid()}",
    }
    assert set(going(tmp_path, newest=0)) == {"lucky-test", "busy"}


def test_parents_in_a_circle_end(tmp_path: Path) -> None:
    make(tmp_path, "a", 1.0, kept=True, parent={"id": "b", "step": 1})
    make(tmp_path, "b", 2.0, parent={"id": "a", "step": 1})
    assert shields(list_runs(tmp_path)) == {"a": "kept by you", "b": "parent of a"}


def test_there_and_back(tmp_path: Path) -> None:
    make(tmp_path, "top", 1.0)
    make(tmp_path, "bad", 2.0)
    before = sorted(p.relative_to(tmp_path) for p in (tmp_path / "bad").rglob("*"))
    moved = move(tmp_path, judge(tmp_path, Rules(newest=0)))
    assert {v.run.name: v.shield for v in moved} == {"bad": "", "top": "best of charlm on its data"}
    assert [run.name for run in list_runs(tmp_path)] == ["top"]
    assert RunFolder.create(tmp_path, "charlm").meta["number"] == 3  # 2 is in the trash
    assert list(undo(tmp_path)) == [("bad", "")]
    after = sorted(p.relative_to(tmp_path) for p in (tmp_path / "bad").rglob("*"))
    assert [p for p in after if p.name != ".lock"] == before
    assert batches(tmp_path) == []
    with pytest.raises(RunError, match="trash is empty"):
        list(undo(tmp_path))


def test_undo_leaves_what_has_no_place(tmp_path: Path) -> None:
    make(tmp_path, "bad", test="--test")
    make(tmp_path, "worse", test="--test")
    move(tmp_path, judge(tmp_path, Rules()))
    make(tmp_path, "bad")
    found = dict(undo(tmp_path))
    assert found["worse"] == "" and "is in the way" in found["bad"]
    (tmp_path / "bad").rename(tmp_path / "other")
    assert list(undo(tmp_path)) == [("bad", "")]


def test_undo_takes_back_one_prune_at_a_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make(tmp_path, name, test="--test")
        move(tmp_path, judge(tmp_path, Rules(names=(name,))))
    assert len(batches(tmp_path)) == 2  # in the same second
    assert list(undo(tmp_path)) == [("two", "")]
    assert list(undo(tmp_path)) == [("one", "")]


def test_who_begins_to_train_meanwhile_stays(tmp_path: Path) -> None:
    run = make(tmp_path, "probe", test="--test")
    verdicts = judge(tmp_path, Rules())
    with run.lock():
        assert "is being trained by process" in move(tmp_path, verdicts)[0].shield
    assert run.path.exists() and batches(tmp_path) == []


def test_what_one_may_not_write_stays_and_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    run = make(tmp_path, "probe", test="--test")
    (run.path / ".lock").mkdir()  # as little a file to open as one of somebody else's
    (found,) = move(tmp_path, judge(tmp_path, Rules()))
    assert found.shield == "cannot write the run: Is a directory"
    assert run.path.exists() and batches(tmp_path) == []


def test_the_trash_is_emptied_after_a_week(tmp_path: Path) -> None:
    make(tmp_path, "probe", test="--test")
    make(tmp_path, "new", test="--test")
    move(tmp_path, judge(tmp_path, Rules(names=("probe",))))
    week = time.gmtime(time.time() - 7.1 * 86400)
    batches(tmp_path)[0].rename(tmp_path / ".trash" / time.strftime("%Y%m%dT%H%M%S", week))
    move(tmp_path, judge(tmp_path, Rules(names=("new",))))
    assert empty(tmp_path)[0] == 1
    assert [run.name for batch in batches(tmp_path) for run in list_runs(batch)] == ["new"]
    assert empty(tmp_path, 0)[0] == 1


def test_only_our_own_trash_is_emptied(tmp_path: Path) -> None:
    runs, precious = tmp_path / "runs", tmp_path / "precious"
    (precious / "20200101T000000").mkdir(parents=True)
    (precious / "20200101T000000" / "reasons.json").write_text("{}")
    runs.mkdir()
    (runs / ".trash").symlink_to(precious)
    assert empty(runs, 0) == (0, 0) and (precious / "20200101T000000").exists()
    (runs / ".trash").unlink()
    (runs / ".trash" / "mine").mkdir(parents=True)
    assert empty(runs, 0) == (0, 0) and (runs / ".trash" / "mine").exists()


def test_disk_by_part(tmp_path: Path) -> None:
    run = make(tmp_path, "bare", saved=())
    for name, size in (("tb/x", 10), ("checkpoints/step-1/y", 20), ("report.html", 30)):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_bytes(b"x" * size)
    found = disk(run.path)
    assert (found["tb"], found["checkpoints"], found["pictures"]) == (10, 20, 30)
    assert found["record"] == (run.path / "run.json").stat().st_size
    assert sum(disk(tmp_path / "gone").values()) == 0


@pytest.mark.parametrize("text", ["val_loss", "val_loss=2", "2>val_loss", "val_loss>x", ""])
def test_a_bad_bound(text: str) -> None:
    with pytest.raises(ValueError, match="expected a metric and a bound"):
        parse_bound(text)


def test_a_full_disk_can_be_pruned(tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device")

    make(tmp_path, "probe", test="--test")
    verdicts = judge(tmp_path, Rules())
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        assert [v.run.name for v in move(tmp_path, verdicts)] == ["probe"]
    assert list(undo(tmp_path)) == [("probe", "")] and batches(tmp_path) == []
