"""A run is a pure function of configuration, data and step: held against everything that tries."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from surefoot.data.prefetch import Prefetch
from surefoot.engine import TrainState, World, steps
from surefoot.engine.state import Payload

WORLD = World(torch.device("cpu"))
LAST = 12


def bits(state: TrainState) -> dict[str, bytes]:
    """Everything that a checkpoint would hold, as bytes by name."""
    payload = state.payload()
    found = {
        f"{file}:{name}": tensor.numpy().tobytes()
        for file, group in payload.tensors.items()
        for name, tensor in group.items()
    }
    return found | {"small": repr(payload.small).encode()}


def play(state: TrainState, data: Any, until: int, seed: int = 1) -> Iterator[tuple[float, float]]:
    for report in steps(state, data, seed, WORLD):
        reading = next(iter(report.readings.values()))
        yield reading.loss, reading.grad_norm
        if report.step >= until:
            return


def fresh(toy: Any, **changes: Any) -> TrainState:
    return TrainState({"main": toy.learner(limit=LAST, **changes)})


def test_resume_is_exact_at_every_step(toy: Any) -> None:
    whole = fresh(toy)
    readings, saved = [], [copy.deepcopy(whole.payload())]
    for reading in play(whole, toy.data(), LAST):
        readings.append(reading)
        saved.append(copy.deepcopy(whole.payload()))
    for k in range(LAST):
        again = fresh(toy, seed=99)  # other weights, to be overwritten
        again.restore(Payload(saved[k].tensors, copy.deepcopy(saved[k].small)))
        torch.rand(7), np.random.rand(3), random.random()
        assert list(play(again, toy.data(), LAST)) == readings[k:], f"resumed at step {k}"
        assert bits(again) == bits(whole), f"resumed at step {k}"


@pytest.mark.parametrize("ema", [None, 0.9])
def test_looking_changes_nothing(toy: Any, ema: float | None) -> None:
    quiet, noisy = fresh(toy), fresh(toy)
    for state in (quiet, noisy):
        state.learners["main"].average_with(ema)
    alone = list(play(quiet, toy.data(), LAST))
    readings = []
    for reading in play(noisy, toy.data(), LAST):
        readings.append(reading)
        with noisy.learners["main"].evaluating() as model:
            model(torch.rand(3, 20))
            np.random.rand(5)
    assert readings == alone
    assert bits(noisy) == bits(quiet)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_prefetching_changes_nothing(toy: Any, threads: int) -> None:
    plain, ahead = fresh(toy), fresh(toy)
    expected = list(play(plain, toy.data(), LAST))
    prefetch = Prefetch(toy.data(), threads, 3)
    try:
        assert list(play(ahead, prefetch, LAST)) == expected
    finally:
        prefetch.close()
    assert bits(ahead) == bits(plain)


def test_beside_is_alone(toy: Any) -> None:
    alone = fresh(toy)
    list(play(alone, toy.data(), LAST))
    both = TrainState(
        {"other": toy.learner(limit=LAST, width=32, seed=3), "main": toy.learner(limit=LAST)}
    )
    list(play(both, toy.data(), LAST))
    mine = {k: v for k, v in bits(both).items() if k.startswith("main")}
    assert mine == {k: v for k, v in bits(alone).items() if k != "small"}


def test_a_late_learner_catches_up_on_the_same_batches(toy: Any) -> None:
    together = TrainState({"a": toy.learner(limit=LAST), "b": toy.learner(limit=LAST, width=8)})
    list(play(together, toy.data(), LAST))
    late = TrainState({"a": toy.learner(limit=LAST), "b": toy.learner(limit=LAST, width=8)})
    alone = TrainState({"a": late.learners["a"]})
    list(play(alone, toy.data(), 7))
    steps_seen = [r.step for r in steps(late, toy.data(), 1, WORLD)]
    assert steps_seen == list(range(1, LAST + 1))
    assert bits(late) == bits(together)


def test_the_split_into_micro_batches_changes_no_mask_and_no_example(toy: Any) -> None:
    losses = {}
    for micro in (8, 4, 3, 1):
        state = fresh(toy, micro=micro)
        state.learners["main"].loss = lambda m, b: type("L", (), {
            "sum": ((m(b.fields["x"]) - b.fields["y"]) ** 2).sum(), "parts": {}})()  # fmt: skip
        losses[micro] = [loss for loss, _ in play(state, toy.data(), LAST)]
    for micro in (4, 3, 1):
        assert losses[micro] == pytest.approx(losses[8], rel=1e-4), f"micro-batches of {micro}"


def test_another_seed_is_another_run(toy: Any) -> None:
    first = list(play(fresh(toy), toy.data(1), LAST, seed=1))
    second = list(play(fresh(toy), toy.data(2), LAST, seed=2))
    assert first != second
