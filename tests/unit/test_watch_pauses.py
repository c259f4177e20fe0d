"""Memory hygiene: nothing grows, and the garbage collector stays out of the steps."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import pytest

import surefoot as package
from surefoot.engine.memory import set_aside
from surefoot.engine.watch.pauses import Pauses

TEXT = str(Path(__file__).parents[1] / "fixtures" / "shakespeare.txt")


class Ring:
    def __init__(self) -> None:
        self.me = self


class Clock:
    """Every look at it takes a millisecond."""

    now = 100.0

    def perf_counter(self) -> float:
        self.now += 0.001
        return self.now


def test_what_is_there_is_not_looked_through_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("surefoot.engine.watch.pauses.time", clock)
    gc.unfreeze()
    with Pauses() as pauses:
        assert gc.get_freeze_count() > 10_000
        ring = weakref.ref(Ring())
        pauses.boundary()
        assert ring() is not None, "not yet: it was looked at just now"
        clock.now += 10.0
        pauses.boundary()
        assert ring() is None
        assert pauses.longest == pytest.approx(0.001) and 0 < pauses.seconds < 1
    told = pauses.seconds
    gc.collect()
    assert pauses.seconds == told and gc.get_freeze_count() == 0


def test_what_a_host_has_frozen_stays_frozen_and_no_garbage_with_it() -> None:
    gc.freeze()
    before = gc.get_freeze_count()
    with Pauses(), set_aside():
        ring = weakref.ref(Ring())
    assert gc.get_freeze_count() == before > 10_000
    gc.collect()
    assert ring() is None


@pytest.mark.parametrize(
    "steps", [240, pytest.param(10_000, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_memory_does_not_grow(steps: int, tmp_path: Path) -> None:
    """Evaluating, sampling, saving and recording are part of it."""
    result = package.train(
        "charlm", preset="tiny", path=TEXT, runs=tmp_path, quiet=True, max_steps=steps,
        **{
            "cadence.validate_every": 50, "cadence.sample_every": 100, "cadence.save_every": 100,
            "track.report": False, "track.tensorboard": False, "machine.micro_batch_size": 4,
        },
    )  # fmt: skip
    lines = (result.folder / "system.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    held = {row["step"]: row["memory_bytes"] for row in rows}
    early = max(size for step, size in held.items() if step <= steps // 2)
    assert held[steps] - early < 4e6
    assert all(row["gc_s"] >= 0 for row in rows)
