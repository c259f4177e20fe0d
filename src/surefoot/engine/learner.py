"""A learner: a model, its loss, its optimisers and its schedule, and how far it has come.

A learner trains; it does not log, validate, sample or save. It is final: vary it by what you pass
in. `accumulate` and `update` are its only methods that change anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from surefoot.data.batch import Batch
from surefoot.nn.dropout import keyed_layers
from surefoot.nn.optim import clip_
from surefoot.nn.optimiser import Optimiser
from surefoot.schedule import Constant, Schedule

__all__ = ["Curriculum", "Learner", "Loss"]

LossFunction = Callable[..., "Loss"]

_RECENT, _ENOUGH = 64, 8  # losses that are remembered, and how many it takes to call one a spike


@dataclass
class Loss:
    """What a loss function returns: f32[] summed over `batch.weight` units, never a mean.

    `parts` are named sums over the same units, for the record only.
    """

    sum: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class Curriculum(Protocol):
    """How hard the work is at each step: a function of the step and of what it remembers.

    What it remembers lives in the learner's `memory` (JSON-able), so that it is saved.
    """

    def level(self, step: int, memory: Mapping[str, Any]) -> float:
        """Return what the loss function is given as its third argument, `level`."""
        ...

    def observe(self, step: int, loss: float, memory: dict[str, Any]) -> None:
        """Take in the loss (a mean over units) of an applied update, the one after `step`."""
        ...


@dataclass(eq=False)
class Learner:
    """One model in training.

    `loss(model, batch)` gives a Loss, `loss(model, batch, level)` where there is a curriculum.

    `step` counts batches consumed, `updates` counts optimiser steps applied (a skipped update
    consumes its batch). `micro` is examples per forward pass, None for the whole batch. `memory`
    is small JSON-able state that changes decisions (best loss, curriculum), saved as it is.
    """

    model: nn.Module
    loss: LossFunction
    optimisers: Sequence[Optimiser]
    schedule: Schedule = field(default_factory=Constant)
    clip: float = 1.0
    limit: int | None = None
    precision: str = "fp32"
    curriculum: Curriculum | None = None
    spike_factor: float | None = None

    step: int = 0
    updates: int = 0
    micro: int | None = None
    lr_factor: float = 1.0
    loss_scale: float = 1.0
    memory: dict[str, Any] = field(default_factory=dict)
    before_change: Callable[[], object] = lambda: None  # waits for whoever still copies the state
    ema: float | None = None
    average: dict[str, Tensor] = field(default_factory=dict, repr=False)
    looked_at: tuple[list[Tensor], list[Tensor]] = field(default=([], []), repr=False)
    exchange: Any = field(default=None, repr=False)  # adds up what several processes computed

    def __post_init__(self) -> None:
        trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.names, self.parameters = list(trained), list(trained.values())
        saved = set(self.model.state_dict(keep_vars=True))
        self.buffers = [b for n, b in self.model.named_buffers() if n in saved]
        self.dropouts = keyed_layers(self.model)
        self.groups = [group for opt in self.optimisers for group in opt.param_groups]
        for group in self.groups:
            group.setdefault("peak", group["lr"])
        self.set_precision(self.precision)

    def average_with(self, decay: float | None) -> None:
        """Keep an exponential moving average of the weights, beginning with those of now."""
        self.ema = decay
        self.average = {n: p.detach().clone() for n, p in self._trained()} if decay else {}

    @property
    def finished(self) -> bool:
        """Whether it has reached its own limit or was stopped early."""
        return bool(self.memory.get("stopped")) or (
            self.limit is not None and self.step >= self.limit
        )

    @property
    def device(self) -> torch.device:
        return self.parameters[0].device

    def set_precision(self, precision: str) -> None:
        """Choose the arithmetic of the forward pass: fp32, bf16 or fp16 (with loss scaling)."""
        self.precision = precision
        if precision == "fp16" and self.loss_scale == 1.0:
            self.loss_scale = 2.0**14
        self.autocast = self._make_autocast()

    def _make_autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)

    def accumulate(self, batch: Batch, total: float) -> Loss:
        """Add the gradient of this micro-batch's share of the mean over `total` units."""
        with self.autocast:
            loss = self.loss(self.model, batch, *self.level())
        # A gradient handed to backward would be checked by torch's compiler, and so load it.
        (loss.sum * (self.loss_scale / total)).backward()
        return loss

    def level(self) -> tuple[float, ...]:
        """Return what the loss is called with besides: the level of the curriculum, if any."""
        if self.curriculum is None:
            return ()
        return (self.curriculum.level(self.step, self.memory),)

    def gradient_norm(self, factor: Tensor | float = 1.0) -> float:
        """Undo the loss scale, multiply by `factor`, clip, and return the norm before clipping."""
        self.scale(factor)
        return clip_(self.parameters, self.clip)

    def scale(self, factor: Tensor | float) -> None:
        """Undo the loss scale and multiply the gradients by `factor`."""
        if isinstance(factor, Tensor) or factor / self.loss_scale != 1.0:
            torch._foreach_mul_(self._gradients(), factor / self.loss_scale)

    def update(self) -> float:
        """Apply the gradients with the schedule's rate; return the rate of the first group."""
        self.before_change()
        multiplier = self._multiplier()
        for group in self.groups:
            group["lr"] = group["peak"] * multiplier
        for optimiser in self.optimisers:
            optimiser.step()
        self.updates += 1
        if self.ema is not None:
            self._follow()
        return self.rate

    def _multiplier(self) -> float:
        return self.schedule(self.step) * self.lr_factor

    @property
    def rate(self) -> float:
        """Learning rate at this step, on the scale of the last group (AdamW's, beside Muon's)."""
        return float(self.groups[-1]["peak"]) * self._multiplier()

    def zero(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def rescale(self, overflowed: bool) -> None:
        """fp16 only: halve the loss scale on overflow, double it after 2,000 good steps."""
        good = 0 if overflowed else self.memory.get("good_steps", 0) + 1
        if overflowed:
            self.loss_scale = max(1.0, self.loss_scale / 2)
        elif good >= 2000:
            self.loss_scale, good = min(2.0**24, self.loss_scale * 2), 0
        self.memory["good_steps"] = good

    def usual_loss(self) -> float | None:
        """Return the median of the last losses; None without `spike_factor` or with too few."""
        recent = self.memory.get("losses", ())
        return median(recent) if len(recent) >= _ENOUGH else None

    def spikes(self, loss: float) -> bool:
        """Whether a finite `loss` is so far above the usual that its update must not happen."""
        usual = self.usual_loss()
        return usual is not None and loss > (self.spike_factor or 1.0) * usual > 0

    def remember(self, loss: float) -> None:
        """Let the loss of this step, whose update was applied, decide about later ones."""
        if self.curriculum is not None:
            self.curriculum.observe(self.step, loss, self.memory)
        if self.spike_factor is not None:
            self.memory["losses"] = [*self.memory.get("losses", ()), loss][-_RECENT:]

    @property
    def split(self) -> bool:
        """Whether each process holds only a part of every tensor."""
        return getattr(self.exchange, "split", False)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Have whole weights in the model while the block runs; all processes enter it together."""
        with self.exchange.gathered() if self.split else nullcontext():
            yield

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """Lend the model for looking: eval mode, no gradients, averaged weights if there are any.

        It is not compiled then: what is looked at has many shapes, and each would take seconds.
        The training weights and mode are back when the block ends, also when it raises.
        """
        swap = self.ema and not self.split  # what is split is swapped where it is gathered
        swapped = {n: p.detach().clone() for n, p in self._trained()} if swap else {}
        self.model.eval()
        try:
            if swapped:
                self._write(self.average)
            with torch.no_grad(), self.autocast, self.uncompiled():
                yield self.model
        finally:
            if swapped:
                self._write(swapped)
            self.model.train()

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Call the model as it is written while the block runs."""
        compiled, self.model._compiled_call_impl = self.model._compiled_call_impl, None
        try:
            yield
        finally:
            self.model._compiled_call_impl = compiled

    def _trained(self) -> Iterator[tuple[str, Any]]:
        return zip(self.names, self.parameters, strict=True)

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]

    @torch.no_grad()
    def _follow(self) -> None:
        kept = [self.average[n] for n, _ in self._trained()]
        torch._foreach_lerp_(kept, [p.detach() for _, p in self._trained()], 1.0 - self.ema)  # type: ignore[operator]

    @torch.no_grad()
    def _write(self, values: dict[str, Tensor]) -> None:
        self.before_change()
        for name, parameter in self._trained():
            parameter.copy_(values[name])
