"""Of a run in two processes one is killed before any call on the run's folder: it ends the same."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from harness import Stage, Zygote, checkpoints, traces
from trials import FINISHED, differences, spread

TOY = str(Path(__file__).with_name("toy.py"))
SETTINGS = [
    "--toy.width", "64", "--train.max_steps", "6", "--micro-batch-size", "2", "--reduce", "tree",
    "--train.ema", "0.9",
]  # fmt: skip
CONDITIONS = {
    "plain": ["--parallel", "ddp"],
    "sharded": ["--parallel", "fsdp2", "--keep.sharded", "yes"],
}
WAYS = ("restart", "resume", "resume on one")


@dataclass(frozen=True, order=True)
class Death:
    """`victim` dies before the `call` that rank `at` makes; then it goes on in one of three `ways`."""

    call: int
    at: int
    victim: int

    @property
    def way(self) -> str:
        """As `--max-restarts` does it, or by `surefoot resume`, on two processes or on one."""
        return WAYS[(self.call + self.at + self.victim) % len(WAYS)]

    @property
    def kill(self) -> dict[str, int]:
        return {"call": self.call, "at": self.at, "victim": self.victim}


def begin(name: str, runs: Path) -> list[str]:
    return [
        "train", TOY, *SETTINGS, *CONDITIONS[name], "--name", "trial", "--runs", str(runs), "--quiet",
    ]  # fmt: skip


def play(zygote: Zygote, runs: Path, words: list[str], **more: Any) -> dict[str, Any]:
    outcome = zygote.play("together", folder=str(runs), words=words, limit=900.0, **more)
    assert outcome.code == 0, outcome.error
    return outcome.answer


def whole(run: Path) -> dict[str, Any]:
    """`traces`, with tensors that lie in parts put together."""
    found = {k: v for k, v in traces(run).items() if ".safetensors" not in k}
    payload = checkpoints(run)[-1].read()
    for file, group in payload.tensors.items():
        for name, tensor in group.items():
            found[f"{file}: {name}"] = (str(tensor.dtype), tensor.numpy().tobytes())
    return found


@cache
def undisturbed(group: Stage, name: str) -> tuple[list[int], dict[str, Any]]:
    """Return how many calls each rank makes, and what the run leaves."""
    with group.zygote() as zygote, group.folder() as runs:
        found = play(zygote, runs, begin(name, runs))
        assert found["ended"] == [{"1": 0, "0": 0}], found
        return [found["made"]["0"], found["made"]["1"]], whole(runs / "trial")


def deaths(calls: list[int]) -> list[Death]:
    """Each rank before each of its own calls, and the other one before each of rank 0's."""
    found = [Death(k, at, at) for at in (0, 1) for k in range(1, calls[at] + 1)]
    return found + [Death(k, 0, 1) for k in range(1, calls[0] + 1)]


def killed(group: Stage, name: str) -> Any:
    """A trial: one dies, perhaps another when it is begun again, and the run goes on to its end."""
    expected = undisturbed(group, name)[1]

    def trial(zygote: Zygote, runs: Path, case: tuple[Death, ...]) -> tuple[Any, str | None]:
        wrong = _through(zygote, runs, name, case)
        if wrong is None:
            wrong = differences(expected, runs / "trial", found=whole(runs / "trial"))
        return case, wrong

    return trial


def _through(zygote: Zygote, runs: Path, name: str, case: tuple[Death, ...]) -> str | None:
    """Play until the run is done; say what went wrong, or return None."""
    first = case[0]
    words, terminate = begin(name, runs), bool(first.call % 2)
    if first.way == "restart":
        more = {"kills": [death.kill for death in case], "restarts": len(case)}
        found = play(zygote, runs, words, terminate=terminate, **more)
        return _first_end(first, found) or _unfinished(found)
    for death in case:
        found = play(zygote, runs, words, kills=[death.kill], terminate=terminate)
        if wrong := _first_end(death, found):
            return wrong
        if not any(found["ended"][-1].values()):
            return None
        if (runs / "trial" / "run.json").exists():
            words = ["resume", "trial", "--runs", str(runs), "--quiet"]
    alone = first.way == "resume on one" and words[0] == "resume"
    words = [*words, "--parallel", "none"] if alone else words
    return _unfinished(play(zygote, runs, words, size=1 if alone else 2))


def _unfinished(found: dict[str, Any]) -> str | None:
    last = set(found["ended"][-1].values())
    if last == {FINISHED} and " done" in found["said"]["0"]:
        return None  # it was killed when everything was done
    return f"did not go on: {found}" if any(found["ended"][-1].values()) else None


def _first_end(death: Death, found: dict[str, Any]) -> str | None:
    """Say what is wrong with how the ranks ended when one was killed; None when nothing."""
    first = found["ended"][0]
    if None in first.values():
        return f"not all processes ended: {found}"
    if first[str(death.victim)] == -9:
        other = first[str(1 - death.victim)]
        if other not in (0, 1, 75):
            return f"the other one ended with {other}: {found}"
    elif any(first.values()):
        return f"nobody was killed, and it failed: {found}"
    return None


def test_a_rank_killed_before_some_calls(group: Any, tally: Any) -> None:
    calls, _ = undisturbed(group, "plain")
    cases = [(Death(k, 0, k % 2),) for k in spread(calls[0], 4)]
    tally.check(group.each(killed(group, "plain"), cases))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONDITIONS)
def test_a_rank_killed_before_every_call(group: Any, tally: Any, name: str) -> None:
    calls, _ = undisturbed(group, name)
    cases = [(death,) for death in deaths(calls)]
    tally.check(group.each(killed(group, name), cases, thin=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONDITIONS)
def test_a_rank_killed_while_recovering(group: Any, tally: Any, name: str) -> None:
    """The second death is that of a group which begins again, or goes on."""
    calls, _ = undisturbed(group, name)
    draw = random.Random(7)

    def death(first: int, last: int) -> Death:
        return Death(draw.randint(first, last), 0, draw.randint(0, 1))

    pairs = [(death(2, calls[0]), death(1, 60)) for _ in range(60)]
    tally.check(group.each(killed(group, name), pairs, thin=True))
