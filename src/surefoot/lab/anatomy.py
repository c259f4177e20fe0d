"""Take a step apart: what its time goes into, its operations, and what lies in memory at its peak.

A job is trained for a few steps as ever, first with a clock around each part, then under torch's
profiler. Memory is that of a step played without contents (`predict`), which knows every tensor.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from surefoot.config.schema import RunConfig
from surefoot.data.batch import Batch, Data
from surefoot.engine.auto.fit import Pins
from surefoot.engine.job import Job
from surefoot.engine.loop import steps
from surefoot.engine.saver import Pace
from surefoot.engine.state import TrainState
from surefoot.engine.store import Store
from surefoot.engine.watch.meter import Span, Timed
from surefoot.engine.watch.profile import labelled, operations
from surefoot.engine.world import World
from surefoot.track.record import Record

__all__ = ["Anatomy", "Rows", "dissect"]

_WARM, _TIMED, _PROFILED = 3, 8, 3
_MANY = 200  # rows that are written to time one
_PHASES = ("forward", "forward and backward", "clip", "optimiser")


@dataclass(frozen=True)
class Rows:
    """The way of a batch: seconds for its addresses, for making it, and for its way to the device."""

    order: float
    make: float
    move: float
    nbytes: int
    examples: int

    @property
    def rate(self) -> float:
        """Examples a second that one thread can make."""
        return self.examples / (self.order + self.make)


@dataclass(frozen=True)
class Anatomy:
    """Milliseconds of a step by part, its most expensive operations, and the way of its data.

    `record` and `save` are shares of what a row of the record and a checkpoint take, as often as
    the run writes them. `operations` are (name, calls a step, milliseconds a step).
    """

    step: float
    parts: Mapping[str, float]
    operations: Sequence[tuple[str, float, float]]
    rows: Rows
    saving: float  # seconds of one checkpoint
    examples: int
    trace: Any = field(repr=False)


def dissect(job: Job, config: RunConfig, world: World, pins: Pins) -> Anatomy:
    """Take steps of `job`, whose learners have their pins, and tell what they are made of.

    Weights change; nothing is written but into a temporary folder.
    """
    data = Data(job.source, config.train.seed, config.train.batch_size)
    state = TrainState(job.learners)
    for learner in job.learners.values():
        learner.micro, learner.limit = learner.micro or pins.micro_batch_size, None
    waiting, moving = Span(), Span()
    going = steps(state, Timed(data, waiting), config.train.seed, _Moving(world, moving))
    list(islice(going, _WARM))
    spans = {name: Span() for name in _PHASES}
    waiting.seconds = moving.seconds = 0.0
    taken = []
    with ExitStack() as labels:
        for learner in job.learners.values():
            labels.enter_context(labelled(learner, spans))
        for _ in range(_TIMED):
            begun = time.perf_counter()
            next(going)
            taken.append(time.perf_counter() - begun)
        step = sum(taken) / _TIMED
        parts = _parts(spans, waiting, moving, sum(taken))
        found = _profiled(going, world.device)
    row, saving = _row_seconds(job), _save_seconds(state)
    parts["record"] = row * len(job.learners) / max(1, config.cadence.log_every)
    parts["save"] = step * saving / max(_between_saves(config, step, saving), saving)
    return Anatomy(
        step * 1e3, {name: seconds * 1e3 for name, seconds in parts.items()},
        list(operations(found.key_averages(), _PROFILED)), _rows(data, world), saving,
        data.batch_size, found,
    )  # fmt: skip


def _between_saves(config: RunConfig, step: float, saving: float) -> float:
    every = config.cadence.save_every
    return every * step if isinstance(every, int) else Pace(every, cost=saving).interval


def _parts(
    spans: Mapping[str, Span], waiting: Span, moving: Span, total: float
) -> dict[str, float]:
    seconds = {name: span.seconds for name, span in spans.items()}
    seconds["backward"] = seconds.pop("forward and backward") - seconds["forward"]
    ordered = ("forward", "backward", "clip", "optimiser")
    found = {"data": waiting.seconds, "to the device": moving.seconds}
    found |= {name: seconds[name] for name in ordered}
    found["the loop"] = max(0.0, total - sum(found.values()))
    return {name: each / _TIMED for name, each in found.items()}


def _profiled(going: Iterator[Any], device: torch.device) -> Any:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would write to the terminal
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if device.type == "cuda" else []
    with profile(activities=activities, acc_events=True) as found:
        list(islice(going, _PROFILED))
    return found


class _Moving(World):
    """A world whose way to the device is timed."""

    def __init__(self, world: World, span: Span) -> None:
        vars(self).update(vars(world))
        vars(self)["span"] = span

    def to(self, batch: Batch) -> Batch:
        """Return the batch on the device."""
        span: Span = vars(self)["span"]
        with span:
            return super().to(batch)


def _rows(data: Data, world: World) -> Rows:
    """Time what batches go through, on batches that come much later."""
    order, make, move = [], [], []
    nbytes = 0
    for step in range(10_000, 10_000 + _TIMED):
        begun = time.perf_counter()
        data.address(step)
        ordered = time.perf_counter()
        batch = data.batch(step)
        made = time.perf_counter()
        world.to(batch)
        moved = time.perf_counter()
        order.append(ordered - begun)
        make.append(max(0.0, made - ordered))
        move.append(moved - made)
        nbytes = sum(value.nbytes for value in batch.fields.values())
    return Rows(median(order), median(make), median(move), nbytes, data.batch_size)


def _row_seconds(job: Job) -> float:
    with tempfile.TemporaryDirectory() as folder, Record(Path(folder)) as record:
        begun = time.perf_counter()
        for step in range(_MANY):
            record.row("train", step, loss=1.0, lr=1e-3, grad_norm=1.0, tokens_per_s=1.0)
        return (time.perf_counter() - begun) / _MANY


def _save_seconds(state: TrainState) -> float:
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        Store(Path(folder), "profile").save(state.step, state.payload())
        return time.perf_counter() - begun
