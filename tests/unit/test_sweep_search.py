"""Trials in a database: who has which, whose worker is gone, and what is kept of a password."""

from __future__ import annotations

import os
import platform
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from surefoot.errors import ConfigError, RunError, Unsupported
from surefoot.sweep.plan import Plan
from surefoot.sweep.space import Dimension
from surefoot.sweep.trials import Files

pytest.importorskip("optuna")
from surefoot.sweep import search
from surefoot.sweep.library import quiet
from surefoot.sweep.search import Study, plan_in, public

RATE = Dimension("optim.lr", "lr", (), 1e-4, 1e-2, False, True)
LAYERS = Dimension("model.num_layers", "num_layers", (1, 2, 3))
GONE = 2**22 + 1  # no process has this number


def plan(mode: str = "search", count: int = 4, prune: str = "off", **more: Any) -> Plan:
    space = [LAYERS] if mode == "grid" else [RATE, LAYERS]
    return Plan(
        "charlm", "tiny", {}, {}, mode, space, count, [1], False, "val_loss", "main", "min",
        prune, **more,
    )  # fmt: skip


@pytest.fixture
def grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUREFOOT_GRACE", "60")


def opened(tmp_path: Path, made: Plan, url: str | None = None) -> Study:
    return Study(tmp_path, made, "mine", url)


