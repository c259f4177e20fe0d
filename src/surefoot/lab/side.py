"""A job that is built, decided and stepped by itself, for comparing it with another or a record."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from surefoot.config.schema import RunConfig
from surefoot.engine.auto import fit
from surefoot.engine.job import Job
from surefoot.engine.learner import Learner
from surefoot.engine.loop import Batches, Report, steps
from surefoot.engine.place import apply, compile_in_place
from surefoot.engine.plan import prepare
from surefoot.engine.rebuild import Buildable
from surefoot.engine.state import TrainState
from surefoot.engine.world import World, open_world

__all__ = ["Side"]


class Side:
    """One of the two: a job on a world, as its configuration says, with its decisions applied."""

    def __init__(
        self, label: str, recipe: Buildable, config: RunConfig, cache: Path | None
    ) -> None:
        self.label, self.config, self.recipe = label, config, recipe
        self.world: World = open_world(config.machine.device)
        self.job: Job = recipe.build(config, self.world)
        prepare(self.job, config, {})
        limit = config.limit(len(self.job.source))
        self.pins, _ = fit.choose(config, self.job, self.world, limit, cache)
        for learner in self.job.learners.values():
            learner.micro = self.pins.micro_batch_size
            if self.pins.compile:
                compile_in_place(learner)
        self.seconds: list[float] = []
        self.memory = 0

    def enter(self) -> None:
        """Let this process compute as decided for this side, where another one was before."""
        for learner in self.job.learners.values():
            apply(learner, self.pins)

    def begin(self, data: Batches, seed: int) -> None:
        """Get ready for the first step."""
        self.reports = steps(TrainState(self.job.learners), data, seed, self.world)

    def step(self, first: bool) -> Report | None:
        """Take a step, timed; None: its learners have finished."""
        cuda = self.world.device.type == "cuda"
        clock = time.perf_counter if cuda else time.process_time
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.world.device)
            torch.cuda.synchronize(self.world.device)
        begun = clock()
        if first and not cuda:
            with _kept_bytes(self.job.learners) as kept:
                report = next(self.reports, None)
            self.memory = kept.most
        else:
            report = next(self.reports, None)
        if cuda:
            torch.cuda.synchronize(self.world.device)
            self.memory = max(self.memory, torch.cuda.max_memory_allocated(self.world.device))
        self.seconds.append(clock() - begun)
        return report

    def settled(self, config: RunConfig | None = None) -> RunConfig:
        """Return a configuration, this side's own or another, with each `auto` as it became here."""
        return self.pins.settle(config or self.config)


class _Ledger:
    """Bytes that are kept for backward now, and the most that were at one time; weights left out."""

    def __init__(self, learners: Mapping[str, Learner]) -> None:
        self.owned = {p.data_ptr() for learner in learners.values() for p in learner.parameters}
        self.holders: dict[int, int] = {}  # of each storage
        self.now = self.most = 0


class _Kept:
    """A tensor that is kept; it counts for as long as this object lives."""

    def __init__(self, tensor: Tensor, ledger: _Ledger) -> None:
        self.tensor, self.ledger = tensor, ledger
        storage = tensor.untyped_storage()
        self.place, self.size = storage.data_ptr(), storage.nbytes()
        if self.place in ledger.owned:
            self.size = 0
        ledger.holders[self.place] = ledger.holders.get(self.place, 0) + 1
        if ledger.holders[self.place] == 1:
            ledger.now += self.size
            ledger.most = max(ledger.most, ledger.now)

    def __del__(self) -> None:
        self.ledger.holders[self.place] -= 1
        if not self.ledger.holders[self.place]:
            self.ledger.now -= self.size


@contextmanager
def _kept_bytes(learners: Mapping[str, Learner]) -> Iterator[_Ledger]:
    ledger = _Ledger(learners)

    def pack(tensor: Tensor) -> _Kept:
        return _Kept(tensor, ledger)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        yield ledger
