"""Saving in the background: copies first, reports what fails, tries again."""

from __future__ import annotations

import copy
import errno
import itertools
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from surefoot.config.schema import Keep
from surefoot.engine import loan
from surefoot.engine import saver as module
from surefoot.engine.saver import Pace, Saver
from surefoot.engine.state import Payload, TrainState
from surefoot.engine.store import Store
from surefoot.errors import OutOfResources, RunError


@pytest.fixture
def state(toy: Any) -> TrainState:
    return TrainState({"main": toy.learner()})


@pytest.fixture
def saver(tmp_path: Path) -> Saver:
    return Saver(Store(tmp_path / "checkpoints", "run"), Keep(), 10, lambda: None)


def test_a_folder_that_is_gone_is_no_full_disk(tmp_path: Path, state: TrainState) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    saver = Saver(Store(run / "checkpoints", "run"), Keep(), 10, lambda: None)
    run.rename(tmp_path / "elsewhere")
    saver.save(state, places={})
    saver.wait()
    assert "the folder of the run is gone; training goes on" in (saver.complaint() or "")
    with pytest.raises(RunError, match="deleted or moved while it was trained"):
        saver.finish()


@pytest.mark.parametrize(("free", "said"), [(0, " for more files (inodes)"), (5, "")])
def test_a_disk_with_too_many_files_is_told_from_a_full_one(
    saver: Saver, state: TrainState, monkeypatch: pytest.MonkeyPatch, free: int, said: str
) -> None:
    real = os.statvfs(saver.store.folder.parent)
    facts = {k: getattr(real, k) for k in dir(real) if k.startswith("f_")}
    monkeypatch.setattr(
        os, "statvfs", lambda _: SimpleNamespace(**{**facts, "f_files": 9, "f_favail": free})
    )
    saver._before_commit = refuse(OSError(errno.ENOSPC, "No space left on device"))
    saver.save(state, places={})
    with pytest.raises(OutOfResources) as told:
        saver.finish()
    what = f"checkpoint not saved: No space left on device{said}; older ones are whole"
    assert told.value.what == what


def test_pace_in_steps() -> None:
    pace = Pace(10)
    assert [s for s in range(35) if pace.due(s, 0.0)] == [0, 10, 20, 30]
    assert not any(Pace(0).due(s, 1e9) for s in range(100))


def test_pace_in_time() -> None:
    pace = Pace("5min", last_time=1000.0)
    assert not pace.due(7, 1299.0) and pace.due(7, 1300.0)


@pytest.mark.parametrize(("cost", "interval"), [(0.001, 15), (0.5, 50), (60.0, 900)])
def test_auto_pace_spends_one_percent(cost: float, interval: float) -> None:
    assert Pace("auto", cost=cost).interval == interval


def change(learner: Any) -> None:
    """Do what a step does to the state."""
    learner.model.seen += 1  # as a forward pass does
    learner.memory["best"][1] += 1
    for parameter in learner.parameters:
        parameter.grad = torch.ones_like(parameter)
    learner.update()


@pytest.fixture
def learner(state: TrainState) -> Any:
    found: Any = state.learners["main"]
    found.model.register_buffer("seen", torch.zeros(1))
    found.memory["best"] = [1, 2.0]
    change(found)  # so that there are moments
    found.average_with(0.9)
    return found


def differences(saver: Saver, expected: Payload) -> list[str]:
    found = saver.store.checkpoints()[-1].read()
    assert found.small == expected.small and found.tensors.keys() == expected.tensors.keys()
    pairs = [(f, n, t) for f, group in expected.tensors.items() for n, t in group.items()]
    return [n for f, n, t in pairs if not torch.equal(found.tensors[f][n], t)]


