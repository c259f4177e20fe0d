"""Things that go wrong inside a step: numbers that are none, memory that runs out, a device that goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from surefoot.data.batch import Batch
from surefoot.engine import Learner, Loss
from surefoot.engine.conduct import Conductor

__all__ = ["ERRORS", "LOST", "make"]

ERRORS: list[Callable[[], Exception]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    lambda: RuntimeError("CUDA error: out of memory"),
    lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate"),
    lambda: MemoryError(),
]
LOST: list[Callable[[], Exception]] = [
    lambda: torch.AcceleratorError(
        "CUDA error: unspecified launch failure\nCUDA kernel errors ..."
    ),
    lambda: RuntimeError("CUDA error: uncorrectable ECC error encountered"),
]


@dataclass
class Fault:
    """What goes wrong `where`, in the step after `step`, at most `times` times (-1: always).

    `over` makes memory run out from that step on, for pieces of more examples than that; `width`
    singles out the learner whose first layer has that many rows. Where `lost`, no memory runs out:
    the device does not answer any more.
    """

    where: str
    step: int
    times: int = -1
    over: int | None = None
    error: int = 0
    width: int | None = None
    lost: bool = False

    def strikes(self, learner: Learner, step: int, size: int = 1 << 30) -> bool:
        if self.width not in (None, learner.parameters[0].size(0)):
            return False
        if self.over is not None:
            return step >= self.step and size > self.over
        if step != self.step or self.times == 0:
            return False
        self.times -= 1
        return True

    def out_of_memory(self) -> Exception:
        return (LOST if self.lost else ERRORS)[self.error]()


def make(spec: dict[str, Any]) -> None:
    """Arrange one fault in this process, from the moment that training begins."""
    fault, run = Fault(**spec), Conductor.run

    def run_with_fault(self: Conductor) -> str:
        _MAKERS[fault.where](fault)
        return run(self)

    Conductor.run = run_with_fault  # type: ignore[method-assign]


def _size(batch: Batch) -> int:
    return len(next(iter(batch.fields.values())))


def _in_accumulate(fault: Fault, do: Callable[..., Loss]) -> None:
    """Let `do(fault, accumulate, learner, batch, total)` take the place of a forward pass."""
    accumulate = Learner.accumulate

    def replaced(self: Learner, batch: Batch, total: float) -> Loss:
        if fault.strikes(self, self.step, _size(batch)):
            return do(fault, accumulate, self, batch, total)
        return accumulate(self, batch, total)

    Learner.accumulate = replaced  # type: ignore[method-assign]


def _nan_in_data(fault: Fault, accumulate: Any, learner: Any, batch: Any, total: float) -> Loss:
    fields = dict(batch.fields)
    fields["x"] = fields["x"].clone()
    fields["x"][0, 0] = float("nan")
    return accumulate(learner, Batch(fields, batch.weight), total)


def _nan_in_loss(fault: Fault, accumulate: Any, learner: Any, batch: Any, total: float) -> Loss:
    loss = learner.loss
    learner.loss = lambda model, batch: Loss(loss(model, batch).sum * float("nan"))
    try:
        return accumulate(learner, batch, total)
    finally:
        learner.loss = loss


def _spike(fault: Fault, accumulate: Any, learner: Any, batch: Any, total: float) -> Loss:
    fields = dict(batch.fields)
    fields["y"] = fields["y"] + 100.0
    return accumulate(learner, Batch(fields, batch.weight), total)


def _inf_in_gradient(fault: Fault, accumulate: Any, learner: Any, batch: Any, total: float) -> Loss:
    found = accumulate(learner, batch, total)
    learner.parameters[-1].grad.view(-1)[0] = float("inf")
    return found


def _full_in_forward(fault: Fault, *_: Any) -> Loss:
    raise fault.out_of_memory()


def _full_in_backward(
    fault: Fault, accumulate: Any, learner: Any, batch: Any, total: float
) -> Loss:
    def refuse(gradient: Any) -> None:
        raise fault.out_of_memory()

    hook = learner.parameters[0].register_hook(refuse)
    try:
        return accumulate(learner, batch, total)
    finally:
        hook.remove()


def _full_in_optimiser(fault: Fault) -> None:
    update = Learner.update

    def half_an_update(self: Learner) -> float:
        if fault.strikes(self, self.step):
            with torch.no_grad():
                self.parameters[0].mul_(1.5)  # what an interrupted optimiser leaves
            raise fault.out_of_memory()
        return update(self)

    Learner.update = half_an_update  # type: ignore[method-assign]


def _full_in_evaluation(fault: Fault) -> None:
    evaluating = Learner.evaluating

    @contextmanager
    def too_much(self: Learner) -> Iterator[Any]:
        with evaluating(self) as model:
            if fault.strikes(self, self.step - 1):
                torch.rand(3)  # what a first look may have drawn
                raise fault.out_of_memory()
            yield model

    Learner.evaluating = too_much  # type: ignore[method-assign]


_MAKERS: dict[str, Callable[[Fault], None]] = {
    "data": lambda f: _in_accumulate(f, _nan_in_data),
    "spike": lambda f: _in_accumulate(f, _spike),
    "loss": lambda f: _in_accumulate(f, _nan_in_loss),
    "gradient": lambda f: _in_accumulate(f, _inf_in_gradient),
    "forward": lambda f: _in_accumulate(f, _full_in_forward),
    "backward": lambda f: _in_accumulate(f, _full_in_backward),
    "optimiser": _full_in_optimiser,
    "evaluation": _full_in_evaluation,
}
