"""Teacher forcing: a function of the step and of what is remembered."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from surefoot.engine.kit.curriculum import Growth, TeacherForcing


def test_constant_stays() -> None:
    assert {TeacherForcing("constant", first=0.7).level(k, {}) for k in (0, 10, 10**6)} == {0.7}


@pytest.mark.parametrize("shape", ["linear", "exponential", "inverse-sigmoid"])
def test_the_others_fall_from_first_to_last(shape: Any) -> None:
    forcing = TeacherForcing(shape, first=0.9, last=0.1, steps=100, start=50)
    levels = [forcing.level(step, {}) for step in range(300)]
    assert levels[:50] == [0.9] * 50
    assert levels[50] == pytest.approx(0.9, abs=0.01)
    assert all(a >= b for a, b in pairwise(levels))
    assert levels[150] == pytest.approx(0.1, abs=0.01)
    assert forcing.level(10**9, {}) == pytest.approx(0.1)


def test_values_by_hand() -> None:
    assert TeacherForcing("linear", steps=100).level(25, {}) == 0.75
    assert TeacherForcing("exponential", steps=100).level(20, {}) == pytest.approx(1 / 2.718281828)
    assert TeacherForcing("inverse-sigmoid", steps=100).level(50, {}) == 0.5


def test_it_begins_when_the_loss_is_stable_and_remembers_when() -> None:
    forcing = TeacherForcing("linear", steps=10, start=None, window=4, tolerance=0.05)
    memory: dict[str, Any] = {}
    losses = [8.0 / (step + 1) for step in range(10)] + [0.8] * 20
    for step, loss in enumerate(losses):
        forcing.observe(step, loss, memory)
    start = memory["teacher_forcing"]["start"]
    assert 12 < start < 20, "not while it falls, and not long after"
    assert forcing.level(start, memory) == 1.0
    assert forcing.level(start + 5, memory) == 0.5
    assert memory["teacher_forcing"]["probability"] == forcing.level(30, memory)


def test_what_is_remembered_survives_json_and_is_small() -> None:
    forcing = TeacherForcing("linear", start=None, window=3, tolerance=1e-6)
    memory: dict[str, Any] = {}
    for step in range(50):
        forcing.observe(step, 1.0 / (step + 3), memory)
        memory = json.loads(json.dumps(memory))
    assert memory["teacher_forcing"]["losses"] == [1.0 / (step + 3) for step in range(44, 50)]


def test_the_context_doubles_until_it_is_whole() -> None:
    growth = Growth(30)
    assert [growth.level(step, {}) for step in (0, 9, 10, 19, 20, 29, 30, 10**9)] == [
        1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 2, 1 / 2, 1.0, 1.0,
    ]  # fmt: skip