def test_points_are_a_function_of_seed_number_and_history(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        study = opened(tmp_path / name, plan(count=13))
        points = []
        while (claim := study.claim()) is not None:
            points.append(claim.point)
            claim.end("done", {"1": claim.point["optim.lr"]})
            if name == "b" and len(points) in (4, 11):  # as if it had been killed
                study = opened(tmp_path / name, plan(count=13))
        found.append(points)
    assert found[0] == found[1] and len(found[0]) == 13, "ten at random, then as TPE proposes"
    assert len({point["optim.lr"] for point in found[0]}) == 13


def test_a_trial_given_back_keeps_its_point(tmp_path: Path) -> None:
    study = opened(tmp_path, plan())
    first = study.claim()
    assert first is not None
    second = study.claim()
    assert second is not None and second.number == 1
    first.give_back()
    again = opened(tmp_path, plan()).claim()
    assert again is not None and (again.number, again.point) == (0, first.point)
    again.give_back()
    second.give_back()


def test_whoever_lost_his_process_loses_the_trial(tmp_path: Path) -> None:
    study = opened(tmp_path, plan(count=1))
    claim = study.claim()
    assert claim is not None and study.claim() is None and not study.finished()
    worker = {"host": platform.node(), "pid": GONE, "born": 0.0}
    claim._trial.set_user_attr("worker", worker)  # type: ignore[attr-defined]
    taken = study.claim()
    assert taken is not None and (taken.number, taken.point) == (0, claim.point)
    assert study.all()[0].worker["pid"] == os.getpid()
    taken.end("done", {"1": 2.5})
    claim.end("failed", {}, "too late")  # the other's word counts
    assert [(t.state, t.values) for t in study.all()] == [("done", {"1": 2.5})]
    assert study.finished()


def test_another_machine_loses_it_when_its_heart_stands_still(tmp_path: Path, grace: None) -> None:
    url = f"sqlite:///{tmp_path}/shared.sqlite"
    study = opened(tmp_path, plan(count=1), url)
    claim = study.claim()
    assert claim is not None
    worker = {"host": "elsewhere", "pid": os.getpid(), "born": 0.0}
    claim._trial.set_user_attr("worker", worker)  # type: ignore[attr-defined]
    assert study.claim() is None, "its heart beats"
    claim._ended.set()  # type: ignore[attr-defined]
    with sqlite3.connect(tmp_path / "shared.sqlite") as database:
        database.execute("update trial_heartbeats set heartbeat = datetime('now', '-59 seconds')")
    assert study.claim() is None, "within the time of grace"
    with sqlite3.connect(tmp_path / "shared.sqlite") as database:
        database.execute("update trial_heartbeats set heartbeat = datetime('now', '-62 seconds')")
    database.close()
    taken = study.claim()
    assert taken is not None and (taken.number, taken.point) == (0, claim.point)
    taken.give_back()


def test_one_who_never_signed_is_given_time_where_others_may_be(tmp_path: Path) -> None:
    for shared in (False, True):
        (tmp_path / str(shared)).mkdir()
        url = f"sqlite:///{tmp_path}/shared.sqlite" if shared else None
        study = opened(tmp_path / str(shared), plan(count=1), url)
        with quiet():
            study.study.ask()  # killed before it signed
        claim = study.claim()
        assert (claim is None) is shared
        if claim is not None:
            claim.give_back()


def test_a_grid_in_a_database_has_the_points_of_one_in_files(tmp_path: Path) -> None:
    made = plan("grid", 3)
    study, files = opened(tmp_path, made), Files(tmp_path, made)
    points = []
    for trials in (study, files):
        claims = [trials.claim() for _ in range(3)]
        assert trials.claim() is None
        points.append([claim.point for claim in claims if claim is not None])
        for claim in claims:
            assert claim is not None
            claim.end("done", {"1": 1.0})
        assert trials.finished()
    assert points[0] == points[1] == [made.point(n) for n in range(3)]
    assert [t.point for t in study.all()] == points[0]


def test_a_trial_too_many_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = opened(tmp_path, plan(count=1), f"sqlite:///{tmp_path}/shared.sqlite")
    with quiet():
        study.study.ask()  # another machine takes the last one between our look and our claim
    monkeypatch.setattr(study, "_trials", list)
    assert study.claim() is None
    monkeypatch.undo()
    assert len(study.all()) == 1


@pytest.mark.parametrize("kind", ["files", "database"])
def test_deaths_are_counted_and_failures_can_be_tried_again(tmp_path: Path, kind: str) -> None:
    made = plan("grid", 1)
    trials: Any = Files(tmp_path, made) if kind == "files" else opened(tmp_path, made)
    claim = trials.claim()
    assert trials.bury(GONE, "SIGKILL") is None, "not one of ours"
    assert (
        trials.bury(os.getpid(), "SIGKILL")
        == "trial 1: its process died of SIGKILL; it is tried again"
    )
    said = trials.bury(os.getpid(), "SIGSEGV")
    assert said == "trial 1 failed: its process died of SIGSEGV, 2 times"
    claim.give_back()
    assert trials.finished() and trials.claim() is None
    assert trials.retry() == 1 and not trials.finished()
    claim = trials.claim()
    assert claim is not None and claim.number == 0 and claim.point == made.point(0)
    claim.end("done", {"1": 1.0})
    assert [trial.state for trial in trials.all()] == ["done"] and trials.finished()


def test_what_falls_behind_is_pruned(tmp_path: Path) -> None:
    study = opened(tmp_path, plan(count=5, prune="median", length=4))
    for place in range(4):
        claim = study.claim()
        assert claim is not None
        assert not any(claim.report(step, 1.0 + place / 10) for step in (1, 2, 3))
        claim.end("done", {"1": 1.0})
    last = study.claim()
    assert last is not None
    assert not last.report(0, 9.0), "the first quarter is left alone"
    assert last.report(2, 9.0) and last.report(2, 9.0)
    last.end("pruned", {}, "behind")
    assert study.all()[-1].state == "pruned" and study.finished()


def test_a_plan_is_known_to_the_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.sqlite"
    opened(tmp_path, plan(), url)
    assert plan_in(url, "mine") == plan()
    with pytest.raises(RunError, match="no such sweep in the database: yours"):
        plan_in(url, "yours")
    with pytest.raises(RunError, match="another sweep called mine"):
        opened(tmp_path, plan(count=9), url)


def test_passwords_are_not_kept(tmp_path: Path) -> None:
    kept = public("postgresql://me:secret@host/name")
    assert kept == "postgresql://me:***@host/name"
    with pytest.raises(RunError, match="is not kept with the sweep"):
        opened(tmp_path, plan(), kept)
    with pytest.raises(ConfigError, match="no address of a database"):
        public("somewhere")
    with pytest.raises(Unsupported, match="cannot use the database"):
        opened(tmp_path, plan(), f"sqlite:///{tmp_path}/no/such/folder/x.sqlite")


def test_a_missing_driver_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(Unsupported, match="needs a driver that is not installed") as caught:
        opened(tmp_path, plan(), "postgresql+psycopg2://me@localhost/none")
    assert "pip install psycopg2" in str(caught.value.fix)


def test_a_database_that_stays_away_ends_with_words(monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlalchemy

    from surefoot.errors import OutOfResources

    monkeypatch.setattr(search, "PAUSE", 0.0)
    tried = []

    def call() -> None:
        tried.append(1)
        raise sqlalchemy.exc.OperationalError("select", {}, OSError("gone"))

    with pytest.raises(OutOfResources, match="does not answer"):
        search._stubborn(call)
    assert len(tried) == search.TRIES


def test_a_trial_tried_again_takes_no_number_of_others(tmp_path: Path) -> None:
    """Or the last points would never be tried, and the sweep never end."""
    study, seen = opened(tmp_path, plan(count=3)), []
    claim = study.claim()
    assert claim is not None
    claim.end("failed", {}, "by accident")
    assert study.retry() == 1, "before the other two have begun"
    while (claim := study.claim()) is not None and len(seen) < 9:
        seen.append(claim.number)
        claim.end("done", {"1": 1.0})
    assert sorted(seen) == [0, 1, 2] and study.finished()
    assert [(t.number, t.state) for t in study.all()] == [(0, "done"), (1, "done"), (2, "done")]


def test_who_lost_a_trial_does_not_give_it_back(tmp_path: Path) -> None:
    study = opened(tmp_path, plan(count=1))
    claim = study.claim()
    assert claim is not None
    taker = {"host": "elsewhere", "pid": 1, "born": 0.0}
    claim._trial.set_user_attr("worker", taker)  # type: ignore[attr-defined]
    claim.give_back()
    assert [trial.state for trial in study.all()] == ["running"]


def test_the_database_stays_in_its_folder_whatever_that_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "what? 50%41 #1"
    folder.mkdir()
    opened(folder, plan())
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert (folder / "trials.sqlite").is_file()


@pytest.mark.parametrize("name", ["password", "sslpassword", "passwd", "client_secret"])
def test_passwords_in_the_query_of_an_address_are_not_kept(tmp_path: Path, name: str) -> None:
    kept = public(f"postgresql://me@host/name?{name}=hunter2&sslmode=require")
    assert "hunter2" not in kept and "sslmode=require" in kept
    with pytest.raises(RunError, match="is not kept with the sweep"):
        opened(tmp_path, plan(), kept)


@pytest.mark.parametrize(
    "url", ["postgresql//me:hunter2@host/x", "postgresql://me:hunter2@host:x/y"]
)
def test_a_wrong_address_is_told_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="no address of a database") as caught:
        public(url)
    assert "hunter2" not in str(caught.value)
