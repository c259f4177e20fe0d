"""NaN, memory that runs out, a device that goes, at any step: nothing is spoiled, all is repeatable."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import KILL, Outcome, Zygote, traces
from mischief import ERRORS, LOST
from trials import CONDITIONS, DONE, differences, go_on, spread, undisturbed

from surefoot.engine.journal import Kind, read

LAST = 12
FEW = (0, 1, 5, 10)  # steps of the quick suite: first, before a save and after, near the end
FINITE = ("data", "loss", "gradient")
DIVERGED = 1
POLICIES = {
    "skip": {"train.nonfinite": "skip"},
    "rollback": {"train.nonfinite": "rollback", "train.rollback_every": 4},
    "stop": {"train.nonfinite": "stop"},
}
TOY = CONDITIONS["plain"]


def finite(run: Path) -> bool:
    """Whether every number of the newest checkpoint's weights and moments is one."""
    found = traces(run)
    floats = [v for k, v in found.items() if ".safetensors" in k and v[0] == "torch.float32"]
    return all(np.isfinite(np.frombuffer(data, "float32")).all() for _, data in floats)


def twin(zygote: Zygote, runs: Path, **more: Any) -> tuple[Outcome, dict[str, Any] | None]:
    """Play the disturbed run without a kill; return what it leaves."""
    aside = runs / "twin"
    aside.mkdir()
    outcome = TOY.play(zygote, aside, **more)
    return outcome, traces(aside / "trial") if outcome.code == DONE else None


def nan_trial(policy: str, **more: Any) -> Any:
    """A trial: NaN at a step, once or always; killed soon after; the same as without the kill."""
    settings = POLICIES[policy] | {"train.nonfinite_limit": 3} | more

    def trial(zygote: Zygote, runs: Path, case: Any) -> tuple[Any, str | None]:
        where, step, times = case
        faults = [{"where": where, "step": step, "times": times}]
        outcome, expected = twin(zygote, runs, faults=faults, settings=settings)
        ends = policy == "stop" or (policy == "rollback" and times == -1)
        if outcome.code != (DIVERGED if ends else DONE):
            return case, f"exit code {outcome.code}\n{outcome.error[-1500:]}"
        if not finite(runs / "twin" / "trial"):
            return case, "something that is no number was saved"
        if expected is None or "Diverged" in outcome.error:
            return case, None if "examples" in outcome.error else f"no culprit: {outcome.error}"
        if not any(row["kind"] == "event" for row in expected["metrics"]):
            return case, "nobody noticed"
        TOY.play(zygote, runs, faults=faults, settings=settings, kill_at=step + 1)
        again = faults if times == -1 else []
        wrong = go_on(lambda runs: TOY.play(zygote, runs, faults=again, settings=settings), runs)
        return case, wrong or differences(expected, runs / "trial")

    return trial


def cases(steps: Any) -> list[tuple[str, int, int]]:
    return [(where, step, times) for where in FINITE for step in steps for times in (1, -1)]


@pytest.mark.parametrize("policy", POLICIES)
def test_nan_at_some_steps(stage: Any, tally: Any, policy: str) -> None:
    tally.check(stage.each(nan_trial(policy), cases(FEW)[::3]))


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_nan_at_every_step(stage: Any, tally: Any, policy: str) -> None:
    tally.check(stage.each(nan_trial(policy), cases(range(LAST - 1)), thin=True))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_loss_that_spikes(stage: Any, tally: Any, policy: str) -> None:
    """Like a number that is none, as soon as there are losses to compare it with."""
    spikes = [("spike", step, times) for step in (8, 10) for times in (1, -1)]
    tally.check(stage.each(nan_trial(policy, **{"train.spike_factor": 20.0}), spikes))


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_nan_in_one_of_two_learners(stage: Any, tally: Any, policy: str) -> None:
    """The other goes on as it would alone, whatever happens to the one, and when it is killed."""
    settings = {"toy.learners": 2, "toy.second_limit": 9} | POLICIES[policy]
    faults = [{"where": "gradient", "step": 6, "times": 1, "width": 16}]
    with stage.zygote() as zygote, stage.folder() as runs:
        _, alone = twin(zygote, runs, settings=settings)
    assert alone is not None
    small = {k: v for k, v in alone.items() if k.startswith("small.")}

    def trial(zygote: Zygote, runs: Path, step: int) -> tuple[int, str | None]:
        _, expected = twin(zygote, runs, faults=faults, settings=settings)
        if expected is None or any(expected[k] != v for k, v in small.items()):
            return step, "the other learner is not what it would be alone"
        dead = TOY.play(zygote, runs, faults=faults, settings=settings, kill_at=step)
        again = faults if step <= 6 else []  # killed before it could happen
        play = TOY.play
        wrong = go_on(lambda runs: play(zygote, runs, faults=again, settings=settings), runs)
        wrong = wrong or (None if dead.killed else "was not killed")
        return step, wrong or differences(expected, runs / "trial")

    tally.check(stage.each(trial, (1, 4, 6, 8, 11)))


