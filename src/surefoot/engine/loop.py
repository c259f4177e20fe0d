"""The training loop: a generator that advances the state by one batch and reports.

It trains; it does not log, validate, sample, save or stop. Whoever consumes it decides when to do
those, and may be twenty lines of a user's own (`examples/own_loop.py`): the promise lives here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from surefoot.data.batch import Batch
from surefoot.engine import faults
from surefoot.engine.checksum import checksum
from surefoot.engine.journal import Event, Record
from surefoot.engine.learner import Learner
from surefoot.engine.random import example_keys, rekey
from surefoot.engine.state import TrainState
from surefoot.engine.world import World
from surefoot.errors import OutOfResources
from surefoot.nn.dropout import set_keys
from surefoot.seeds import derive

__all__ = ["Batches", "Happening", "Reading", "Report", "Turn", "steps"]

# Returns the events that an earlier process met, by learner and step: they are repeated.
Replay = Callable[[str, int], Sequence[Record]]


class Batches(Protocol):
    """What the loop needs of the data: `Data`, or a `Prefetch` around it."""

    @property
    def batch_size(self) -> int: ...

    def size(self, step: int) -> int: ...

    def batch(self, step: int, start: int = 0, size: int | None = None) -> Batch: ...


_REPEATED = "repeated from the journal"


@dataclass(frozen=True)
class Reading:
    """What one learner's step gave. `loss` and `grad_norm` are float32 values, per unit of weight.

    `applied` is False when the update was skipped (non-finite, a spike, or repeated from the journal).
    `state` is the checksum of a part of the learner before the step. `seconds` is how long it
    took, which is no part of the numbers.
    """

    loss: float
    grad_norm: float
    lr: float
    micro: int
    applied: bool
    state: int = 0
    parts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Happening:
    """Something that changed the numbers at this step: an Event, for one learner.

    `why` is the same when the event is repeated from the journal; `detail` is what only this
    process knows.
    """

    learner: str
    event: Event
    value: float
    why: str
    norm: float = 0.0
    detail: str = ""

    def __str__(self) -> str:
        words = {
            Event.SKIP: "update skipped, weights untouched",
            Event.MICRO: f"going on with {self.value:.0f} examples a pass, the same batch",
        }[self.event]
        return f"{words} ({': '.join(filter(None, (self.why, self.detail)))})"


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
            told = () if replay is None else replay(name, step + 1)
            turn = Turn(name, state.learners[name], data, seed, world, told)
            readings[name], weight = turn.take()
            happenings += turn.happenings
        yield Report(step + 1, weight, derive(seed, "forward", step, 0), readings, happenings)


class Turn:
    """One learner's turn at one batch: gradients, the gate, and the update."""

    def __init__(
        self,
        name: str,
        learner: Learner,
        data: Batches,
        seed: int,
        world: World,
        told: Sequence[Record],
    ) -> None:
        self.name, self.learner, self.data = name, learner, data
        self.seed, self.world = seed, world
        self.step = learner.step
        self.told = told
        self.state = 0
        self.happenings: list[Happening] = []
        self._before = [buffer.clone() for buffer in learner.buffers]  # forward passes write there

    def take(self) -> tuple[Reading, int]:
        begun = time.perf_counter()
        for record in self.told:
            if record.code == Event.MICRO:
                self._shrink(int(record.value), _REPEATED)
        loss, norm, weight, parts = self._gradients_with_retries()
        skip = next((r for r in self.told if r.code == Event.SKIP), None)
        if skip is not None:  # what it was then counts, for it may have passed
            loss, norm = skip.value, skip.norm
        applied = self._gate(loss, norm)
        if not applied:
            parts = dict.fromkeys(parts, math.nan)
            self._put_back()
        lr = self._update() if applied else self.learner.rate
        if applied:
            self.learner.remember(loss)
        self.learner.zero()
        self.learner.step += 1
        spent = time.perf_counter() - begun
        found = Reading(loss, norm, lr, self._micro, applied, self.state, parts, spent)
        return found, weight

    @property
    def _micro(self) -> int:
        return self.learner.micro or self.data.batch_size

    def _gradients_with_retries(self) -> tuple[float, float, int, dict[str, Any]]:
        """Redo the step once as it was when memory runs out, then with ever smaller pieces."""
        retried = False
        while True:
            try:
                return self.gradients()
            except Exception as error:
                if not faults.out_of_memory(error):
                    raise
                self.learner.zero()
                faults.release(error)
                self._put_back()
                why = str(error).partition("\n")[0]
            if retried:
                self._halve(why)
            retried = True

    def _put_back(self) -> None:
        """Let the buffers be as they were before the step."""
        for buffer, value in zip(self.learner.buffers, self._before, strict=True):
            buffer.copy_(value)

    def _halve(self, why: str) -> None:
        if self._micro == 1:
            raise OutOfResources(
                f"out of memory with one example at a time: {why}",
                where=f"step {self.step + 1}, learner {self.name}",
                fix="memory.checkpointing if it is off, a smaller model.context or model.d_model, "
                "or another machine",
            )
        self._shrink(self._micro // 2, why)

    def _shrink(self, micro: int, detail: str) -> None:
        why = f"out of memory at {self._micro} examples a pass"
        self.learner.micro = micro
        self.happenings.append(Happening(self.name, Event.MICRO, micro, why, detail=detail))

    def gradients(self) -> tuple[float, float, int, dict[str, Any]]:
        """Leave the clipped gradient in the learner; return loss, norm, units and parts of the loss."""
        if self.learner.exchange is not None:
            return self.learner.exchange.gradients(self)
        state = checksum(self.learner, self.step)
        batches = [self.piece(start) for start in self.starts]
        total = sum(batch.weight for batch in batches)
        loss: Any = None
        parts: dict[str, Any] = {}
        for start, batch in zip(self.starts, batches):
            self.rekey(start)
            found = self.learner.accumulate(self.world.to(batch), total)
            loss = found.sum.detach() if loss is None else loss + found.sum.detach()
            for key, value in found.parts.items():
                parts[key] = parts[key] + value.detach() if key in parts else value.detach()
        assert loss is not None
        norm = self.learner.gradient_norm()
        # Read together with the loss, so that the device is waited for once.
        self.state = int(state)
        return float(loss) / total, float(norm), total, {k: v / total for k, v in parts.items()}

    @property
    def starts(self) -> range:
        """Where the micro-batches of this step begin, over all processes."""
        return range(0, self.data.size(self.step), self._micro)

    def piece(self, start: int) -> Batch:
        """Return the micro-batch that begins there."""
        return self.data.batch(self.step, start, self._size(start))

    def _size(self, start: int) -> int:
        return min(self._micro, self.data.size(self.step) - start)

    def rekey(self, start: int) -> None:
        """Point every generator at the keys of the micro-batch that begins there."""
        rekey(derive(self.seed, "forward", self.step, start), self.world.device)
        if self.learner.dropouts:
            set_keys(self.learner.model, self.keys(start).to(self.world.device))

    def keys(self, start: int) -> Tensor:
        """Return a key for each example of the micro-batch that begins there."""
        return example_keys(self.seed, self.step, start, self._size(start))

    def _gate(self, loss: float, norm: float) -> bool:
        """Decide whether the update is applied. Nothing non-finite ever reaches a parameter."""
        told = any(record.code == Event.SKIP for record in self.told)
        finite = math.isfinite(loss) and math.isfinite(norm)
        if self.learner.precision == "fp16":
            self.learner.rescale(overflowed=not finite)
            if not (finite or told) and self.learner.loss_scale > 1.0 and math.isfinite(loss):
                return False
        if finite and not told and not self.learner.spikes(loss):
            return True
        why, detail = f"loss {loss}, gradient norm {norm}", _REPEATED if told else ""
        if finite and self.learner.spikes(loss):
            why = f"loss {loss:.4f} spikes above the usual {self.learner.usual_loss():.4f}"
        self.happenings.append(Happening(self.name, Event.SKIP, loss, why, norm, detail))
        return False

    def _update(self) -> float:
        try:
            return self.learner.update()
        except Exception as error:
            if faults.out_of_memory(error):
                faults.release(error)
                raise faults.UpdateFailed(self.name, self.step + 1, error) from error
            raise
