"""A run's folder: made whole, found by what people type, honest about damage."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from surefoot.errors import RunError
from surefoot.track import folder as room
from surefoot.track.durable import write_atomic
from surefoot.track.folder import RunFolder, find, list_runs, reference, runs_dir


def make(runs: Path, *names: str | None) -> list[RunFolder]:
    return [RunFolder.create(runs, "charlm", name) for name in names]


def test_a_run_appears_with_its_files_and_facts(tmp_path: Path) -> None:
    run = RunFolder.create(
        tmp_path / "runs", "charlm", None, {"config.yaml": "a: 1\n", "sub/x.txt": "é"}, {"seed": 7}
    )
    assert run.path == tmp_path / "runs" / "0001-charlm"
    assert (run.path / "config.yaml").read_text() == "a: 1\n"
    assert (run.path / "sub" / "x.txt").read_text(encoding="utf-8") == "é"
    again = RunFolder.open(run.path).meta
    assert again == run.meta
    assert (again["number"], again["recipe"], again["seed"]) == (1, "charlm", 7)
    assert (again["status"], again["format"], again["step"]) == ("running", 1, 0)


def test_numbers_go_on_and_names_are_kept(tmp_path: Path) -> None:
    first, named, third = make(tmp_path, None, "bard", None)
    assert [r.meta["number"] for r in (first, named, third)] == [1, 2, 3]
    assert [r.name for r in (first, named, third)] == ["0001-charlm", "bard", "0003-charlm"]
    assert [r.name for r in list_runs(tmp_path)] == ["0001-charlm", "bard", "0003-charlm"]


def test_creators_at_once_get_different_numbers(tmp_path: Path) -> None:
    made: list[RunFolder] = []
    threads = [
        threading.Thread(target=lambda: made.extend(make(tmp_path, None, None))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(run.meta["number"] for run in made) == list(range(1, 17))
    assert not list(tmp_path.glob(".new-*"))


@pytest.mark.parametrize("name", ["last", "12", "../up", "a b", ".hidden", "-x", "", "a" * 101])
def test_names_that_cannot_be_typed_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="cannot be the name"):
        RunFolder.create(tmp_path, "charlm", name)
    assert list(tmp_path.iterdir()) == []


def test_a_taken_name_is_refused_with_the_way_on(tmp_path: Path) -> None:
    make(tmp_path, "bard")
    with pytest.raises(RunError, match="already a run called bard") as caught:
        make(tmp_path, "bard")
    assert caught.value.fix is not None and "surefoot resume bard" in caught.value.fix


def test_a_name_taken_meanwhile_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    make(tmp_path, "bard")
    monkeypatch.setattr(room, "check_name", lambda runs, name: None)
    with pytest.raises(RunError, match="already a run called bard"):
        make(tmp_path, "bard")
    assert not list(tmp_path.glob(".new-*"))


def test_a_place_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError, match="cannot make a run") as caught:
        RunFolder.create(tmp_path / "runs", "charlm")
    assert caught.value.where == str(tmp_path / "runs") and caught.value.exit_code == 2


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: Any) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left") as caught:
        RunFolder.create(tmp_path, "charlm", None, {"config.yaml": "x"})
    assert caught.value.fix is not None and "prune" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_folders_left_by_a_crash_are_swept_when_old(tmp_path: Path) -> None:
    old, young = tmp_path / ".new-0007", tmp_path / ".new-0009"
    for place in (old, young):
        place.mkdir()
        (place / "run.json").write_text("{")
    os.utime(old, (1, 1))
    (run,) = make(tmp_path, None)
    assert run.meta["number"] == 10  # 9 may be somebody's who is making it right now
    assert not old.exists() and young.exists()


@pytest.mark.parametrize(
    ("environment", "steps", "test"),
    [
        ({}, 1000, ""),
        ({}, None, ""),
        ({}, 19, "under 20 steps"),
        ({"CI": "1"}, 1000, "made in CI"),
    ],
)
def test_tests_are_marked_at_birth(
    tmp_path: Path, monkeypatch: Any, environment: dict[str, str], steps: int | None, test: str
) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)
    monkeypatch.delenv("CI", raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    run = RunFolder.create(tmp_path, "charlm", None, {}, {"max_steps": steps})
    assert run.test == test and run.meta["test"] == (test or False)
    run.update(max_steps=500)
    assert run.test == test * bool(environment)  # it was short, and is no longer


def test_a_run_made_by_pytest_is_a_test(tmp_path: Path) -> None:
    assert make(tmp_path, None)[0].test == "made by pytest"


def test_the_suite_leaves_no_run_behind(pytestconfig: Any, sealed: Path) -> None:
    """Where a test names no folder, its runs go to a temporary one; the guard sees others."""
    (conftest,) = (
        plugin for plugin in pytestconfig.pluginmanager.get_plugins()
        if hasattr(plugin, "runs_made_here")
    )  # fmt: skip
    run = RunFolder.create(runs_dir(), "charlm")
    assert sealed in run.path.parents
    assert conftest.runs_made_here(runs_dir()) == {run.path}
    run.update(test=False)  # one of a person's own
    assert conftest.runs_made_here(runs_dir()) == set()


def test_what_a_person_wrote_survives_the_process_that_trains(tmp_path: Path) -> None:
    training = RunFolder.create(tmp_path, "charlm", "mine")
    RunFolder.open(training.path).update(kept=True, tags=["good"])
    training.update(step=7)
    meta = RunFolder.open(training.path).meta
    assert meta["kept"] is True and meta["tags"] == ["good"] and meta["step"] == 7


def test_update_merges_and_survives_a_full_disk(tmp_path: Path, monkeypatch: Any) -> None:
    (run,) = make(tmp_path, None)
    assert run.update(step=5) and RunFolder.open(run.path).meta["step"] == 5
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "full")))
        assert run.update(step=6) is False
    assert RunFolder.open(run.path).meta["step"] == 5  # the old file, whole
    assert run.update(status="done")
    assert RunFolder.open(run.path).meta["step"] == 6
    assert not list(run.path.glob(".*.new"))


def test_write_atomic_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text in ("one", "two, and longer"):
        write_atomic(path, text)
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_find_by_everything_people_type(tmp_path: Path) -> None:
    make(tmp_path, None, "bard", "bardolph", None)
    by = {ref: find(tmp_path, ref).name for ref in ("1", "0001", "bard", "bardo", "last", "0004-c")}
    assert by == {
        "1": "0001-charlm", "0001": "0001-charlm", "bard": "bard", "bardo": "bardolph",
        "last": "0004-charlm", "0004-c": "0004-charlm",
    }  # fmt: skip
    assert find(tmp_path, str(tmp_path / "bard")).name == "bard"


@pytest.mark.parametrize(
    ("ref", "what", "fix"),
    [
        ("bar", "2 runs match 'bar'", "bard, bardolph"),
        ("brad", "no such run: brad", "did you mean bard?"),
        ("chralm", "no such run: chralm", "did you mean 0001-charlm?"),
        ("", "no such run", "surefoot runs"),
        ("zzz", "no such run: zzz", "surefoot runs"),
    ],
)
def test_find_explains_what_it_cannot(tmp_path: Path, ref: str, what: str, fix: str) -> None:
    make(tmp_path, None, "bard", "bardolph")
    with pytest.raises(RunError, match=what) as caught:
        find(tmp_path, ref)
    assert caught.value.fix is not None and fix in caught.value.fix
    assert caught.value.exit_code == 2


def test_find_names_all_when_copies_share_a_number(tmp_path: Path) -> None:
    for run in make(tmp_path, "here", "there"):
        run.update(number=5)
    with pytest.raises(RunError, match="2 runs match '5'"):
        find(tmp_path, "5")


def test_no_runs_at_all(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there are no runs"):
        find(tmp_path / "nowhere", "last")
    assert list_runs(tmp_path / "nowhere") == []


def test_damaged_and_foreign_folders(tmp_path: Path) -> None:
    broken, foreign = tmp_path / "0002-gpt", tmp_path / "notes"
    broken.mkdir()
    foreign.mkdir()
    (broken / "run.json").write_text('{"number": 2, "stat')
    (tmp_path / "file.txt").write_text("")
    make(tmp_path, None)
    listed = {run.name: run.status for run in list_runs(tmp_path)}
    assert listed == {"0002-gpt": "damaged", "0003-charlm": "lost"}
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        RunFolder.open(broken)
    with pytest.raises(RunError, match="is not a run"):
        RunFolder.open(foreign)
    with pytest.raises(RunError, match="does not exist"):
        RunFolder.open(tmp_path / "never")


@pytest.mark.parametrize("text", ["[1]", "null", "\x00\x00", "{\ud800".encode("utf-8", "replace")])
def test_any_rubbish_in_run_json_is_an_error_of_ours(tmp_path: Path, text: str | bytes) -> None:
    raw = text.encode() if isinstance(text, str) else text
    (tmp_path / "run.json").write_bytes(raw)
    with pytest.raises(RunError):
        RunFolder.open(tmp_path)


def test_a_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    (run,) = make(tmp_path, None)
    before = json.dumps({**run.meta, "format": 99})
    (run.path / "run.json").write_text(before)
    with pytest.raises(RunError, match="format 99"):
        RunFolder.open(run.path)
    assert (run.path / "run.json").read_text() == before


def test_status_is_lost_when_nobody_runs_it(tmp_path: Path) -> None:
    (run,) = make(tmp_path, None)
    assert run.status == "lost" and run.holder() is None
    with run.lock():
        assert run.status == "running"
    run.update(status="done")
    with run.lock():
        assert run.status == "done"


def test_where_runs_live(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SUREFOOT_RUNS", str(tmp_path))
    assert runs_dir(None) == tmp_path
    assert runs_dir("here") == Path("here")
    assert reference(tmp_path / "one") == "one"
    assert reference(Path("my runs/one")) == "'my runs/one'"
    monkeypatch.delenv("SUREFOOT_RUNS")
    assert runs_dir() == Path("runs")


@pytest.mark.parametrize(
    ("key", "value"), [("tags", "one"), ("pinned", [1]), ("max_steps", True), ("best", 3.0)]
)
def test_a_wrong_shape_is_damage(tmp_path: Path, key: str, value: Any) -> None:
    run = RunFolder.create(tmp_path, "charlm", "odd")
    meta = json.loads((run.path / "run.json").read_text()) | {key: value}
    (run.path / "run.json").write_text(json.dumps(meta))
    with pytest.raises(RunError, match=f"damaged: {key} is no"):
        RunFolder.open(run.path)
    (listed,) = list_runs(tmp_path)
    assert key in listed.meta["damage"] and listed.status == "damaged"
