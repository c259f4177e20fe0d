"""Trials: play a run, disturb it, go on until it is done, and say what differs in the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness import KILL, Outcome, Stage, Zygote, leftovers, traces

from surefoot.config.schema import largest_divisor
from surefoot.recipes import find, names

__all__ = [
    "CONDITIONS",
    "DONE",
    "RECIPES",
    "Condition",
    "differences",
    "go_on",
    "spread",
    "undisturbed",
]

DONE = 0
FINISHED = 2  # the same command after the end: "run trial is already done"
TEXT = str(Path(__file__).parents[1] / "fixtures" / "shakespeare.txt")


@dataclass(frozen=True)
class Condition:
    """A run to be disturbed: a recipe and its settings."""

    recipe: str
    settings: tuple[tuple[str, Any], ...] = ()

    def play(self, zygote: Zygote, runs: Path, **more: Any) -> Outcome:
        changed = more.pop("settings", {})
        settings = dict(self.settings) | changed
        if "keep.mirror" in settings:
            settings["keep.mirror"] = settings["keep.mirror"].format(runs=runs)
        return zygote.play(
            "train", recipe=self.recipe, runs=str(runs), settings=settings, limit=900.0, **more
        )


def _toy(**settings: Any) -> Condition:
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    return Condition("toy", tuple(dotted.items()))


CONDITIONS = {
    "plain": _toy(),
    "whole batch": _toy(machine__micro_batch_size=8),
    "muon": _toy(optim__kind="muon", toy__width=9),
    "averaged weights": _toy(train__ema=0.8),
    "bf16": _toy(machine__precision="bf16"),
    "two learners": _toy(toy__learners=2),
    "early stop": _toy(train__patience=2, train__max_steps=30, optim__lr=0.3),
    "rollback": _toy(train__nonfinite="rollback", train__rollback_every=4),
    "milestones": _toy(keep__milestones=3, keep__best=2, keep__last=3),
    "prefetch": _toy(machine__prefetch_threads=2),
    "never saved": _toy(cadence__save_every=0),
    "mirror": _toy(keep__mirror="{runs}/mirror"),
}  # fmt: skip


HARDER = {  # set where a recipe has it
    "data.path": TEXT,
    "data.repo": str(Path(__file__).parents[2] / "examples"),
    "model.dropout": 0.1,
    "model.context": 16,
    "memory.checkpointing": True,
    "learners.simple": {"train.max_steps": 7},  # the others go on without it
    "curriculum.forcing": "linear",
    "curriculum.fall_steps": 5,
    "curriculum.start_step": "stable",
    "curriculum.stable_window": 1,
    "curriculum.stable_tolerance": 9.0,
}


def shipped(name: str) -> Condition:
    """Return a recipe's tiny preset, cut short, with every choice made, and dropout where it has it.

    A recipe that reads text reads the one of the tests.
    """
    recipe = find(name)
    sections = recipe.config.model_fields
    tiny = recipe.presets["tiny"]
    batch = tiny.get("train", {}).get("batch_size") or recipe.config().train.batch_size
    settings = {
        "preset": "tiny", "train.max_steps": 10, "schedule.warmup_steps": 2,
        "cadence.validate_every": 4, "cadence.sample_every": 5, "cadence.save_every": 3,
        "cadence.log_every": 2, "machine.device": "cpu", "machine.precision": "fp32",
        "machine.threads": 1, "machine.matmul": "default", "machine.compile": "off",
        "machine.micro_batch_size": largest_divisor(batch, max(1, batch // 2)),
        "machine.prefetch_threads": 0, "ops.attention": "sdpa", "track.report": False,
    }  # fmt: skip
    for path, value in HARDER.items():
        section, _, field = path.partition(".")
        if section in sections and field in sections[section].annotation.model_fields:
            settings[path] = value
    return Condition(name, tuple(settings.items()))


NEEDS = {"code": "peft"}  # recipes that an installation may lack
RECIPES = tuple(name for name in names() if find_spec(NEEDS.get(name, "surefoot")))
CONDITIONS |= {name: shipped(name) for name in RECIPES}


@cache
def undisturbed(stage: Stage, name: str) -> tuple[int, dict[str, Any]]:
    """Return how many calls the undisturbed run makes, and what it leaves."""
    with stage.zygote() as zygote, stage.folder() as runs:
        outcome = CONDITIONS[name].play(zygote, runs, arm=(runs, 0, 0))
        assert outcome.code == DONE, outcome.error
        return outcome.calls, traces(runs / "trial")


def go_on(play: Callable[..., Outcome], runs: Path, **more: Any) -> str | None:
    """Type the same command again; return what went wrong, or None when the run is done."""
    outcome = play(runs, **more)
    if outcome.code == DONE or (outcome.code == FINISHED and "already done" in outcome.error):
        return None
    return f"did not go on, exit code {outcome.code}\n{outcome.error[-1500:]}"


def differences(
    expected: dict[str, Any], run: Path, *except_for: str, found: dict[str, Any] | None = None
) -> str | None:
    """Return what differs from the undisturbed run, or is left over; None when nothing.

    `found` are the traces of `run`, where they are read in another way.
    """
    found = traces(run) if found is None else found
    wrong = [k for k in expected if found.get(k) != expected[k] and k not in except_for]
    wrong += [f"unexpected {key}" for key in found if key not in expected]
    wrong += [f"twice: {row}" for row in doubled(found["metrics"])]
    wrong += [f"left over {name}" for name in leftovers(run)]
    return ", ".join(wrong) or None


def doubled(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return what the record says more than once."""
    keys = [tuple(row.get(k) for k in ("kind", "step", "learner", "event")) for row in rows]
    counts = Counter(key for key in keys if key[-1] != "micro")  # may be halved twice in a step
    return [key for key, count in counts.items() if count > 1]


def killed_at(condition: Condition, expected: dict[str, Any], *ks: int) -> Callable[..., Any]:
    """A trial: die before call k of the first process, before the next k of the second, ..."""

    def trial(zygote: Zygote, runs: Path, k: Any) -> tuple[Any, str | None]:
        deaths = (k, *ks) if isinstance(k, int) else k
        for number in deaths:
            outcome = condition.play(zygote, runs, arm=(runs, number, KILL))
            if outcome.code not in (None, DONE, FINISHED):
                return k, f"ended by itself, exit code {outcome.code}\n{outcome.error[-1500:]}"
        wrong = go_on(lambda runs: condition.play(zygote, runs), runs)
        return k, wrong or differences(expected, runs / "trial")

    return trial


def spread(last: int, count: int) -> list[int]:
    """Return about `count` numbers from 1 to `last`, evenly, the ends among them."""
    return sorted({1 + round(i * (last - 1) / (count - 1)) for i in range(count)})
