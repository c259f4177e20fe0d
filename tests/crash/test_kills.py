"""Killed before any call that changes the run's folder, a run goes on and ends the same."""

from __future__ import annotations

import random
from typing import Any

import pytest
from trials import CONDITIONS, RECIPES, differences, go_on, killed_at, spread, undisturbed

QUICK = {"plain": 40, "charlm": 12}  # calls tried of each run in the quick suite; others 6


@pytest.mark.parametrize("name", CONDITIONS)
def test_killed_before_some_calls(stage: Any, tally: Any, name: str) -> None:
    calls, expected = undisturbed(stage, name)
    trial = killed_at(CONDITIONS[name], expected)
    tally.check(stage.each(trial, spread(calls, QUICK.get(name, 6))))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONDITIONS)
def test_killed_before_every_call(stage: Any, tally: Any, name: str) -> None:
    calls, expected = undisturbed(stage, name)
    trial = killed_at(CONDITIONS[name], expected)
    tally.check(stage.each(trial, range(1, calls + 1), thin=name != "plain"))


def recoveries(calls: int, count: int) -> list[tuple[int, int]]:
    """Pairs of calls: the run dies before the first, the process that goes on before the second."""
    draw = random.Random(7)
    return [(draw.randint(2, calls), draw.randint(1, 60)) for _ in range(count)]


def test_killed_while_recovering(stage: Any, tally: Any) -> None:
    calls, expected = undisturbed(stage, "plain")
    tally.check(stage.each(killed_at(CONDITIONS["plain"], expected), recoveries(calls, 14)))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONDITIONS)
def test_killed_while_recovering_often(stage: Any, tally: Any, name: str) -> None:
    calls, expected = undisturbed(stage, name)
    trial = killed_at(CONDITIONS[name], expected)
    tally.check(stage.each(trial, recoveries(calls, 100), thin=True))


def test_killed_ten_times_in_a_row(stage: Any, tally: Any) -> None:
    _, expected = undisturbed(stage, "plain")
    draw = random.Random(11)
    cases = [tuple(draw.randint(30, 120) for _ in range(10)) for _ in range(2)]
    tally.check(stage.each(killed_at(CONDITIONS["plain"], expected), cases))


@pytest.mark.parametrize("name", ["plain", "two learners"])
def test_killed_between_micro_batches(stage: Any, tally: Any, name: str) -> None:
    _, expected = undisturbed(stage, name)
    condition = CONDITIONS[name]

    def trial(zygote: Any, runs: Any, step: int) -> tuple[int, str | None]:
        outcome = condition.play(zygote, runs, kill_at=step)
        if not outcome.killed:
            return step, f"was not killed, exit code {outcome.code}\n{outcome.error}"
        wrong = go_on(lambda runs: condition.play(zygote, runs), runs)
        return step, wrong or differences(expected, runs / "trial")

    tally.check(stage.each(trial, range(0 if name == "plain" else 1, 12, 2)))


@pytest.mark.parametrize("name", ["plain", "prefetch"])
def test_stopped_by_a_signal_after_each_step(stage: Any, tally: Any, name: str) -> None:
    _, expected = undisturbed(stage, name)
    condition = CONDITIONS[name]

    def trial(zygote: Any, runs: Any, step: int) -> tuple[int, str | None]:
        outcome = condition.play(zygote, runs, stop_at=step)
        if outcome.code != (75 if step < 12 else 0):
            return step, f"exit code {outcome.code}\n{outcome.error}"
        wrong = go_on(lambda runs: condition.play(zygote, runs), runs)
        return step, wrong or differences(expected, runs / "trial", "steps kept")

    tally.check(stage.each(trial, range(1, 13)))


def test_threads_that_fetch_ahead_may_change_at_each_start(stage: Any, tally: Any) -> None:
    _, expected = undisturbed(stage, "plain")
    condition = CONDITIONS["plain"]

    def trial(zygote: Any, runs: Any, threads: tuple[int, ...]) -> tuple[Any, str | None]:
        for step, count in zip((3, 6, 9), threads):
            changed = {"machine.prefetch_threads": count}
            outcome = condition.play(zygote, runs, kill_at=step, settings=changed)
            if not outcome.killed:
                return threads, f"was not killed, exit code {outcome.code}\n{outcome.error}"
        wrong = go_on(lambda runs: condition.play(zygote, runs), runs)
        return threads, wrong or differences(expected, runs / "trial")

    tally.check(stage.each(trial, [(0, 2, 4), (4, 0, 2), (2, 4, 0)]))


def test_saving_beside_training_changes_nothing(stage: Any, tally: Any) -> None:
    """The other tests write checkpoints in step; here they are in flight when the process dies."""
    calls, expected = undisturbed(stage, "plain")
    condition = CONDITIONS["plain"]

    def trial(zygote: Any, runs: Any, k: int) -> tuple[int, str | None]:
        condition.play(zygote, runs, arm=(runs, k, -1), wait_for_saves=False)
        wrong = go_on(lambda runs: condition.play(zygote, runs, wait_for_saves=False), runs)
        return k, wrong or differences(expected, runs / "trial")

    tally.check(stage.each(trial, spread(calls, 16)))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONDITIONS)
def test_killed_at_random_times(stage: Any, tally: Any, name: str) -> None:
    _, expected = undisturbed(stage, name)
    condition = CONDITIONS[name]

    def trial(zygote: Any, runs: Any, delay: float) -> tuple[float, str | None]:
        condition.play(zygote, runs, die_after=delay, wait_for_saves=False)
        wrong = go_on(lambda runs: condition.play(zygote, runs, wait_for_saves=False), runs)
        return delay, wrong or differences(expected, runs / "trial")

    draw = random.Random(5)
    longest = 1.0 if name in RECIPES else 0.12
    delays = [draw.uniform(0.001, longest) for _ in range(200)]
    tally.check(stage.each(trial, delays, thin=name != "plain"))
