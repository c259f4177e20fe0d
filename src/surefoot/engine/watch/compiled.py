"""Whether compiled code gives the gradient that the model gives without the compiler.

A compiler that loses a gradient says nothing: the loss is right, and some parameters never move. So
before the first step of a process the gradient of its first micro-batch is computed twice, compiled
and not, and compared parameter by parameter. Behind a parameter that is all zeros, as a projection
often begins, nothing has a gradient, so small numbers stand in for it meanwhile. That changes no bit
of the run.

What rounding can do is measured and not guessed. Where two gradients differ much, another precision
says, without the compiler, how far rounding moves this one, however much cancels in it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surefoot.config.schema import RunConfig
from surefoot.data.batch import Batch
from surefoot.engine import faults, named
from surefoot.engine.checksum import bits
from surefoot.engine.learner import Learner
from surefoot.engine.loop import Batches, Turn
from surefoot.engine.memory import available
from surefoot.engine.state import TrainState
from surefoot.engine.world import World
from surefoot.errors import CheckFailed
from surefoot.ops.compiler import compiler_version
from surefoot.track.record import Record
from surefoot.track.text import bytes_text

__all__ = ["APART", "TIMES", "Compiled"]

APART = 0.25  # of the larger one's norm: what differs more is looked into
TIMES = 4.0  # as much as another precision makes it differ; more is not rounding
BATCHES = 8  # that must agree on it: of what is all rounding, one alone may accuse a number or two
LEAST = 1e-3  # of the whole gradient's norm: less is not missed where random numbers are drawn, nor
# does it accuse where the model itself has none
COPIES = 4  # of some examples fill a micro-batch; one will do where nothing asks for its shape
SAMPLE = 4096  # numbers of a parameter that are compared, spread over it
SMALL = 0.02  # how large are the numbers that stand in for zeros: as weights that begin by chance
NOT_KNOWN = "whether compiled code gives the right gradient is not known"

_Norms = tuple[float, ...]  # of one gradient, of another, of their difference


@dataclass
class Compiled:
    """Compares the learners that are compiled; `memory` are bytes that the run takes where none is."""

    config: RunConfig
    world: World
    state: TrainState
    record: Record
    data: Batches
    memory: int

    def look(self) -> None:
        """Compare before the coming step.

        Raises CheckFailed, in all processes alike, where compiled code gives another gradient.
        """
        learners = self.state.learners if self.config.track.compile_check else {}
        for name, learner in learners.items():
            compiled = learner.model._compiled_call_impl and not learner.finished
            if compiled and (why := self._unknown(name, learner)):
                self.record.note(f"{self._prefix(name)}{NOT_KNOWN}: {why}")

    def _unknown(self, name: str, learner: Learner) -> str:
        """Compare the gradients of one learner; return why that cannot tell, if so."""
        try:
            with _aside(learner):
                return self._no_room(learner) or self._compare(name, learner)
        except Exception as error:
            if not faults.out_of_memory(error):
                raise
            faults.release(error)
            return "memory ran out"

    def _no_room(self, learner: Learner) -> str:
        """Say so where a pass without the compiler may not fit; one card says it by itself."""
        cuda = learner.device.type == "cuda"
        if cuda and not learner.split:
            return ""
        here = sum(p.nbytes for x in self.state.learners.values() for p in x.model.parameters())
        room = torch.cuda.mem_get_info()[0] if cuda else available()
        if not self._any(self.memory - here > room):
            return ""
        return f"uncompiled, a step may take {bytes_text(self.memory - here)} of {bytes_text(room)}"

    def _any(self, flag: bool) -> bool:
        return flag if self.world.team is None else self.world.team.any(flag)

    def _compare(self, name: str, learner: Learner) -> str:
        found, wrong, drawn = self._far(name, learner, 0)
        if not math.isfinite(sum(map(sum, found))):
            return "it is not finite"
        for ahead in range(1, BATCHES):
            if wrong:
                other, far, _ = self._far(name, learner, ahead)
                wrong = {i for i in wrong if i in far or not any(other[i])}
        if wrong:
            raise self._failed(name, learner, [(learner.names[i], found[i]) for i in sorted(wrong)])
        if drawn:
            return "the model draws random numbers, and others where compiled"
        whole = _share(tuple(math.hypot(*norms) for norms in zip(*found)))
        text = f"compiled code gives the model's gradient, apart by {whole:.1e} of its norm"
        self.record.note(self._prefix(name) + text, shown=False)
        return ""

    def _far(self, name: str, learner: Learner, ahead: int) -> tuple[list[_Norms], set[int], bool]:
        """Compare the gradients of a batch so many steps `ahead`.

        Return their norms, which are further apart than rounding explains, and whether random numbers
        were drawn: then only those are far that are not there where they should be.
        """
        compiled, _ = self._gradient(name, learner, ahead)
        with learner.uncompiled():
            plain, drew = self._gradient(name, learner, ahead, copies=False)
        drawn, found = self._any(drew), self._apart(learner, compiled, plain)
        if not drawn and max(map(_share, found)) > APART:  # a model may mix its examples
            with learner.uncompiled():
                plain, _ = self._gradient(name, learner, ahead)
            found = self._apart(learner, compiled, plain)
        if learner.loss_scale > 1.0 and not math.isfinite(sum(map(sum, found))):
            learner.loss_scale /= 16  # fp16 tries its scale
            return self._far(name, learner, ahead)
        least = LEAST * math.hypot(*(theirs for _, theirs, _ in found))
        if drawn:
            lost = {i for i, (mine, theirs, _) in enumerate(found) if not mine and theirs > least}
            return found, lost, drawn
        worth = (i for i, (mine, theirs, _) in enumerate(found) if theirs or mine > least)
        far = {i for i in worth if _share(found[i]) > APART}
        if far:
            with learner.uncompiled(), _other_precision(learner):
                other, _ = self._gradient(name, learner, ahead)
            rounding = self._apart(learner, other, plain)
            alike = (i for i in far if _share(rounding[i]) < APART)
            far = {i for i in alike if found[i][2] > TIMES * rounding[i][2]}
        return found, far, drawn

    def _gradient(
        self, name: str, learner: Learner, ahead: int, copies: bool = True
    ) -> tuple[list[Tensor], bool]:
        """Return numbers of each parameter's gradient, and whether random numbers were drawn."""
        turn = _First(name, learner, self.data, self.config.train.seed, self.world, ())
        turn.step += ahead
        turn.copies = copies
        turn.gradients()
        drawn = turn.begun != _generators(self.world.device)
        found = [_sample(p) for p in learner.parameters]
        learner.zero()
        return found, drawn

    def _apart(self, learner: Learner, one: list[Tensor], two: list[Tensor]) -> list[_Norms]:
        """Return how large two gradients of each parameter are, and their difference."""
        parts = [
            [float(x.square().sum()) * p.numel() / max(1, x.numel()) for x in (a, b, a - b)]
            for a, b, p in zip(one, two, learner.parameters, strict=True)
        ]
        team = self.world.team
        ranks = team.gather(parts) if team is not None and learner.split else [parts]
        sums = ([sum(x) for x in zip(*rows)] for rows in zip(*ranks))
        return [(math.sqrt(a), math.sqrt(b), math.sqrt(c)) for a, b, c in sums]

    def _failed(
        self, name: str, learner: Learner, wrong: Sequence[tuple[str, _Norms]]
    ) -> CheckFailed:
        told = ", ".join(f"{parameter} ({_words(norms)})" for parameter, norms in wrong[:3])
        if len(wrong) > 3:
            told += f" and {len(wrong) - 3} more of {len(learner.names)}"
        again = f"surefoot resume {self.record.path.name} --fork --compile off goes on without it"
        return CheckFailed(
            f"compiled code gives a wrong gradient: {told}",
            where=f"{self._prefix(name)}before step {learner.step + 1}, torch {torch.__version__}, "
            f"{compiler_version(learner.device.type)}",
            fix=again if learner.step else "--compile off; nothing was trained yet",
        )

    def _prefix(self, name: str) -> str:
        return "" if len(self.state.learners) == 1 else f"{name}: "