@pytest.mark.parametrize("early", [True, False])
def test_a_save_is_the_state_of_its_moment(
    saver: Saver, state: TrainState, learner: Any, early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = itertools.count()
    monkeypatch.setattr(module.time, "monotonic", lambda: 0.1 * next(moments))
    gate = threading.Event()
    saver._before_commit = lambda: assert_(gate.wait(600))
    expected = copy.deepcopy(state.payload())
    saver.save(state, places={})
    if early:  # the update comes before anything is written
        change(learner)
        gate.set()
        saver.wait()
    else:
        gate.set()
        saver.wait()
        change(learner)
    saver.finish()
    assert not differences(saver, expected)
    assert bool(saver._room) == early, "memory for copies is kept only where it was needed"
    assert 0 < saver.stall < 5


def test_what_the_next_update_comes_too_soon_for_is_copied_ahead(
    saver: Saver, state: TrainState, learner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loan, "PIECE", 64)
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    size = sum(t.nbytes for group in state.payload().tensors.values() for t in group.values())
    shares = []
    for seconds in (8.0, 1.0, 8.0):  # that a step takes; all is written in 2.5 s
        for _ in range(2):
            now[0] += seconds
            assert not saver.due(3)
        saver._rate = size / 2.5
        saver.save(state, places={})
        saver.wait()
        change(learner)
        shares.append(sum(t.nbytes for t in saver._room.values()) / size)
    assert shares == pytest.approx([0, 1 - 0.8 * 1 / 2.5, 0], abs=0.05)


def test_saves_beside_steps_are_whole(
    saver: Saver, state: TrainState, learner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loan, "PIECE", 64)
    for step in range(2, 42):
        learner.step = step
        expected = copy.deepcopy(state.payload())
        saver.save(state, places={})
        for _ in range(step % 4):  # beside the thread that writes
            change(learner)
        saver.wait()
        assert not differences(saver, expected), step
    assert saver.complaint() is None


def test_a_loan_to_a_save_that_failed_costs_the_next_update_nothing(
    saver: Saver, state: TrainState, learner: Any
) -> None:
    saver._before_commit = refuse(OSError(errno.EIO, "Input/output error"))
    saver.save(state, places={})
    saver.wait()
    lent = learner.before_change.args[0]
    change(learner)
    assert not lent.used and "Input/output error" in str(saver.complaint())


def assert_(true: bool) -> None:
    assert true


def refuse(error: Exception) -> Any:
    def refusal() -> None:
        raise error

    return refusal


def test_a_full_disk_is_told_and_tried_again(
    saver: Saver, state: TrainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    saver._before_commit = refuse(OSError(errno.ENOSPC, "No space left on device"))
    saver.save(state)
    saver.wait()
    told = saver.complaint()
    assert told is not None and "No space left on device; older ones are whole" in told
    assert saver.complaint() is None, "told once"
    assert not saver.due(3)
    now[0] += module.RETRY
    assert saver.due(3)
    with pytest.raises(OutOfResources, match="checkpoint not saved: No space left on device"):
        saver.finish()
    saver._before_commit = lambda: None
    saver.save(state, places={})
    assert not saver.due(3), "while the second attempt is under way there is no third"
    saver.finish()
    assert len(saver.store.checkpoints()) == 1 and not saver.due(3)


def test_too_little_room_is_noticed_before_writing(
    saver: Saver, state: TrainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Usage)
    saver.save(state)
    with pytest.raises(OutOfResources, match=r"No space|needs 0\.1 MB"):
        saver.finish()
    assert not saver.store.folder.exists()


def test_any_other_failure_is_told_and_not_swallowed(saver: Saver, state: TrainState) -> None:
    saver._before_commit = refuse(ValueError("a mistake of ours"))
    saver.save(state)
    saver.wait()
    assert "ValueError: a mistake of ours" in str(saver.complaint())
    with pytest.raises(ValueError, match="a mistake of ours"):
        saver.finish()


def test_what_cannot_be_tidied_is_no_failed_save(
    saver: Saver, state: TrainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(module.retain, "apply", fail)
    saver.save(state, places={})
    saver.finish()
    assert saver.complaint() == "an old checkpoint cannot be removed: Input/output error"
    assert len(saver.store.checkpoints()) == 1


def test_old_ones_go_and_pinned_ones_stay(saver: Saver, state: TrainState) -> None:
    learner = state.learners["main"]
    for step in (1, 2, 3, 4):
        learner.step, saver.pinned = step, {2}
        saver.save(state, metric=float(step), places={})
    saver.finish()
    assert [(c.step, c.resumable) for c in saver.store.checkpoints()] == [
        (1, False), (2, True), (3, True), (4, True),
    ]  # fmt: skip
