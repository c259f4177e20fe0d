"""How fast this machine trains and writes, recipe by recipe, with everything on auto."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from surefoot.config.fields import changed
from surefoot.config.schema import RunConfig
from surefoot.data.batch import Data
from surefoot.engine.auto.fit import Pins, choose
from surefoot.engine.job import Job
from surefoot.engine.kit.speak import Request, TextSpeaker
from surefoot.engine.load import narrow
from surefoot.engine.loop import steps
from surefoot.engine.memory import resident
from surefoot.engine.place import compile_in_place
from surefoot.engine.plan import prepare, work
from surefoot.engine.rebuild import Buildable
from surefoot.engine.state import TrainState
from surefoot.engine.world import World
from surefoot.ops import OPS
from surefoot.ops.check import measure

__all__ = ["Speed", "lagging", "speed_of"]

_WARM, _LEAST = 3, 5  # steps that are not counted; that are at least
_TOKENS = 64  # that are written
_BOUND = 1.05  # of its reference, that a standard way may take


@dataclass(frozen=True)
class Speed:
    """What a recipe reaches: `units` of loss a second (tokens, pixels), examples a second.

    `flop_s` and `share` (of what matrix products reach) where the model counts its work; `written`
    tokens a second, where it writes text; `nbytes` that the process or the device held.
    """

    step: float
    units: float
    examples: float
    flop_s: float | None
    share: float | None
    written: float | None
    nbytes: int
    pins: Pins
    parameters: int


def speed_of(
    recipe: Buildable, config: RunConfig, world: World, seconds: float, cache: Path | None
) -> Speed:
    """Train for about so many `seconds` and tell how fast that was; nothing is kept."""
    job = recipe.build(config, world)
    prepare(job, config, {})
    limit = config.limit(len(job.source))
    pins, plan = choose(changed(config, job.settings), job, world, limit, cache)
    for learner in job.learners.values():
        learner.micro, learner.limit = pins.micro_batch_size, None
        if pins.compile:
            compile_in_place(learner)
    data = Data(job.source, config.train.seed, config.train.batch_size)
    going = steps(TrainState(job.learners), data, config.train.seed, world)
    list(islice(going, _WARM))
    taken: list[float] = []
    weights: list[int] = []
    begun = time.perf_counter()
    while len(taken) < _LEAST or time.perf_counter() - begun < seconds:
        before = time.perf_counter()
        weights.append(next(going).weight)
        taken.append(time.perf_counter() - before)
    step = median(taken)
    flops = sum(work(job, config.train.batch_size).values())
    rate = flops / step if flops else None
    device = world.device
    held = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident()
    return Speed(
        step, median(weights) / step, data.batch_size / step, rate,
        rate / plan.ceiling if rate and plan.ceiling else None,
        _writing(recipe, config, job, world), held, pins,
        sum(p.numel() for x in job.learners.values() for p in x.parameters),
    )  # fmt: skip


def _writing(recipe: Buildable, config: RunConfig, job: Job, world: World) -> float | None:
    """Return tokens a second that the model writes; None where it writes no text."""
    speak: Callable[..., Any] | None = getattr(recipe, "speak", None)
    if speak is None or len(job.learners) > 1:
        return None
    with suppress(KeyError, FileNotFoundError):
        speaker = speak(config, job.files, world)
        if not isinstance(speaker, TextSpeaker):
            return None
        narrow(speaker.models, "fp32")
        rates = []
        for seed in range(3):
            begun, prompt = time.perf_counter(), speaker.default_prompt
            pieces = list(speaker.reply("main", Request(prompt, _TOKENS, seed=seed)))
            rates.append(len(pieces) / (time.perf_counter() - begun))
        return max(rates)
    return None


def lagging(device: torch.device) -> Iterator[tuple[str, float]]:
    """Yield each operation and what its standard way takes of its reference.

    One that seems slow is measured again, for other programs may have been in the way.
    """
    for op in OPS.values():
        names = [name for name in op.available(device) if name in (op.standard, "reference")]
        if len(names) < 2:
            continue
        ratios = []
        for _ in range(3):
            found = measure(op, device, names, torch.float32).get(op.standard)
            ratios += [found.ratio] if found is not None else []
            if not ratios or ratios[-1] <= _BOUND:
                break
        if ratios:
            yield op.name, min(ratios)
