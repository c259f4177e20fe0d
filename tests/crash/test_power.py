"""The power fails after any call, and of what was not synced any part is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from powerloss import History, distinct, peak, write_out
from trials import CONDITIONS, differences, go_on, spread, undisturbed

from surefoot.engine.store import Store

CONDITION = CONDITIONS["plain"]


@pytest.fixture(scope="module")
def history(stage: Any, tmp_path_factory: pytest.TempPathFactory) -> History:
    folder = tmp_path_factory.mktemp("log")
    log, data = folder / "log", folder / "data"
    with stage.zygote() as zygote, stage.folder() as runs:
        outcome = CONDITION.play(zygote, runs, arm=(runs, 0, 0), log=(log, data))
        assert outcome.code == 0, outcome.error
        return History(log, data, runs)


def found_again(call: int, history: History, runs: Path) -> str | None:
    """Return what is wrong with what a power loss after `call` left in `runs`; None if nothing."""
    run, least = runs / "trial", history.committed(call)
    if not (run / "run.json").exists():
        return "the run is gone" if history.begun and call >= history.begun else None
    meta = json.loads((run / "run.json").read_text())
    store = Store(run / "checkpoints", meta["id"])
    store.sweep()
    newest, _, aside = store.newest()
    if least is not None and (newest is None or newest.step < least):
        return f"step {least} was saved, {newest and newest.step} is there; {aside}"
    return None


def states(history: History, calls: list[int], draws: int) -> Iterator[tuple[Any, ...]]:
    for call, what, state in distinct(history, calls, draws):
        yield f"after call {call}, lost: {what}", call, state


def looked_at(history: History, runs: Path, case: tuple[Any, ...]) -> tuple[str, str | None]:
    name, call, state = case
    write_out(state, runs)
    return name, found_again(call, history, runs)


def test_what_was_saved_is_there(stage: Any, tally: Any, history: History) -> None:
    cases = states(history, spread(history.calls, 60), 4)
    tally.check(stage.each(lambda _, runs, case: looked_at(history, runs, case), cases))


@pytest.mark.slow
def test_what_was_saved_is_there_after_every_call(stage: Any, tally: Any, history: History) -> None:
    cases = states(history, list(range(1, history.calls + 1)), 10)
    tally.check(stage.each(lambda _, runs, case: looked_at(history, runs, case), cases))


def gone_on(zygote: Any, runs: Path, case: tuple[Any, ...]) -> tuple[str, str | None]:
    name, _, state, expected = case
    write_out(state, runs)
    wrong = go_on(lambda runs: CONDITION.play(zygote, runs), runs)
    # Of a run that was done, deleted files may come back; the next `checkpoints prune` has them.
    Store(runs / "trial" / "checkpoints", "").sweep()
    return name, wrong or differences(expected, runs / "trial", "steps kept")


def test_the_run_goes_on(stage: Any, tally: Any, history: History) -> None:
    _, expected = undisturbed(stage, "plain")
    found = list(states(history, spread(history.calls, 40), 1))
    cases = [(*case, expected) for case in found[:: max(1, len(found) // 40)]]
    tally.check(stage.each(gone_on, cases))


@pytest.mark.slow
def test_the_run_goes_on_after_every_call(stage: Any, tally: Any, history: History) -> None:
    _, expected = undisturbed(stage, "plain")
    calls = list(range(1, history.calls + 1))
    cases = ((*case, expected) for case in states(history, calls, 3))
    tally.check(stage.each(gone_on, cases))


def test_checkpoints_never_take_more_than_those_kept_and_one(history: History) -> None:
    sizes = list(peak(history, "trial/checkpoints/"))
    one = sizes[-1] / 2  # two are kept at the end
    assert max(sizes) < 3.05 * one
