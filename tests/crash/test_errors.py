"""A disk that refuses: training goes on or ends in words, and nothing that was safe is lost."""

from __future__ import annotations

import ast
import errno
from pathlib import Path
from typing import Any

import pytest
from harness import unsound
from trials import CONDITIONS, DONE, RECIPES, differences, go_on, spread, undisturbed

REFUSALS = {"full": errno.ENOSPC, "broken": errno.EIO, "forbidden": errno.EACCES}
SWEPT = {**REFUSALS, "away": errno.ESTALE}
# Every way to end that the command line documents, but not 1, which is a bug, nor 5.
WORDS = {DONE, 2, 4}
RECORD = 56  # bytes of a journal's header, and of each of its records


def begun(run: Path) -> bool:
    """Whether a process has said in the journal that it trains."""
    journal = run / "journal"
    return journal.exists() and journal.stat().st_size > RECORD


def refused_at(name: str, expected: dict[str, Any], code: int, for_good: bool) -> Any:
    """A trial: call k (and all after it) fails; then the disk is well again."""
    condition = CONDITIONS[name]

    def trial(zygote: Any, runs: Path, k: int) -> tuple[int, str | None]:
        fault = -code if for_good else code
        outcome = condition.play(zygote, runs, arm=(runs, k, fault))
        run = runs / "trial"
        # Where training had begun, one refusal ends nothing.
        words = {DONE} if begun(run) and not for_good else WORDS
        if outcome.code not in words:
            return k, f"exit code {outcome.code}\n{outcome.error[-2500:]}"
        wrong = unsound(run)
        if wrong:
            return k, wrong
        wrong = go_on(lambda runs: condition.play(zygote, runs), runs)
        # A save that was refused is one checkpoint less, for another reason than retention.
        return k, wrong or differences(expected, run, "steps kept")

    return trial


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_refused_some_calls(stage: Any, tally: Any, refusal: str, for_good: bool) -> None:
    calls, expected = undisturbed(stage, "plain")
    trial = refused_at("plain", expected, REFUSALS[refusal], for_good)
    tally.check(stage.each(trial, spread(calls, 14)))


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "from then on"])
def test_a_server_that_is_away_when_a_run_opens_its_files(
    stage: Any, tally: Any, for_good: bool
) -> None:
    _, expected = undisturbed(stage, "plain")
    tally.check(stage.each(refused_at("plain", expected, errno.ESTALE, for_good), range(24, 34)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "two learners", *RECIPES])
@pytest.mark.parametrize("for_good", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("refusal", SWEPT)
def test_refused_every_call(
    stage: Any, tally: Any, refusal: str, for_good: bool, name: str
) -> None:
    calls, expected = undisturbed(stage, name)
    trial = refused_at(name, expected, SWEPT[refusal], for_good)
    tally.check(stage.each(trial, range(1, calls + 1), thin=True))


def test_a_disk_with_too_little_room(stage: Any, tally: Any) -> None:
    _, expected = undisturbed(stage, "plain")
    condition = CONDITIONS["plain"]

    def trial(zygote: Any, runs: Path, room: int) -> tuple[int, str | None]:
        outcome = zygote.play(
            "fill_disk", recipe="toy", runs=str(runs), settings=dict(condition.settings), room=room
        )
        answer = outcome.answer
        if answer.get("skipped"):
            return room, "skipped"
        if outcome.code != DONE or answer["first"] not in WORDS or answer["wrong"]:
            return room, f"{answer.get('first')} {answer.get('wrong')} {outcome.error[-1500:]}"
        found = ast.literal_eval(answer["traces"])
        wrong = [k for k in expected if found[k] != expected[k] and k != "steps kept"]
        return room, ", ".join(wrong + answer["left"]) or None

    found = stage.each(trial, range(20_000, 120_000, 8192))
    if all(wrong == "skipped" for _, wrong in found):
        pytest.skip("needs the right to mount a file system")
    tally.check(found)
