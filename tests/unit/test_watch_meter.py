"""Where the time goes, by a clock that the test turns."""

from __future__ import annotations

import contextlib
from itertools import pairwise
from typing import Any

import pytest
import torch

from surefoot.data.batch import Batch
from surefoot.engine import memory
from surefoot.engine.watch import meter as room
from surefoot.engine.watch.meter import Meter, Timed, sparse


class Clock:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(room, "time", made)
    return made


def test_each_second_is_counted_once(clock: Clock) -> None:
    meter = Meter()

    class Slow:
        batch_size = 4

        def batch(self, step: int, start: int = 0, size: int | None = None) -> Batch:
            clock.now += 2
            return Batch({}, weight=step)

    data = Timed(Slow(), meter.data)
    assert data.batch_size == 4
    for step in range(1, 4):
        assert data.batch(step).weight == step
        clock.now += 5
        meter.count(10, {"main": 5.0})
    with meter.evaluate:
        clock.now += 7
    with contextlib.suppress(OSError), meter.save:
        clock.now += 1
        raise OSError
    assert meter.rate() == 30 / 21  # evaluating and saving are left out
    found = meter.system(torch.device("cpu"))
    assert found.pop("memory_bytes") > 10_000_000
    assert found == {
        "steps": 3, "data_s": 6.0, "compute_s": 15.0, "evaluate_s": 7.0, "save_s": 1.0,
        "record_s": 0.0,
    }  # fmt: skip
    clock.now += 3
    again: dict[str, Any] = meter.system(torch.device("cpu"))
    assert (again["steps"], again["data_s"], again["compute_s"]) == (0, 0.0, 3.0)


def test_the_turns_of_several_learners_are_counted_apart() -> None:
    meter = Meter()
    meter.count(10, {"a": 1.0, "b": 2.0})
    meter.count(10, {"b": 2.5})
    assert meter.system(torch.device("cpu"))["turns_s"] == {"a": 1.0, "b": 4.5}
    assert meter.system(torch.device("cpu"))["turns_s"] == {"a": 0.0, "b": 0.0}


def test_kept_numbers_thin_out() -> None:
    kept = [n for n in range(1, 1_000_000) if sparse(n, 8)]
    assert kept[:256] == list(range(1, 257)) and len(kept) < 2000
    assert max(b / a for a, b in pairwise(kept[255:])) < 1.01


def test_a_control_group_bounds_what_may_be_taken(monkeypatch: Any) -> None:
    monkeypatch.setattr(memory, "allowed", lambda: 1000)
    assert memory.available() == 1000
    monkeypatch.setattr(memory, "allowed", lambda: None)
    assert memory.available() > 1000