def amid_a_rollback(stage: Any, learners: int, calls: Callable[[int], Iterable[int]]) -> Any:
    """Kill a run that goes back, before each of `calls`; it goes on, and repeats what it had noted."""
    settings = {"toy.learners": learners, "toy.second_limit": 9} | POLICIES["rollback"]
    width = 8 * learners  # of two, the second one goes back alone
    faults = [{"where": "gradient", "step": 6, "times": 1, "width": width}]
    with stage.zygote() as zygote, stage.folder() as runs:
        outcome = TOY.play(zygote, runs, arm=(runs, 0, 0), faults=faults, settings=settings)
        assert outcome.code == DONE, outcome.error
        expected = traces(runs / "trial")

    def trial(zygote: Zygote, runs: Path, k: int) -> tuple[int, str | None]:
        assert TOY.play(zygote, runs, arm=(runs, k, KILL), faults=faults, settings=settings).killed
        again = [] if noted(runs / "trial") else faults
        wrong = go_on(lambda runs: TOY.play(zygote, runs, faults=again, settings=settings), runs)
        return k, wrong or differences(expected, runs / "trial")

    return stage.each(trial, calls(outcome.calls), thin=True)


def noted(run: Path) -> bool:
    """Whether the journal knows of an event, which a process that goes on then repeats."""
    path = run / "journal"
    return path.exists() and any(r is not None and r.kind is Kind.EVENT for _, r in read(path))


@pytest.mark.parametrize("learners", [1, 2])
def test_killed_amid_a_rollback_here_and_there(stage: Any, tally: Any, learners: int) -> None:
    tally.check(amid_a_rollback(stage, learners, lambda calls: spread(calls, 8)))


@pytest.mark.slow
@pytest.mark.parametrize("learners", [1, 2])
def test_killed_amid_a_rollback_before_every_call(stage: Any, tally: Any, learners: int) -> None:
    tally.check(amid_a_rollback(stage, learners, lambda calls: range(1, calls + 1)))


def test_a_run_that_stopped_at_nan_goes_on_as_if_it_had_skipped(stage: Any) -> None:
    fault = [{"where": "data", "step": 5}]
    stop, skip = POLICIES["stop"], POLICIES["skip"]
    with stage.zygote() as zygote, stage.folder() as runs:
        _, expected = twin(zygote, runs, faults=fault, settings=skip)
        assert expected is not None
        assert TOY.play(zygote, runs, faults=fault, settings=stop).code == DIVERGED
        assert TOY.play(zygote, runs, settings=stop).code == DONE
        assert not differences(expected, runs / "trial", "steps kept")


def test_nan_again_and_again_ends_in_words(stage: Any) -> None:
    faults = [{"where": "gradient", "step": step} for step in range(4, 9)]
    with stage.zygote() as zygote, stage.folder() as runs:
        settings = {"train.nonfinite_limit": 4}
        outcome = TOY.play(zygote, runs, faults=faults, settings=settings)
        assert outcome.code == DIVERGED
        assert "4 non-finite steps in a row" in outcome.error and finite(runs / "trial")


def passing_trial(expected: dict[str, Any]) -> Any:
    """A trial: memory runs out once, which leaves no trace at all."""

    def trial(zygote: Zygote, runs: Path, case: Any) -> tuple[Any, str | None]:
        where, step, error = case
        faults = [{"where": where, "step": step, "times": 1, "error": error}]
        wrong = go_on(lambda runs: TOY.play(zygote, runs, faults=faults), runs)
        return case, wrong or differences(expected, runs / "trial")

    return trial


PLACES = ("forward", "backward", "optimiser", "evaluation")


def test_memory_that_runs_out_once_leaves_no_trace(stage: Any, tally: Any) -> None:
    _, expected = undisturbed(stage, "plain")
    some = [(w, s, (i + s) % len(ERRORS)) for i, w in enumerate(PLACES) for s in FEW]
    tally.check(stage.each(passing_trial(expected), some))


@pytest.mark.slow
def test_memory_that_runs_out_once_at_every_step(stage: Any, tally: Any) -> None:
    _, expected = undisturbed(stage, "plain")
    every = [(w, s, e) for w in PLACES for s in range(LAST) for e in range(len(ERRORS))]
    tally.check(stage.each(passing_trial(expected), every, thin=True))


