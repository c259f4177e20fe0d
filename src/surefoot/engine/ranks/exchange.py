"""The gradients of one learner, computed by all ranks and added in one order: DDP, or one process.

Each rank takes its micro-batches as they are; torch's DistributedDataParallel tells during the last
backward pass which gradients are ready, and its hook begins to add them. A rank that runs out of
memory takes part in what the others have begun, with numbers that are none, so that nobody waits
for it; then all redo the step alike.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from surefoot.data.batch import Batch
from surefoot.engine import faults
from surefoot.engine.checksum import checksum
from surefoot.engine.learner import Learner, Loss
from surefoot.engine.ranks.sums import Order, Pending, Traffic, merged
from surefoot.engine.ranks.tail import FAILED, Tail, Told
from surefoot.engine.ranks.team import Team, reaching
from surefoot.engine.ranks.tree import Span, Tree, share, tree
from surefoot.engine.world import World
from surefoot.errors import CheckFailed, OutOfResources

__all__ = ["Exchange", "Pass", "Turn", "gradient_of"]

_KNOWN = inspect.signature(DistributedDataParallel).parameters
BUCKET = 25.0  # MB of gradients that are added at once
_LEAVE_BUFFERS: dict[str, Any] = {  # called so since torch 2.13
    "forward_sync_buffers" if "forward_sync_buffers" in _KNOWN else "broadcast_buffers": False
}
_NO_ROOM = "out of memory while gradients were added"
_RESTART = "surefoot resume goes on from the last checkpoint"


class Turn(Protocol):
    """One learner's turn at a batch, as the loop sees it."""

    state: int

    @property
    def starts(self) -> range: ...
    def piece(self, start: int) -> Batch: ...
    def rekey(self, start: int) -> None: ...


