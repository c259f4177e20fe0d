"""What a forward pass writes into buffers, like BatchNorm's, counts once for each update and no more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.unit.test_watch_life import Waves
from torch import Tensor, nn

from surefoot.config.schema import Optim
from surefoot.data.batch import Batch, Data
from surefoot.engine import Learner, Loss, TrainState, World, steps
from surefoot.engine.journal import Event, Kind, Record
from surefoot.nn.optim import build_optimisers

CPU = World(torch.device("cpu"))
STEPS = 4


class Fault:
    """Something that happens once, in the backward pass of the micro-batch `at` of the run."""

    def __init__(self, at: int = -1, error: Exception | None = None) -> None:
        self.at, self.error, self.passes = at, error, 0

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        found = (model(batch.fields["x"]) - batch.fields["y"]).square().sum()
        self.passes += 1
        if self.passes - 1 == self.at:
            if self.error is None:
                return Loss(found * torch.nan)
            found.register_hook(self.strike)
        return Loss(found)

    def strike(self, grad: Tensor) -> None:
        assert self.error is not None
        raise self.error


def learner(fault: Fault, micro: int = 8) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimisers = build_optimisers(model, Optim(kind="adamw", lr=1e-2))
    return Learner(model, fault.loss, optimisers, micro=micro, limit=STEPS)


def trained(made: Learner, replay: Any = None) -> list[tuple[Any, ...]]:
    """Return loss, norm and buffers after each step."""
    found = []
    state = TrainState({"main": made})
    for report in steps(state, Data(Waves(), 1, 16), 1, CPU, replay):
        reading = report.readings["main"]
        buffers = [b.tolist() for b in made.model.buffers()]
        found.append((reading.loss, reading.grad_norm, reading.micro, buffers))
    return found


@pytest.mark.parametrize("at", [0, 3])
def test_a_step_that_is_done_again_after_memory_ran_out_is_the_same(at: int) -> None:
    """In its first micro-batch or in its second, after which the first has been seen already."""
    failing = learner(Fault(at, torch.OutOfMemoryError("out of memory")))
    assert trained(failing) == trained(learner(Fault()))
    assert int(failing.model[1].num_batches_tracked) == 2 * STEPS  # type: ignore[index]


def test_a_step_in_smaller_pieces_is_what_a_resume_repeats() -> None:
    """The journal says only how large they are, and not how often they were tried."""

    class Full(Fault):
        def loss(self, model: nn.Module, batch: Batch) -> Loss:
            found = super().loss(model, batch)
            if len(batch.fields["x"]) > 4:
                found.sum.register_hook(self.strike)
            return found

    def told(name: str, step: int) -> list[Record]:
        return [Record(Kind.EVENT, step, code=Event.MICRO, value=4.0)] if step == 1 else []

    failed = trained(learner(Full(error=torch.OutOfMemoryError("out of memory"))))
    assert [micro for _, _, micro, _ in failed] == [4] * STEPS
    assert failed == trained(learner(Fault()), told)


def test_an_update_that_is_skipped_leaves_them_alone() -> None:
    """Else one batch that is not finite would be in all that is evaluated from then on."""
    made = learner(Fault(2))
    before: list[list[Any]] = []
    found = []
    state = TrainState({"main": made})
    for report in steps(state, Data(Waves(), 1, 16), 1, CPU):
        found.append(report.readings["main"].applied)
        before.append([b.tolist() for b in made.model.buffers()])
    assert found == [True, False, True, True]
    assert before[1] == before[0] != before[2]