def lasting_trial(zygote: Zygote, runs: Path, case: Any) -> tuple[Any, str | None]:
    """A trial: from a step on fewer examples fit; killed, and resumed where all fit again."""
    where, step, over = case
    faults = [{"where": where, "step": step, "over": over}]
    outcome, expected = twin(zygote, runs, faults=faults)
    if expected is None:
        return case, f"exit code {outcome.code}\n{outcome.error[-1500:]}"
    seen = [row["event"] for row in expected["metrics"] if row["kind"] == "event"]
    if seen != ["micro"] * (2 if over == 1 else 1):
        return case, f"events {seen}"
    TOY.play(zygote, runs, faults=faults, kill_at=step + 1)
    wrong = go_on(lambda runs: TOY.play(zygote, runs), runs)
    return case, wrong or differences(expected, runs / "trial")


def test_memory_that_stays_short_halves_the_pieces(stage: Any, tally: Any) -> None:
    some = [(w, s, o) for w, o in (("forward", 2), ("backward", 1)) for s in FEW]
    tally.check(stage.each(lasting_trial, some))


@pytest.mark.slow
def test_memory_that_stays_short_from_every_step(stage: Any, tally: Any) -> None:
    every = [(w, s, o) for w in ("forward", "backward") for s in range(LAST - 1) for o in (2, 1)]
    tally.check(stage.each(lasting_trial, every, thin=True))


def test_halved_pieces_are_those_of_a_run_told_so(stage: Any) -> None:
    told = {"machine.micro_batch_size": 2}
    with stage.zygote() as zygote, stage.folder() as runs:
        _, expected = twin(zygote, runs, settings=told)
        assert expected is not None
        faults = [{"where": "forward", "step": 0, "over": 2}]
        assert TOY.play(zygote, runs, faults=faults).code == DONE
        found = traces(runs / "trial")
        assert all(found[k] == v for k, v in expected.items() if ".safetensors" in k)


def test_memory_short_at_the_second_attempt_leaves_the_tape_and_goes_on(stage: Any) -> None:
    """The machine that goes on has less memory than the one that began."""
    with stage.zygote() as zygote, stage.folder() as runs:
        rarely = {"cadence.save_every": 0, "cadence.validate_every": 0}
        TOY.play(zygote, runs, kill_at=10, settings=rarely)
        faults = [{"where": "forward", "step": 4, "over": 2}]
        outcome = TOY.play(zygote, runs, faults=faults, kill_at=10, settings=rarely)
        assert outcome.killed, outcome.error
        outcome = TOY.play(zygote, runs, settings=rarely)
        assert outcome.code == DONE, outcome.error
        log = (runs / "trial" / "log.txt").read_text()
        assert "cannot be compared" in log and "resume proven over" in log


@pytest.mark.parametrize("where", ["forward", "optimiser", "evaluation"])
def test_memory_that_never_suffices_ends_in_words(stage: Any, where: str) -> None:
    faults = [{"where": where, "step": 5} | ({"over": 0} if where == "forward" else {})]
    _, expected = undisturbed(stage, "plain")
    with stage.zygote() as zygote, stage.folder() as runs:
        outcome = TOY.play(zygote, runs, faults=faults)
        assert outcome.code == 4 and "OutOfResources" in outcome.error, outcome.error
        wrong = go_on(lambda runs: TOY.play(zygote, runs), runs)
        wrong = wrong or differences(expected, runs / "trial")
        assert where == "forward" or not wrong  # in forward it halved before it gave up


def lost_trial(expected: dict[str, Any]) -> Any:
    """A trial: the device goes in the middle of a step; a new process finds it again."""

    def trial(zygote: Zygote, runs: Path, case: Any) -> tuple[Any, str | None]:
        where, step, error = case
        faults = [{"where": where, "step": step, "error": error, "lost": True}]
        outcome = TOY.play(zygote, runs, faults=faults)
        said = "does not answer any more: CUDA error: un"
        if outcome.code != 4 or said not in outcome.error:
            return case, f"exit code {outcome.code}\n{outcome.error[-1500:]}"
        meta = json.loads((runs / "trial" / "run.json").read_text())
        if meta["status"] != "failed" or said not in meta["errors"][-1]["error"]:
            return case, f"run.json says {meta['status']}, {meta['errors']}"
        back = f"surefoot resume trial goes on from the checkpoint of step {step // 2 * 2}"
        if back not in outcome.error:
            return case, outcome.error[-800:]
        wrong = go_on(lambda runs: TOY.play(zygote, runs), runs)
        return case, wrong or differences(expected, runs / "trial")

    return trial


def test_a_device_that_goes_costs_no_step(stage: Any, tally: Any) -> None:
    _, expected = undisturbed(stage, "plain")
    some = [(w, s, s % len(LOST)) for w in PLACES[:3] for s in FEW]
    some += [("evaluation", s, 0) for s in (2, 5)]  # after the third and the sixth step
    tally.check(stage.each(lost_trial(expected), some))