class Pass(nn.Module):
    """The loss as a module, so that what wraps modules can wrap it: (sum, parts)."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.model = learner.model
        self._learner = (learner,)  # in a tuple, so that it is no submodule

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        learner = self._learner[0]
        with learner.autocast:
            found = learner.loss(learner.model, batch, *learner.level())
        return found.sum, found.parts


class Exchange:
    """Adds the gradients of all ranks into each rank's. `reduce` is ordered or tree."""

    def __init__(
        self, learner: Learner, world: World, team: Team, reduce: str, wrapped: bool = True
    ) -> None:
        self.learner, self.world, self.team, self.reduce = learner, world, team, reduce
        self.wrapped, self.traffic = wrapped, Traffic()
        self.tree = Tree(1)
        self._kept: list[tuple[Span, list[Tensor]]] = []
        self._pending: list[Pending] = []
        self._leaf: Span = (0, 1)
        self._begun = 0
        self._entered = False  # whether this step has come to torch's forward pass
        self._real = True
        self._parts: list[str] = []
        self.wrap()

    split = False  # whether each rank holds only a part of every tensor

    def wrap(self) -> None:
        """Put torch's machinery around the learner's model, anew."""
        self.whole = Pass(self.learner)
        self._ddp: DistributedDataParallel | None = None
        if self.wrapped:
            self._ddp = DistributedDataParallel(
                self.whole, gradient_as_bucket_view=True, bucket_cap_mb=BUCKET, **_LEAVE_BUFFERS
            )
            self._ddp.register_comm_hook(None, lambda _, bucket: self._ready(bucket))
        self._take(self.learner.parameters)

    def _take(self, parameters: Sequence[Tensor]) -> None:
        """Let these be the parameters whose gradients are added here."""
        self._mine_to_add = list(parameters)
        self._index = {id(p): i for i, p in enumerate(parameters)}

    # A step.

    def gradients(self, turn: Turn) -> tuple[float, float, int, dict[str, Any]]:
        """Compute my part, add all; return loss, gradient norm, units and parts of the loss.

        Raises MemoryError on all ranks when one of them ran out of it.
        """
        with reaching():
            return self._gradients(turn)

    def _gradients(self, turn: Turn) -> tuple[float, float, int, dict[str, Any]]:
        learner, team = self.learner, self.team
        starts = turn.starts
        self.tree = tree(len(starts))
        self._reset()
        begun = time.perf_counter()
        tail = Tail(team, len(starts))
        state = checksum(learner, learner.step)
        failed: Exception | None = None
        scale = learner.loss_scale / self._nominal(starts)
        try:
            self._passes(turn, tail, state, scale, begun)
            self.finish()
        except Exception as error:
            if not faults.out_of_memory(error):
                raise
            faults.release(error)
            failed = error
            self._stand_in(tail, state)
        factor = self._nominal(starts) / tail.units()
        norm = math.nan if failed else float(self.norm(factor))
        told = tail.told()
        self._listen(told)
        if told.failed or failed or (not math.isfinite(norm) and team.size > 1):
            self._agree(told, failed)
        self._compare(told)
        turn.state = self.state_of(told)
        names = self._parts
        loss, *parts = told.sums(self.tree)
        means = {name: part / told.weight for name, part in zip(names, parts)}
        return loss / told.weight, norm, told.weight, means

    def _passes(self, turn: Turn, tail: Tail, state: Tensor, scale: float, begun: float) -> None:
        starts, learner = turn.starts, self.learner
        losses: list[list[Tensor]] = []
        weight = 0
        for place, real, last in self._mine(len(starts)):
            batch = turn.piece(starts[place])
            turn.rekey(starts[place])
            with self.quiet(last):
                found = self.forward(batch)
                self._parts = sorted(found.parts)
                if real:
                    weight += batch.weight
                    losses.append([found.sum, *(found.parts[k] for k in self._parts)])
                if last:
                    self.team.busy, self.team.step = time.perf_counter() - begun, learner.step
                    tail.send(self.team.wish(), weight, state, losses, len(self._parts))
                self._leaf = (place, place + 1)
                (found.sum * (scale if real else 0.0)).backward()
            if not last:
                self.keep(self._leaf, real)

    def _mine(self, count: int) -> Iterator[tuple[int, bool, bool]]:
        """Yield my micro-batches: which, whether it counts, and whether it is the last."""
        mine = self.team.share(count)
        for place in mine:
            self._real = True
            yield place, True, place == mine[-1]
        if not mine:  # a small batch of a warm-up: take part with nothing
            self._real = False
            yield 0, False, True

    def forward(self, batch: Batch) -> Loss:
        """Return the loss of a micro-batch."""
        moved = self.world.to(batch)
        self._entered = True
        return Loss(*(self._ddp or self.whole)(moved))

    def quiet(self, last: bool) -> AbstractContextManager[Any]:
        """Within the block nothing is told to others, unless it is the last."""
        return nullcontext() if last or self._ddp is None else self._ddp.no_sync()

    def keep(self, leaf: Span, real: bool = True) -> None:
        """Put the gradient of one micro-batch aside, where each is a leaf; else they add up."""
        if self.reduce != "tree":
            return
        grads = [gradient_of(p) for p in self._mine_to_add]
        for parameter in self._mine_to_add:
            parameter.grad = None
        if not real:
            return
        self._kept.append((leaf, grads))
        while len(self._kept) > 1:
            (left, into), (right, added) = self._kept[-2:]
            if self.tree.siblings.get(right) != left:
                break
            torch._foreach_add_(into, added)
            self._kept[-2:] = [((left[0], right[1]), into)]

    def _ready(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """Begin to add what DDP says is ready; the rest of the backward pass goes on beside it."""
        flat = bucket.buffer()
        self._begin(flat, [self._index[id(p)] for p in bucket.parameters()], self._real)
        devices = [flat.device] if flat.device.type == "cuda" else None
        done: torch.futures.Future[Tensor] = torch.futures.Future(devices=devices)
        done.set_result(flat)
        return done

    def _begin(self, flat: Tensor, members: list[int], leaf: bool = True) -> None:
        """Begin to add the gradients of some parameters; `leaf`: `flat` holds those of the last pass."""
        parts = [flat]
        if self.reduce == "tree":
            nodes = [
                (span, torch.cat([grads[i].reshape(-1) for i in members]))
                for span, grads in self._kept
            ]
            last = [(self._leaf, flat)] if leaf else []
            parts = [value for _, value in merged(self.tree, [*nodes, *last])]
        self.team.calls += 1
        self._pending.append(self._order().begin(parts, flat))
        self._begun += 1  # not before: what could not be begun, the others still wait for

    def _order(self) -> Order:
        team = self.team
        if self.reduce != "tree":
            return Order.of_ranks(team.rank, team.size, None, self.traffic)
        leaves, size = self.tree.leaves, team.size
        spans = [share(leaves, rank, size) for rank in range(size)]
        covers = [self.tree.cover(s.start, s.stop) for s in spans]
        return Order(self.tree, covers, team.rank, None, self.traffic)

    def finish(self) -> None:
        """Wait until the gradients of the learner are the sums of all ranks'."""
        if self._ddp is None and not self.split:
            self.keep(self._leaf)
            if self._kept:
                for parameter, grad in zip(self.learner.parameters, self._kept.pop()[1]):
                    parameter.grad = grad
        for pending in self._pending:
            pending.finish()
        self._pending.clear()

    def norm(self, factor: Tensor | float) -> float:
        """Multiply the gradients, clip them, and return their norm before clipping."""
        return self.learner.gradient_norm(factor)

    def state_of(self, told: Told) -> int:
        """Return the checksum of the state before the step, from what all said."""
        return told.states[0]

    def _compare(self, told: Told) -> None:
        """Raise CheckFailed where ranks that must hold the same weights do not."""
        wrong = [r for r, state in enumerate(told.states) if state != told.states[0]]
        if wrong:
            raise CheckFailed(
                f"rank {', '.join(map(str, wrong))} does not hold the weights that rank 0 holds",
                where=f"before step {self.learner.step + 1}",
                fix="surefoot resume goes on from the last checkpoint; check that machine's memory",
            )

    # When something goes wrong.

    def _reset(self) -> None:
        self._kept.clear()
        self._pending.clear()
        self._begun = 0
        self._entered = False
        self._parts = []

    def _stand_in(self, tail: Tail, state: Tensor) -> None:
        """Take part in what the others have begun; end this process where not even that fits.

        Trying again alone would pair its sums with other ones of the others.
        """
        try:
            self._take_part(tail, state)
        except Exception as error:
            if not faults.out_of_memory(error):
                raise
            raise OutOfResources(_NO_ROOM, fix=_RESTART) from error

    def _take_part(self, tail: Tail, state: Tensor) -> None:
        """Give what the others wait for, as numbers that are none."""
        if not tail.sent:
            tail.send(self.team.wish() | FAILED, 0, state, [])
        self._kept.clear()
        if self._ddp is not None:
            reducer: Any = self._ddp.reducer  # as torch's own Join does, for ranks without data
            if not self._entered:  # as the others did when they entered their first forward pass
                reducer._rebuild_buckets()
            left = reducer._get_zeros_like_grad_buckets()[self._begun :]
            if not left:
                raise OutOfResources(_NO_ROOM, fix=_RESTART)
            for bucket in left:
                flat = bucket.buffer().fill_(math.nan)
                parts = [flat] * len(self._order().covers[self.team.rank])
                self.team.calls += 1
                self._pending.append(self._order().begin(parts, flat))
            for pending in self._pending:
                pending.finish()
            self._pending.clear()

    def _agree(self, told: Told, failed: Exception | None) -> None:
        """Raise MemoryError on all ranks where one ran out of memory, early or late."""
        ranks = told.failed or [r for r, f in enumerate(self.team.gather(failed is not None)) if f]
        if not ranks:
            return
        if self._ddp is not None:
            self.learner.zero()  # these lie in the memory that is to be taken anew
            self.wrap()
        where = f"on rank {', '.join(map(str, ranks))}" if self.team.size > 1 else str(failed)
        raise MemoryError(f"out of memory {where}")

    def _listen(self, told: Told) -> None:
        self.team.listen(told.wishes)
        pace = self.team.pace or told.busy
        self.team.pace = [min(pair) for pair in zip(pace, told.busy, strict=True)]

    @staticmethod
    def _nominal(starts: range) -> float:
        """A power of two near the batch, by which sums are divided without rounding."""
        return 2.0 ** round(math.log2(max(1, starts.stop)))


def gradient_of(parameter: Tensor) -> Tensor:
    """Return a gradient, or zeros where there is none."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