class _First(Turn):
    """The gradient of some examples, copied until they fill the first micro-batch of a step.

    Of several processes each has a micro-batch.
    """

    copies = True  # else the examples alone, whose gradient is the same where a model mixes none
    begun: tuple[Any, ...] = ()  # where generators stood before the last pass

    @property
    def starts(self) -> range:
        return super().starts[: self.world.size]

    def piece(self, start: int) -> Batch:
        rows = self._rows(start)
        few = len(rows.unique())
        some = self.data.batch(self.step, start, few)
        if not self.copies:
            return some
        whole = self.world.to(super().piece(start)).fields
        # In memory as the run's own, for the compiler makes code for how a batch lies there.
        full = {k: v for k, v in whole.items() if v.shape[:1] == rows.shape}
        copied = {k: torch.empty_like(v).copy_(v[rows]) for k, v in full.items()}
        return Batch({**whole, **copied}, some.weight * len(rows) // few)

    def keys(self, start: int) -> Tensor:
        return super().keys(start)[self._rows(start)]

    def _rows(self, start: int) -> Tensor:
        """Return which examples of the micro-batch stand where."""
        size = self._size(start)
        some = size // math.gcd(COPIES, size, max(1, size // 2))  # BatchNorm takes no less than two
        return torch.arange(size if self.copies else some) % some

    def rekey(self, start: int) -> None:
        super().rekey(start)
        self.begun = _generators(self.world.device)


@contextmanager
def _aside(learner: Learner) -> Iterator[None]:
    """Within the block nothing is clipped and no parameter is all zeros; after it all is as before."""
    clip, scale = learner.clip, learner.loss_scale
    zeros = {i: p for i, p in enumerate(learner.parameters) if not torch.count_nonzero(bits(p))}
    try:
        learner.clip = 0.0
        for i, p in zeros.items():  # the same for all processes, of which each may hold other rows
            learner.before_change()
            p.detach().normal_(0, SMALL, generator=torch.Generator(p.device).manual_seed(i))
        with named.buffers_kept(learner):
            yield
    finally:
        for p in zeros.values():
            p.detach().zero_()
        learner.clip, learner.loss_scale = clip, scale
        learner.zero()
        if learner.device.type == "cuda":  # what the model takes uncompiled is not the run's
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(learner.device)


@contextmanager
def _other_precision(learner: Learner) -> Iterator[None]:
    """Compute in fp32 within the block; where that is what is done anyway, in bf16."""
    precision, scale = learner.precision, learner.loss_scale
    learner.set_precision("bf16" if precision == "fp32" else "fp32")
    try:
        yield
    finally:
        learner.set_precision(precision)
        learner.loss_scale = scale


def _generators(device: torch.device) -> tuple[Any, ...]:
    """Return where the global generators stand that `rekey` sets."""
    card = torch.cuda.get_rng_state(device).tolist() if device.type == "cuda" else None
    ours = torch.get_rng_state().tolist(), str(np.random.get_state(legacy=False))
    return card, *ours, random.getstate()


def _sample(parameter: Tensor) -> Tensor:
    """Return f64[up to SAMPLE] of a gradient, from all its rows and columns; a zero for none."""
    if parameter.grad is None:
        return torch.zeros(1, dtype=torch.float64)
    stride = max(1, parameter.numel() // SAMPLE) | 1
    return parameter.grad.detach().reshape(-1)[::stride].cpu().double()


def _share(norms: _Norms) -> float:
    """Return how far two gradients are apart, as a share of the larger one's norm."""
    mine, theirs, apart = norms
    larger = max(mine, theirs)
    return apart / larger if larger else 0.0


def _words(norms: _Norms) -> str:
    return "none at all" if norms[0] == 0 else f"{_share(norms):.0%} apart"
