"""The power fails after any call, and of what was not synced any part is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import KILL
from powerloss import History, distinct, peak, write_out
from trials import CONDITIONS, differences, go_on, spread, undisturbed

from surefoot.engine.store import Store

CONDITION = CONDITIONS["plain"]


def recorded(zygote: Any, runs: Path, folder: Path, before: Path | None = None) -> History:
    log, data = folder / "log", folder / "data"
    outcome = CONDITION.play(zygote, runs, arm=(runs, 0, 0), log=(log, data))
    assert outcome.code == 0, outcome.error
    return History(log, data, runs, before)


def move_to(history: History, prefix: str, nth: int) -> int:
    """The call that gives the n-th name with this prefix."""
    moves = [e.call for e in history.effects if e.kind == "move" and e.name.startswith(prefix)]
    return moves[nth]


DEATHS: dict[str, Callable[[History], int]] = {
    "from the start": lambda history: 0,
    "going on after a kill in training": lambda history: move_to(history, "step-", 3) + 20,
    "going on after a kill in a save": lambda history: move_to(history, "step-", 4),
    "going on after a kill in a deletion": lambda history: move_to(history, ".removed-", 2) + 3,
}


@pytest.fixture(scope="module", params=DEATHS)
def history(request: Any, stage: Any, tmp_path_factory: pytest.TempPathFactory) -> History:
    """What one process did to the disk: the first of a run, or one that goes on with it."""
    folder = tmp_path_factory.mktemp("log")
    (folder / "first").mkdir()
    with stage.zygote() as zygote, stage.folder() as calm, stage.folder() as runs:
        first = recorded(zygote, calm, folder / "first")
        death = DEATHS[request.param](first)
        if not death:
            return first
        assert CONDITION.play(zygote, runs, arm=(runs, death, KILL)).killed
        before = Path(shutil.copytree(runs, folder / "before"))
        return recorded(zygote, runs, folder, before)


def found_again(call: int, history: History, runs: Path) -> str | None:
    """Return what is wrong with what a power loss after `call` left in `runs`; None if nothing."""
    run, least = runs / "trial", history.committed(call)
    if not (run / "run.json").exists():
        return "the run is gone" if call >= history.begun else None
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
    cases = states(history, spread(history.calls, 30), 2)
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
    found = list(states(history, spread(history.calls, 16), 1))
    cases = [(*case, expected) for case in found[:: max(1, len(found) // 12)]]
    tally.check(stage.each(gone_on, cases))


@pytest.mark.slow
def test_the_run_goes_on_after_every_call(stage: Any, tally: Any, history: History) -> None:
    _, expected = undisturbed(stage, "plain")
    calls = list(range(1, history.calls + 1))
    cases = ((*case, expected) for case in states(history, calls, 3))
    tally.check(stage.each(gone_on, cases, thin=True))


def test_checkpoints_never_take_more_than_those_kept_and_one(history: History) -> None:
    sizes = list(peak(history, "trial/checkpoints/"))
    one = sizes[-1] / 2  # two are kept at the end
    assert max(sizes) < 3.05 * one
