"""Look at a model without leaving a trace: its own random key, and a second try."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from torch import nn

from surefoot.config.schema import RunConfig
from surefoot.engine import faults
from surefoot.engine.job import Evaluation, Job, Sampler, Shared
from surefoot.engine.learner import Learner
from surefoot.engine.random import rekey
from surefoot.engine.world import World
from surefoot.errors import OutOfResources
from surefoot.seeds import derive
from surefoot.track.record import Record

__all__ = ["draw", "look_at", "measure", "sample"]

T = TypeVar("T")


def look_at(learner: Learner, key: int, look: Callable[[nn.Module], T]) -> T:
    """Return what `look` finds in the learner's model, in eval mode, with randomness from `key`.

    When memory runs out it is released and `look` begins anew, once, from the same key. Raises
    OutOfResources when that does not fit either.
    """
    for trial in (1, 2):
        rekey(key, learner.device)
        try:
            with learner.evaluating() as model:
                return look(model)
        except Exception as error:
            if not faults.out_of_memory(error):
                raise
            faults.release(error)
            why = str(error).partition("\n")[0]
            if trial == 2:
                raise OutOfResources(
                    f"out of memory while looking at the model: {why}",
                    where=f"step {learner.step}",
                    fix="a smaller batch to evaluate (data.val_batch), then: surefoot resume",
                ) from None
    raise AssertionError("unreachable")


def measure(
    world: World, learner: Learner, key: int, evaluation: Evaluation
) -> Mapping[str, float]:
    """Return on all ranks what an evaluation finds: by all where it is shared, else by rank 0."""
    team = world.team
    if team is None or team.size == 1 or not isinstance(evaluation, Shared):
        return world.first(lambda: look_at(learner, key, evaluation), "evaluating")
    mine = partial(evaluation.rows, first=team.rank, step=team.size)
    return evaluation.result(team.dealt(lambda: look_at(learner, key, mine), "evaluating"))


def draw(job: Job, name: str, step: int, config: RunConfig, record: Record) -> None:
    """Put the recipe's pictures of a learner into the record; one that fails is told and left out."""
    for title, drawing in job.pictures.items() if config.track.report else ():
        key = derive(config.train.seed, "picture", step, title)
        try:
            picture = look_at(job.learners[name], key, drawing)
            if picture is not None:  # a model may have nothing to show there
                record.picture(step, name, title, picture)
        except Exception as error:  # the numbers do not depend on it, so training goes on
            text = f"no picture {title!r} of {name}: {type(error).__name__}: {error}"
            record.note(text, "warning")


def sample(job: Job, name: str, step: int, config: RunConfig, record: Record) -> None:
    """Let a learner write, from the same seed each time, and put it into the record."""
    seed = derive(config.train.seed, "sample")
    for prompt, sampler in job.samplers.items():
        key = derive(config.train.seed, "sample", step, prompt)
        text = look_at(job.learners[name], key, partial(_write, sampler, seed))
        record.sample(step, name, prompt, text)


def _write(sampler: Sampler, seed: int, model: nn.Module) -> str:
    return sampler(model, seed)
