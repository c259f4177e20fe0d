"""The reduce-scatter of FSDP2, with an order: the pieces of all ranks go to their owners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter

from surefoot.engine.ranks.sums import Order, Pending, Traffic, merged
from surefoot.engine.ranks.team import Team
from surefoot.engine.ranks.tree import Span, Tree, share
from surefoot.errors import Unsupported

__all__ = ["Scatter", "Splitting"]

_reduce_scatter = (
    getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
)  # by version


class Splitting(Protocol):
    """What a sum must know of the step: who is there, and which pass of how many it is."""

    team: Team
    reduce: str
    traffic: Traffic
    tree: Tree
    inner: tuple[int, int]
    outer: int
    passes: int
    longest: int


class Scatter(ReduceScatter):
    """The reduce-scatter of one FSDP module: pieces go to their owners, who add them in order."""

    def __init__(self, shards: Splitting) -> None:
        self.shards = shards
        self.kept: list[list[tuple[Span, Tensor]]] = []

    def allocate(self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: Any,
        op: Any,
        async_op: bool = False,
    ) -> None:
        shards = self.shards
        rank, size = shards.inner
        shards.team.calls += 1
        if shards.reduce != "tree":
            order = Order.of_ranks(rank, size, group, shards.traffic)
            if order.simple:
                _reduce_scatter(output_tensor, input_tensor, group=group)
                shards.traffic.count("gradients", input_tensor.nbytes // size)
            else:
                output_tensor.copy_(Pending(order, [input_tensor], input_tensor).scattered())
            return
        self._leaf(output_tensor, input_tensor, group)

    def _leaf(self, output: Tensor, given: Tensor, group: Any) -> None:
        """Take one micro-batch of each rank; the last time, add them in the order of the tree."""
        shards = self.shards
        rank, size = shards.inner
        first = shards.team.rank - rank  # the group's first rank
        received = torch.empty_like(given)
        dist.all_to_all_single(received, given, group=group)
        shards.traffic.count("gradients", given.nbytes * (size - 1) // size)
        number, tree = shards.passes, shards.tree
        if number == 0:
            self.kept = [[] for _ in range(size)]
        ranges = [share(tree.leaves, first + s, shards.team.size) for s in range(size)]
        for kept, mine, piece in zip(self.kept, ranges, received.chunk(size), strict=True):
            if number < len(mine):
                leaf = mine[number]
                kept[:] = merged(tree, [*kept, ((leaf, leaf + 1), piece.clone())])
        if number < shards.longest - 1:
            output.zero_()
            return
        nodes = merged(tree, [node for kept in self.kept for node in kept])
        if shards.outer > 1 and len(nodes) != 1:
            raise Unsupported(
                f"hsdp cannot add {tree.leaves} micro-batches of {shards.team.size} ranks in a tree",
                where="machine.reduce=tree", fix="--parallel fsdp2, or numbers that are powers of two",
            )  # fmt: skip
        output.copy_(
            tree.fold(dict(nodes), lambda a, b: a.add_(b)) if len(nodes) > 1 else nodes[0][1]
        )
        self.kept = []
