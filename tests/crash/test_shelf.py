"""The cache of shards: killed before any of its calls, or with a disk that refuses one of them."""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest
from harness import KILL
from shelves import wrong_on
from trials import DONE, spread

REFUSED = (2, 4)  # exit codes of what a person is told


def calls(stage: Any) -> int:
    """How many calls change something, when nobody disturbs."""
    with stage.zygote() as zygote, stage.folder() as folder:
        outcome = zygote.play("read_shelf", arm=(folder, 0, 0), folder=str(folder / "shards"))
    assert outcome.code == DONE, outcome.error
    return int(outcome.calls)


def disturbed(zygote: Any, folder: Any, case: tuple[int, int]) -> tuple[Any, str | None]:
    """End in call k of the first process; the second must find all right, and read all."""
    shelf = folder / "shards"
    outcome = zygote.play("read_shelf", arm=(folder, *case), folder=str(shelf))
    expected = (None,) if case[1] == KILL else (*REFUSED, DONE)
    if outcome.code not in expected:
        return case, f"ended with {outcome.code}\n{outcome.error[-1500:]}"
    if wrong := wrong_on(shelf):
        return case, wrong
    again = zygote.play("read_shelf", folder=str(shelf))
    if again.code != DONE:
        return case, f"did not go on\n{again.error[-1500:]}"
    return case, wrong_on(shelf)


def test_the_shelf_killed_here_and_there(stage: Any, tally: Any) -> None:
    count = calls(stage)
    assert count > 60
    tally.check(stage.each(disturbed, [(k, KILL) for k in spread(count, 10)]))


@pytest.mark.slow
def test_the_shelf_killed_before_any_call(stage: Any, tally: Any) -> None:
    tally.check(stage.each(disturbed, [(k, KILL) for k in range(1, calls(stage) + 1)], thin=True))


@pytest.mark.slow
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_the_shelf_and_a_call_that_fails(stage: Any, tally: Any, error: int) -> None:
    cases = [(k, fault) for k in range(1, calls(stage) + 1) for fault in (error, -error)]
    tally.check(stage.each(disturbed, cases, thin=True))


@pytest.mark.slow
def test_the_shelf_killed_while_others_fetch_ahead(stage: Any, tally: Any) -> None:
    def trial(zygote: Any, folder: Any, k: int) -> tuple[int, str | None]:
        shelf = folder / "shards"
        zygote.play("read_shelf", arm=(folder, k, KILL), folder=str(shelf), ahead=True)
        if wrong := wrong_on(shelf):
            return k, wrong
        again = zygote.play("read_shelf", folder=str(shelf), ahead=True)
        return k, wrong_on(shelf) if again.code == DONE else again.error[-1500:]

    draw = random.Random(3)
    tally.check(stage.each(trial, [draw.randrange(1, 200) for _ in range(150)], thin=True))
