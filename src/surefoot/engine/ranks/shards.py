"""Weights, gradients and moments split over devices by torch's FSDP2, within groups by HSDP.

Each rank holds some rows of every parameter. The optimisers, the average and the checksum work on
those rows as on any tensor; what needs a whole one (the norm of the gradient, Muon, a checkpoint)
gathers it, one tensor at a time. So all numbers are those of DDP, bit for bit.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from surefoot.data.batch import Batch
from surefoot.engine.learner import Learner, Loss
from surefoot.engine.parts import part_of
from surefoot.engine.ranks.exchange import Exchange, Pass, Turn, gradient_of
from surefoot.engine.ranks.scatter import Scatter
from surefoot.engine.ranks.sums import Order, gather_flat
from surefoot.engine.ranks.tail import Tail, Told
from surefoot.engine.ranks.team import Team
from surefoot.engine.ranks.tree import Span, share
from surefoot.engine.world import World
from surefoot.errors import ConfigError, OutOfResources, Problem, Unsupported

__all__ = ["Shards", "Slice"]


VECTORS = 64  # numbers that loops of a processor take at a time, at most


@dataclass(frozen=True)
class Slice:
    """Rows `low` to before `high` of a parameter of `shape` are here."""

    low: int
    high: int
    shape: torch.Size

    @property
    def flat(self) -> tuple[int, int, int]:
        """First number, the one after the last, and how many there are in all."""
        count = math.prod(self.shape)
        inner = count // max(1, self.shape[0])
        return self.low * inner, self.high * inner, count


class Shards(Exchange):
    """The exchange of a learner whose tensors are split."""

    split = True

    def wrap(self) -> None:
        """Split the model in place; the learner then holds its own rows."""
        learner, team = self.learner, self.team
        self._ddp = None
        self.group, self.replicas, self.inner, self.outer = _groups(team, self.mode)
        names, before = learner.names, learner.parameters
        _check(learner)
        self.whole = Pass(learner)
        mesh, size = self.group, self.inner[1]
        small = {p for p in learner.model.parameters() if not _divides(p, size)}
        for block in _blocks(learner.model):
            fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=small)
        fully_shard(self.whole, mesh=mesh, reshard_after_forward=False, ignored_params=small)
        self.modules: list[Any] = [
            m for m in self.whole.modules() if hasattr(m, "set_requires_gradient_sync")
        ]
        self.sums = [Scatter(self) for _ in self.modules]
        for module, own in zip(self.modules, self.sums, strict=True):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            module.set_custom_reduce_scatter(own)
            if self.outer > 1:
                module.set_all_reduce_hook(self._across)
        self.modules[
            0
        ]._get_fsdp_state()._lazy_init()  # the outermost is the root, whoever is first
        now = dict(learner.model.named_parameters())
        self.sharded: dict[str, Any] = {n: now[n] for n in names if hasattr(now[n], "to_local")}
        self.slices = {n: _slice(p.shape, *self.inner) for n, p in self.sharded.items()}
        rows = [
            nn.Parameter(self.sharded[n].to_local().detach()) if n in self.sharded else p
            for n, p in zip(names, before, strict=True)
        ]
        self._hand_over(before, rows)

    def __init__(self, learner: Learner, world: World, team: Team, reduce: str, mode: str) -> None:
        self.mode = mode
        self._host: dict[tuple[str, str], Tensor] = {}
        super().__init__(learner, world, team, reduce)

    def _hand_over(self, before: Sequence[Tensor], rows: list[Any]) -> None:
        """Give the learner and its optimisers the rows in place of the whole parameters."""
        learner = self.learner
        new = {id(old): row for old, row in zip(before, rows, strict=True)}
        of_row = {id(r): self.slices.get(n) for n, r in zip(learner.names, rows, strict=True)}
        for optimiser in learner.optimisers:
            for group in optimiser.param_groups:
                group["params"] = [new[id(p)] for p in group["params"]]
            optimiser.state.clear()
            heights = getattr(optimiser, "rows", None)
            if heights is not None:
                optimiser.rows = {id(new[k]): v for k, v in heights.items() if k in new}  # type: ignore[attr-defined]
                optimiser.span = lambda p: _span(p, of_row[id(p)])  # type: ignore[attr-defined]
                optimiser.whole = lambda p, t: self.gather(t, of_row[id(p)])  # type: ignore[attr-defined]
        learner.parameters = rows
        learner.looked_at = ([], [])
        learner.average_with(learner.ema)
        self._take([r for n, r in zip(learner.names, rows, strict=True) if n not in self.slices])

    # A step.

    def gradients(self, turn: Turn) -> tuple[float, float, int, dict[str, Any]]:
        """Compute my part, add all, keep my rows; see `Exchange.gradients`.

        Running out of memory ends this process: the others are in the middle of a pass together.
        """
        self.passes = 0
        leaves = len(turn.starts)
        self.longest = max(len(share(leaves, r, self.team.size)) for r in range(self.team.size))
        return super().gradients(turn)

    def _mine(self, count: int) -> Iterator[tuple[int, bool, bool]]:
        """Yield my micro-batches; one more that does not count where others have one more."""
        mine = self.team.share(count)
        for number in range(self.longest):
            self.passes = number
            real = self._real = number < len(mine)
            yield mine[number] if real else mine[-1], real, number == self.longest - 1

    def forward(self, batch: Batch) -> Loss:
        return Loss(*self.whole(self.world.to(batch)))

    def quiet(self, last: bool) -> AbstractContextManager[Any]:
        sync = last or self.reduce == "tree"
        self.modules[0].set_requires_gradient_sync(sync)
        return nullcontext()

    def keep(self, leaf: Span, real: bool = True) -> None:
        """Forget what stands in for the gradient: the pieces themselves are kept by each sum."""
        super().keep(leaf, real)
        if self.reduce == "tree":
            for parameter in self.sharded.values():
                parameter.grad = None

    def finish(self) -> None:
        for name, row in zip(self.learner.names, self.learner.parameters, strict=True):
            if (parameter := self.sharded.get(name)) is not None:
                row.grad = None if parameter.grad is None else parameter.grad.to_local()
                parameter.grad = None
        small = self._mine_to_add
        if not small:
            return
        flat = torch.cat([gradient_of(p).reshape(-1) for p in small])
        self._begin(flat, list(range(len(small))), leaf=self._real)
        super().finish()
        for parameter, grad in zip(small, flat.split([p.numel() for p in small]), strict=True):
            parameter.grad = grad.view_as(parameter)

    def norm(self, factor: Tensor | float) -> float:
        """Multiply, take the norm of whole gradients in the order of DDP, and clip my rows."""
        learner = self.learner
        learner.scale(factor)
        norms: list[Tensor] = []
        grads: list[Tensor] = []
        for name, parameter in zip(learner.names, learner.parameters, strict=True):
            if parameter.grad is not None:
                whole = self.gather(parameter.grad, self.slices.get(name))
                norms += torch._foreach_norm([whole])
                grads.append(parameter.grad)
        if not grads:
            return 0.0
        norm = float(torch.linalg.vector_norm(torch.stack(norms)))
        if 0 < learner.clip < norm:
            torch._foreach_mul_(grads, learner.clip / norm)
        return norm

    def state_of(self, told: Told) -> int:
        """Return the checksum of the whole state: the sum of those of one group."""
        total = sum(told.states[: self.inner[1]])
        return (total + (1 << 63)) % (1 << 64) - (1 << 63)

    def _compare(self, told: Told) -> None:
        size = self.inner[1]
        firsts = [told.states[i * size : (i + 1) * size] for i in range(self.outer)]
        if any(part != firsts[0] for part in firsts):
            flat = [firsts[0][r % size] for r in range(self.team.size)]
            super()._compare(Told(told.wishes, 0, _apart(told.states, flat), [], told.values))

    def _take_part(self, tail: Tail, state: Tensor) -> None:
        step, micro = self.learner.step + 1, self.learner.micro
        error = OutOfResources(
            f"rank {self.team.rank} ran out of memory in the middle of a pass of all ranks",
            where=f"step {step}, {micro} examples a pass",
            fix="surefoot resume goes on from the last checkpoint, the second time in smaller pieces",
        )
        error.__dict__["lesson"] = {"step": step, "micro": micro}
        raise error

    # Whole tensors.

    def gather(self, rows: Tensor, where: Slice | None) -> Tensor:
        """Return a whole tensor from the rows of all ranks of a group; all must call it."""
        size = self.inner[1]
        if size == 1 or where is None:
            return rows
        each = -(-where.shape[0] // size)
        inner = math.prod(where.shape[1:])
        mine = rows.new_zeros(each * inner)
        mine[: rows.numel()] = rows.detach().reshape(-1)
        found = rows.new_empty(size * each * inner)
        gather_flat(found, mine, group=self.group.get_group())
        self.team.calls += 1
        self.traffic.count("whole tensors", mine.nbytes * (size - 1))
        return found[: math.prod(where.shape)].view(where.shape)

    def collect(self, file: str, group: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return whole copies on the host of rank 0, one tensor at a time; elsewhere nothing."""
        found: dict[str, Tensor] = {}
        for key in sorted(group):
            value, where = group[key], self._where(key)
            if where is not None and value.dim() > 0:
                value = self.gather(value, where)
            if self.team.leads:
                held = self._host.get((file, key))
                if held is None or held.shape != value.shape:
                    held = torch.empty(value.shape, dtype=value.dtype)
                    self._host[file, key] = held
                found[key] = held.copy_(value)
        return found

    def own_part(self, file: str, group: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Return host copies of this rank's rows, by the file that is theirs; of a copy, nothing."""
        number, count = self.inner
        if self.team.rank != number:
            return {}
        mine = {
            key: value.detach().cpu()
            for key, value in group.items()
            if number == 0 or (self._where(key) is not None and value.dim() > 0)
        }
        return {part_of(file, number, count): mine}

    def _where(self, key: str) -> Slice | None:
        """Return which rows of a tensor of a checkpoint are here, if it is split."""
        return self.slices.get(key) or self.slices.get(key.rpartition("/")[0])

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Have whole weights in the model while the block runs, so that one rank may use it alone."""
        swapped = self._averaged()
        hooks = [(m._forward_pre_hooks, m._forward_hooks) for m in self.modules]
        for module in self.modules:
            module.unshard()
            # FSDP's hooks note who was called in which order, and the ranks must not differ in it.
            module._forward_pre_hooks, module._forward_hooks = OrderedDict(), OrderedDict()
        try:
            yield
        finally:
            for module, own in zip(self.modules, hooks, strict=True):
                module._forward_pre_hooks, module._forward_hooks = own
                module.reshard()
            for row, value in zip(self.learner.parameters, swapped):
                row.data.copy_(value)

    @torch.no_grad()
    def _averaged(self) -> list[Tensor]:
        """Put the averaged weights in place of those in training; return the latter."""
        learner = self.learner
        if not learner.average:
            return []
        before = [p.detach().clone() for p in learner.parameters]
        for name, row in zip(learner.names, learner.parameters, strict=True):
            row.copy_(learner.average[name])
        return before

    # Sums.

    def _across(self, piece: Tensor) -> None:
        """Add a piece over the groups that hold copies, in order."""
        place, size = divmod(self.team.rank, self.inner[1])[0], self.outer
        group = self.replicas.get_group()
        self.team.calls += 1
        Order.of_ranks(place, size, group, self.traffic).begin([piece], piece).finish()


def _groups(team: Team, mode: str) -> tuple[Any, Any, tuple[int, int], int]:
    """Return the meshes that split and that copy, this rank's place in the first, and the copies.

    A group of hsdp is the ranks of a machine; where there is only one, half of them, from four on.
    """
    kind = team.device.type
    if mode == "fsdp2":
        return init_device_mesh(kind, (team.size,)), None, (team.rank, team.size), 1
    inner = team.neighbours
    if inner == team.size:
        inner = inner // 2 if inner % 2 == 0 and inner >= 4 else inner
    if team.size % inner:
        text = f"hsdp needs groups of one size: {team.size} ranks, {team.neighbours} on a machine"
        raise ConfigError([Problem(text, "machine.parallel", "--parallel fsdp2")])
    mesh = init_device_mesh(kind, (team.size // inner, inner), mesh_dim_names=("copies", "rows"))
    return mesh["rows"], mesh["copies"], (team.rank % inner, inner), team.size // inner


def _check(learner: Learner) -> None:
    """Raise Unsupported for what FSDP2 cannot split."""
    for name, p in learner.model.named_parameters():
        if not p.is_floating_point() or p.dim() == 0:
            what = f"{name} ({p.dtype}, {list(p.shape)}) cannot be split over devices"
            raise Unsupported(what, where="machine.parallel", fix="--parallel ddp")


def _divides(parameter: Tensor, size: int) -> bool:
    """Whether a parameter can be split and still be updated with the same bits.

    On a processor the numbers that do not fill a vector are rounded in another way than the others,
    so there every part must be whole vectors; the few small parameters that are not stay whole.
    """
    if parameter.device.type != "cpu":
        return True
    inner = parameter.numel() // max(1, parameter.size(0))
    rows, each = parameter.size(0), -(-parameter.size(0) // size)
    return all(n * inner % VECTORS == 0 for n in (rows, each))


def _span(parameter: Tensor, where: Slice | None) -> tuple[int, int]:
    return (0, parameter.size(0)) if where is None else (where.low, where.high)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that are split on their own: the blocks of a model, in lists of them."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            yield from (m for m in module if any(True for _ in m.parameters()))


def _slice(shape: torch.Size, rank: int, size: int) -> Slice:
    each = -(-shape[0] // size)
    low = min(rank * each, shape[0])
    return Slice(low, min(low + each, shape[0]), shape)


def _apart(states: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Return 0 for every rank that holds what it should, and else 1."""
    return [int(a != b) for a, b in zip(states, wanted, strict=True)]
