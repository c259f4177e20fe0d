"""Find the first layer in which two models with equal weights differ, on one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from surefoot.data.batch import Batch
from surefoot.engine.job import Job
from surefoot.engine.learner import Learner
from surefoot.engine.place import Decisions, apply
from surefoot.engine.random import example_keys, rekey
from surefoot.engine.world import World
from surefoot.nn.dropout import set_keys
from surefoot.ops.way import exact
from surefoot.seeds import derive

__all__ = ["Difference", "Heard", "Party", "listening", "locate", "pass_once"]

Heard = list[tuple[str, Tensor]]


@dataclass(frozen=True)
class Difference:
    """Where two sides differ first. `phase` is forward, backward, update, weight, number or drift.

    `layer` is a module (`blocks.0.norm1`), an operation in it (`blocks.0.attn.attend`), or a
    weight; `error` is relative to a's.
    """

    step: int
    learner: str
    phase: str
    layer: str
    error: float

    def __str__(self) -> str:
        where = {
            "forward": f"the first layer that differs is {self.layer}",
            "backward": f"the outputs agree, and the first gradient that differs is that of {self.layer}",
            "update": f"the gradients are equal, and the update of {self.layer} is not",
            "weight": f"the weight {self.layer} is another",
            "number": f"{self.layer} is another",
            "drift": "with equal weights every layer agrees, so the weights have drifted apart",
        }[self.phase]
        who = "" if self.learner == "main" else f", learner {self.learner}"
        return f"step {self.step}{who}: {where}, by {self.error:.1e}"


class Party(Protocol):
    """One of the two sides."""

    @property
    def job(self) -> Job: ...
    @property
    def world(self) -> World: ...
    @property
    def pins(self) -> Decisions: ...


def locate(
    sides: Sequence[Party],
    name: str,
    batch: Batch,
    step: int,
    seed: int,
    tolerance: float,
    error: float,
) -> Difference:
    """Return where two learners differ first, both with the weights of the second one.

    `batch` is the first piece of batch `step`. Weights and gradients are afterwards as before.
    """
    one, two = (side.job.learners[name] for side in sides)
    heard: list[tuple[Heard, Heard]] = []
    with _borrowed(one, two), _without_gradients(one), _without_gradients(two):
        for side, learner in zip(sides, (one, two), strict=True):
            apply(learner, side.pins)
            with listening(learner) as outputs:
                gradients = pass_once(learner, side.world, batch, step, seed)
            heard.append((outputs, gradients))
    for phase, a, b in zip(("forward", "backward"), *heard, strict=True):
        for layer, off in _errors(a, b):
            if not off <= tolerance:  # NaN is not
                return Difference(step + 1, name, phase, layer, off)
    return Difference(step + 1, name, "drift", "", error)


def pass_once(learner: Learner, world: World, batch: Batch, step: int, seed: int) -> Heard:
    """Go forward and backward with the first piece of a batch; return gradients as they came."""
    found: Heard = []
    hooks = [
        p.register_post_accumulate_grad_hook(_keeper(name, found))
        for name, p in zip(learner.names, learner.parameters)
    ]
    try:
        rekey(derive(seed, "forward", step, 0), world.device)
        if learner.dropouts:
            size = len(next(iter(batch.fields.values())))
            set_keys(learner.model, example_keys(seed, step, 0, size).to(world.device))
        learner.accumulate(world.to(batch), batch.weight)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _keeper(name: str, found: Heard) -> Callable[[Tensor], None]:
    def keep(parameter: Tensor) -> None:
        if parameter.grad is not None:
            found.append((name, parameter.grad.detach().clone()))

    return keep


@contextmanager
def listening(learner: Learner) -> Iterator[Heard]:
    """Hear what the leaves of a model and its operations give, in the order in which they do."""
    found: Heard = []
    hooks, changed = [], []
    model = learner.model
    for path, module in model.named_modules():
        if path and not any(module.children()):
            hooks.append(module.register_forward_hook(_hook(path, found)))
        if not isinstance(module, nn.Module):
            continue
        prefix = f"{path}." if path else ""
        for attribute in getattr(module, "kernels", {}):
            call = getattr(module, attribute)
            changed.append((module, attribute, call))
            setattr(module, attribute, _teller(f"{prefix}{attribute}", call, found))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        for module, attribute, call in changed:
            setattr(module, attribute, call)


def _hook(path: str, found: Heard) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, given: Any, result: Any) -> None:
        first = result[0] if isinstance(result, tuple) and result else result
        if isinstance(first, Tensor) and first.is_floating_point():
            found.append((path, first.detach().clone()))

    return hook


def _teller(path: str, call: Callable[..., Any], found: Heard) -> Callable[..., Any]:
    def told(*args: Any) -> Any:
        result = call(*args)
        if isinstance(result, Tensor):
            found.append((path, result.detach().clone()))
        return result

    return told


def _errors(a: Heard, b: Heard) -> Iterator[tuple[str, float]]:
    """Yield (layer, relative error), pairing the n-th time that a layer was heard."""
    waiting: dict[str, list[Tensor]] = {}
    for path, tensor in b:
        waiting.setdefault(path, []).append(tensor)
    largest = max((float(exact(t).norm()) for _, t in a), default=0.0)
    for path, tensor in a:
        if waiting.get(path):
            other = waiting[path].pop(0).to(tensor.device)
            if other.shape != tensor.shape:
                yield path, float("inf")
                continue
            size = max(float(exact(tensor).norm()), 1e-3 * largest, 1e-30)
            yield path, float((exact(other) - exact(tensor)).norm()) / size


@contextmanager
def _borrowed(one: Learner, two: Learner) -> Iterator[None]:
    """Let `one` have the weights of `two`."""
    kept = [p.detach().clone() for p in one.parameters]
    with torch.no_grad():
        torch._foreach_copy_(list(one.parameters), list(two.parameters))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(one.parameters), kept)


@contextmanager
def _without_gradients(learner: Learner) -> Iterator[None]:
    kept = [p.grad for p in learner.parameters]
    learner.zero()
    try:
        yield
    finally:
        for parameter, grad in zip(learner.parameters, kept):
            parameter.grad = grad
