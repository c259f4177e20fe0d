"""Whether a model lives: does it learn at all, in its first steps? What does not is named.

A backward pass that only lets weights decay, a dead ReLU, a branch that was detached or an output
that is always the same can all train for hours, with a loss that looks like one. The check looks at a
few examples before the first update and after twenty, and at the gradients in between; after two
hundred it asks whether the model does better than the same answer for everything. It changes no bit of
the run: it looks, and says what it saw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from surefoot.data.batch import Batch
from surefoot.engine.learner import Learner
from surefoot.engine.random import rekey
from surefoot.ops.way import exact

__all__ = ["EXAMPLES", "LATER", "STEPS", "Life"]

STEPS = 20  # updates that are watched
LATER = 200  # updates after which a model must know something of its inputs
EXAMPLES = 32  # that the model is asked, at most
SAMPLE = 4096  # numbers of a parameter that are compared, spread evenly over it
SAME = 1e-6  # relative difference that is rounding


@dataclass
class Life:
    """Watches the first updates of one learner; `batch` is on its device, `key` seeds the forward pass.

    A recipe's loss must call its model, or modules of it, with examples along the first dimension:
    that is where outputs are seen. What cannot be seen is not judged.
    """

    learner: Learner
    batch: Batch
    key: int
    updates: int = 0
    _before: list[Tensor] = field(default_factory=list, repr=False)
    _without: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _level: tuple[float, ...] = ()
    _first: float | None = None  # the loss before, until the first updates have been judged
    _done: bool = False

    def watch(self) -> list[str]:
        """Take down how it begins, and look at every update from now on; there is nothing to say yet.

        A learner that has had STEPS updates already is only asked later.
        """
        learner = self.learner
        self._level = learner.level()
        if learner.updates >= STEPS:
            return []
        self._without = dict(zip(learner.names, learner.parameters))
        self._before = [_sample(p).clone() for p in learner.parameters]
        self._first = self._loss()
        update = learner.update

        def watched() -> float:
            if self._first is not None:
                self.updates += 1
                self._look_at_gradients()
            return update()

        learner.update = watched  # type: ignore[method-assign]
        return []

    def findings(self) -> list[str]:
        """Return, once when it is time for it, what is wrong, in a sentence each."""
        if self._first is not None and self.updates == STEPS:
            return list(self._early(self._first))
        if self.learner.updates == LATER and not self._done:
            self._done = True
            return list(self._late())
        return []

    @property
    def done(self) -> bool:
        """Whether nothing will be said any more."""
        return self._done or self.learner.updates > LATER

    def _early(self, first: float) -> Iterator[str]:
        outputs = _Outputs(self.learner.model, len_of(self.batch))
        with outputs.listening():
            last = self._loss()
        yield from self._still()
        for name, kind in outputs.zero.items():
            yield f"{name} ({kind}) gives zero for all inputs"
        yield from self._same(outputs)
        if not last < first:
            yield (
                f"the loss of {len_of(self.batch)} training examples does not fall: {first:.5g} "
                f"before, {last:.5g} after {STEPS} updates"
            )
        self._first, self._before, self._without = None, [], {}

    def _late(self) -> Iterator[str]:
        own, same = self.constant()
        if own >= same:
            yield (
                f"predictions are no better than one answer for all inputs: loss {own:.5g}, "
                f"and {same:.5g} with the mean of the outputs"
            )

    def constant(self) -> tuple[float, float]:
        """Return the loss of the model, and that of its mean output given to every input.

        A model that has learned anything of its inputs is better than its own mean. Both are NaN
        where no output can be seen.
        """
        outputs = _Outputs(self.learner.model, len_of(self.batch))
        with outputs.listening():
            own = self._loss()
        if not outputs.place:
            return math.nan, math.nan
        with outputs.replaced():
            return own, self._loss()

    def _look_at_gradients(self) -> None:
        """Forget the parameters that have a gradient, so that soon there is nothing to look at."""
        self._without = {
            name: p for name, p in self._without.items() if p.grad is None or not bool(p.grad.any())
        }

    def _still(self) -> Iterator[str]:
        """Name parameters without a gradient, and those that do not move or are only scaled."""
        for name, parameter, before in zip(
            self.learner.names, self.learner.parameters, self._before
        ):
            after = _sample(parameter)
            if name in self._without:
                moved = "" if torch.equal(before, after) else "; it only decays"
                yield f"{name} receives no gradient{moved}"
            elif torch.equal(before, after):
                yield f"{name} does not move, though it receives a gradient"
            elif _scaled(before, after):
                yield f"{name} only decays, though it receives a gradient"

    def _same(self, outputs: _Outputs) -> Iterator[str]:
        if not _differ(self.batch) or not outputs.seen:
            return
        wrong = [i for i, tensor in enumerate(outputs.seen) if _identical(tensor)]
        which = "" if len(outputs.seen) == 1 else f" {', '.join(str(i + 1) for i in wrong)}"
        if wrong:
            yield f"outputs{which} are identical for all inputs"

    @torch.no_grad()
    def _loss(self) -> float:
        """Return the mean loss of the examples, in eval mode and without the compiler."""
        learner, model = self.learner, self.learner.model
        rekey(self.key, learner.device)
        model.eval()
        try:
            with learner.autocast, learner.uncompiled():
                found = learner.loss(model, self.batch, *self._level)
            return float(found.sum) / self.batch.weight
        finally:
            model.train()


def len_of(batch: Batch) -> int:
    """Return how many examples a batch has."""
    return min((len(value) for value in batch.fields.values()), default=0)


class _Outputs:
    """What modules give while the loss is computed: the model itself, or the last one that is seen."""

    def __init__(self, model: nn.Module, examples: int) -> None:
        self.model, self.examples = model, examples
        self.seen: list[Tensor] = []
        self.place: nn.Module | None = None
        self.zero: dict[str, str] = {}
        self._alive: set[str] = set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear every module within the block."""
        hooks = [
            module.register_forward_hook(partial(self._hear, name))
            for name, module in self.model.named_modules()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def replaced(self) -> Iterator[None]:
        """Let the outputs be their mean over inputs and places within the block."""
        assert self.place is not None
        hook = self.place.register_forward_hook(lambda _m, _in, out: _map(_mean, out))
        try:
            yield
        finally:
            hook.remove()

    def _hear(self, name: str, module: nn.Module, _inputs: Any, output: Any) -> None:
        found = [t for t in _tensors(output) if t.dim() > 1 and t.size(0) == self.examples]
        if found:
            self.seen, self.place = found, module
        leaf = next(module.children(), None) is None
        if leaf and name not in self._alive and found:
            if all(not bool(t.any()) for t in found):
                self.zero[name] = type(module).__name__
            else:
                self._alive.add(name)
                self.zero.pop(name, None)


def _tensors(output: Any) -> list[Tensor]:
    """Return the floating tensors in an output, however they are packed."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = list(output.values())
    return (
        [t for part in output for t in _tensors(part)] if isinstance(output, list | tuple) else []
    )


def _map(change: Callable[[Tensor], Tensor], output: Any) -> Any:
    """Return an output with its floating tensors changed, packed as it was."""
    if isinstance(output, Tensor):
        return change(output) if output.is_floating_point() else output
    if isinstance(output, Mapping):
        return {key: _map(change, value) for key, value in output.items()}
    if isinstance(output, list | tuple):
        parts = [_map(change, part) for part in output]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    return output


def _mean(tensor: Tensor) -> Tensor:
    """Return the mean over all dimensions but the last, for every place."""
    if tensor.dim() < 2:
        return tensor
    return tensor.mean(tuple(range(tensor.dim() - 1)), keepdim=True).expand_as(tensor).clone()


def _identical(tensor: Tensor) -> bool:
    """Whether all examples along the first dimension have the same, up to rounding."""
    apart = (tensor - tensor[:1]).abs().max()
    return bool(apart <= SAME * tensor.abs().max())


def _differ(batch: Batch) -> bool:
    """Whether the examples of a batch differ at all."""
    return any(bool((value != value[:1]).any()) for value in batch.fields.values())


def _sample(parameter: Tensor) -> Tensor:
    """Return up to SAMPLE numbers of a parameter, evenly from all over it."""
    flat = parameter.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLE)]


def _scaled(before: Tensor, after: Tensor) -> bool:
    """Whether `after` is `before` times a number, up to rounding."""
    before, after = exact(before), exact(after)
    size = float(before.square().sum())
    if before.numel() < 2 or size == 0:
        return False
    times = float((before * after).sum()) / size
    return bool((after - times * before).abs().max() <= SAME * before.abs().max())
