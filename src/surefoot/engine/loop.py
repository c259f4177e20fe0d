"""The training loop: a generator that advances the state by one batch and reports.

It trains; it does not log, validate, sample, save or stop. Whoever consumes it decides when to do
those, and may be twenty lines of a user's own (`examples/own_loop.py`): the promise lives here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from surefoot.data.batch import Batch
from surefoot.engine import faults
from surefoot.engine.journal import Event
from surefoot.engine.learner import Learner
from surefoot.engine.random import example_keys, rekey
from surefoot.engine.state import TrainState
from surefoot.engine.world import World
from surefoot.errors import OutOfResources
from surefoot.nn.dropout import set_keys
from surefoot.seeds import derive

__all__ = ["Batches", "Happening", "Reading", "Report", "steps"]

# Events that an earlier process met, by (learner, step): they are repeated, not awaited.
Replay = Mapping[tuple[str, int], list[tuple[Event, float]]]


class Batches(Protocol):
    """What the loop needs of the data: `Data`, or a `Prefetch` around it."""

    @property
    def batch_size(self) -> int: ...

    def batch(self, step: int, start: int = 0, size: int | None = None) -> Batch: ...


@dataclass(frozen=True)
class Reading:
    """What one learner's step gave. `loss` and `grad_norm` are float32 values, per unit of weight.

    `applied` is False when the update was skipped (non-finite, or repeated from the journal).
    """

    loss: float
    grad_norm: float
    lr: float
    micro: int
    applied: bool
    parts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Happening:
    """Something that changed the numbers at this step: an Event, for one learner."""

    learner: str
    event: Event
    value: float
    why: str


@dataclass(frozen=True)
class Report:
    """One consumed batch. `step` counts batches consumed after it; `weight` is the batch's units."""

    step: int
    weight: int
    seed: int
    readings: dict[str, Reading]
    happenings: list[Happening]


def steps(
    state: TrainState, data: Batches, seed: int, world: World, replay: Replay | None = None
) -> Iterator[Report]:
    """Advance `state` one batch at a time until every learner has finished; report each.

    Raises OutOfResources when one example at a time does not fit, and UpdateFailed when memory
    ran out inside an optimiser, whose learner must then be restored.
    """
    while not state.finished:
        step, names = state.step, state.due()
        readings, happenings, weight = {}, [], 0
        for name in names:
            turn = _Turn(name, state.learners[name], data, seed, world, replay or {})
            readings[name], weight = turn.take()
            happenings += turn.happenings
        yield Report(step + 1, weight, derive(seed, "forward", step, 0), readings, happenings)


class _Turn:
    """One learner's turn at one batch: gradients, the gate, and the update."""

    def __init__(
        self, name: str, learner: Learner, data: Batches, seed: int, world: World, replay: Replay
    ) -> None:
        self.name, self.learner, self.data = name, learner, data
        self.seed, self.world = seed, world
        self.step = learner.step
        self.told = dict(replay.get((name, self.step + 1), ()))
        self.happenings: list[Happening] = []

    def take(self) -> tuple[Reading, int]:
        if Event.MICRO in self.told:
            self._shrink(int(self.told[Event.MICRO]), "repeated from the journal")
        loss, norm, weight, parts = self._gradients_with_retries()
        applied = self._gate(loss, norm)
        lr = self._update() if applied else self.learner.rate
        self.learner.zero()
        self.learner.step += 1
        return Reading(loss, norm, lr, self._micro, applied, parts), weight

    @property
    def _micro(self) -> int:
        return self.learner.micro or self.data.batch_size

    def _gradients_with_retries(self) -> tuple[float, float, int, dict[str, Any]]:
        """Redo the step once as it was when memory runs out, then with ever smaller pieces."""
        retried = False
        while True:
            try:
                return self._gradients()
            except Exception as error:
                if not faults.out_of_memory(error):
                    raise
                self.learner.zero()
                faults.release(error)
                why = str(error).partition("\n")[0]
            if retried:
                self._halve(why)
            retried = True

    def _halve(self, why: str) -> None:
        micro = self._micro
        if micro == 1:
            raise OutOfResources(
                f"out of memory with one example at a time: {why}",
                where=f"step {self.step + 1}, learner {self.name}",
                fix="a smaller model.context or model.d_model, or another machine",
            )
        self._shrink(micro // 2, f"out of memory at {micro} examples a pass: {why}")

    def _shrink(self, micro: int, why: str) -> None:
        self.learner.micro = micro
        self.happenings.append(Happening(self.name, Event.MICRO, micro, why))

    def _gradients(self) -> tuple[float, float, int, dict[str, Any]]:
        starts = range(0, self.data.batch_size, self._micro)
        batches = [self._piece(start) for start in starts]
        total = sum(batch.weight for batch in batches)
        loss, parts = None, {}
        for start, batch in zip(starts, batches):
            self._rekey(start)
            found = self.learner.accumulate(self.world.to(batch), total)
            loss = found.sum.detach() if loss is None else loss + found.sum.detach()
            for key, value in found.parts.items():
                parts[key] = parts[key] + value.detach() if key in parts else value.detach()
        assert loss is not None
        norm = self.learner.gradient_norm()
        return float(loss) / total, float(norm), total, {k: v / total for k, v in parts.items()}

    def _piece(self, start: int) -> Batch:
        size = min(self._micro, self.data.batch_size - start)
        return self.data.batch(self.step, start, size)

    def _rekey(self, start: int) -> None:
        rekey(derive(self.seed, "forward", self.step, start), self.world.device)
        if self.learner.dropouts:
            size = min(self._micro, self.data.batch_size - start)
            keys = example_keys(self.seed, self.step, start, size)
            set_keys(self.learner.model, keys.to(self.world.device))

    def _gate(self, loss: float, norm: float) -> bool:
        """Decide whether the update is applied. Nothing non-finite ever reaches a parameter."""
        finite = math.isfinite(loss) and math.isfinite(norm)
        if Event.SKIP in self.told:
            self._skip("repeated from the journal")
            return False
        if self.learner.precision == "fp16":
            self.learner.rescale(overflowed=not finite)
            if not finite and self.learner.loss_scale > 1.0 and math.isfinite(loss):
                return False
        if not finite:
            self._skip(f"loss {loss}, gradient norm {norm}")
        return finite

    def _skip(self, why: str) -> None:
        self.happenings.append(Happening(self.name, Event.SKIP, 0.0, why))

    def _update(self) -> float:
        try:
            return self.learner.update()
        except Exception as error:
            if faults.out_of_memory(error):
                faults.release(error)
                raise faults.UpdateFailed(self.name, self.step + 1, error) from error
            raise
