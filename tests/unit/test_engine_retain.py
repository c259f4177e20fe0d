"""Which checkpoints stay, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surefoot.config.schema import Keep, RunConfig, Train
from surefoot.engine.retain import apply, needed, pins, reasons
from surefoot.engine.state import Payload
from surefoot.engine.store import Checkpoint, Store


def checkpoint(
    step: int, metric: float | None = None, sequence: int | None = None, slim: bool = False
) -> Checkpoint:
    manifest = {
        "step": step, "sequence": step if sequence is None else sequence, "metric": metric,
        "slim": slim, "files": {"state.json": {"size": 100, "xxh3_128": ""}},
    }  # fmt: skip
    return Checkpoint(Path(f"step-{step:09d}"), manifest)


def kept(found: list[Checkpoint], pinned: Any = (), **keep: Any) -> dict[int, list[str]]:
    why = reasons(found, Keep(**keep), pinned)
    return {c.step: why[c.sequence] for c in found if c.sequence in why}


def test_the_newest_two_and_the_best_stay() -> None:
    found = [checkpoint(s, m) for s, m in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 2.5))]
    assert kept(found) == {20: ["best"], 30: ["last"], 40: ["last"]}
    assert kept(found, best=2, last=3) == {
        20: ["last", "best"], 30: ["last", "best"], 40: ["last"],
    }  # fmt: skip


def test_newest_means_saved_last() -> None:
    found = [checkpoint(50, sequence=1), checkpoint(10, sequence=2), checkpoint(20, sequence=3)]
    assert set(kept(found)) == {10, 20}


def test_equal_values_keep_the_earlier() -> None:
    found = [checkpoint(s, 1.0) for s in (10, 20, 30, 40)]
    assert kept(found)[10] == ["best"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), None])
def test_what_is_no_number_is_never_best(bad: float | None) -> None:
    found = [checkpoint(10, 2.0), checkpoint(20, bad), checkpoint(30), checkpoint(40)]
    assert kept(found) == {10: ["best"], 30: ["last"], 40: ["last"]}


def test_milestones_and_pins_stay() -> None:
    found = [checkpoint(s) for s in (0, 10, 20, 25, 30, 40)]
    assert set(kept(found, milestones=10)) == {10, 20, 30, 40}, "step 0 is no milestone"
    assert kept(found, pinned={0, 25}) == {
        0: ["needed"], 25: ["needed"], 30: ["last"], 40: ["last"],
    }  # fmt: skip


def test_slim_ones_do_not_count_as_newest() -> None:
    found = [checkpoint(10), checkpoint(20), checkpoint(30, 1.0, slim=True)]
    assert kept(found) == {10: ["last"], 20: ["last"], 30: ["best"]}


def test_a_budget_takes_milestones_first_then_bests_and_never_the_newest_two() -> None:
    found = [checkpoint(s, m) for s, m in ((10, 5.0), (20, 1.0), (30, 4.0), (40, 3.0))]
    assert set(kept(found, milestones=10, max_disk="1KB")) == {10, 20, 30, 40}
    assert set(kept(found, milestones=10, max_disk="300B")) == {20, 30, 40}
    assert set(kept(found, milestones=10, max_disk="200B")) == {30, 40}
    assert set(kept(found, milestones=10, max_disk="1B")) == {30, 40}
    assert set(kept(found, pinned={10}, max_disk="1B")) == {10, 30, 40}


points = st.tuples(st.integers(0, 30), st.none() | st.floats(-5, 5), st.booleans())


@given(st.lists(points, max_size=12), st.integers(2, 4), st.integers(0, 3), st.integers(0, 7))
def test_whatever_is_asked_two_that_can_go_on_stay(
    drawn: list[tuple[int, float | None, bool]], last: int, best: int, milestones: int
) -> None:
    found = [checkpoint(s, m, i, slim) for i, (s, m, slim) in enumerate(drawn)]
    for budget in (None, "1B", "250B"):
        keep = Keep(last=last, best=best, milestones=milestones, max_disk=budget)
        why = reasons(found, keep)
        newest = [c.sequence for c in found if c.resumable][-2:]
        assert set(newest) <= set(why)
        left = [c for c in found if c.sequence in why]
        assert set(reasons(left, keep)) == set(why), "what stays would stay again"


def test_what_learners_may_still_need() -> None:
    late = {"a": (250, {"best": [30, 1.0]}), "b": (99, {})}
    rollback = Train(nonfinite="rollback", rollback_every=100)
    assert needed(RunConfig(train=rollback), late) == {0, 200}
    assert needed(RunConfig(), late) == set()
    assert needed(RunConfig(train=Train(patience=3)), late) == {30}
    assert needed(RunConfig(train=Train(patience=3, restore_best=False)), late) == set()


def test_pins_of_a_run_at_rest(tmp_path: Path) -> None:
    policy = RunConfig(train=Train(nonfinite="rollback", rollback_every=4))
    store = Store(tmp_path, "run")
    assert pins(store, policy) == set()
    for step in (4, 7, 9):
        small = {"learners": {"main": {"step": step, "memory": {}}}}
        newest = store.save(step, Payload({}, small))
    assert pins(store, policy) == {8}
    (newest.path / "state.json").write_bytes(b"{}")
    assert pins(store, policy) == {4}, "the newest that can be read"


def test_applying_deletes_and_slims(tmp_path: Path) -> None:
    store = Store(tmp_path, "run")
    tensors = {"w": torch.ones(2)}
    files = {"main.model.safetensors": tensors, "main.optim.safetensors": tensors}
    for step, metric in ((10, 1.0), (20, 2.0), (30, 3.0), (40, 4.0)):
        store.save(step, Payload(files, {"learners": {}}), metric=metric)
    (tmp_path / ".removed-step-000000001").mkdir()
    apply(store, Keep())
    assert [(c.step, c.resumable) for c in store.checkpoints()] == [
        (10, False), (30, True), (40, True),
    ]  # fmt: skip
    assert not list(tmp_path.glob(".*")), "what an earlier call left half deleted goes too"
    before = sorted(tmp_path.rglob("*"))
    apply(store, Keep())
    assert sorted(tmp_path.rglob("*")) == before
