"""Add flat tensors of all ranks in one order, whatever the library and the network would do.

Each rank gives the sums of the subtrees that it computed. Piece by piece they go to the rank that
owns the piece, which adds them in the order of the tree, and the sum of each piece goes back to
all: as much traffic as an all-reduce by a ring, and the same bits with every backend. Two numbers
have one sum, so two ranks with a subtree each use the all-reduce of the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from surefoot.engine.ranks.tree import Span, Tree

__all__ = ["Order", "Pending", "Traffic", "gather_flat", "merged"]

gather_flat = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # by version


class Traffic:
    """Bytes that this rank has sent, by what for. Counted, not measured."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}
        self.calls: dict[str, int] = {}

    def count(self, what: str, sent: int) -> None:
        """Count one collective of this many bytes."""
        self.bytes[what] = self.bytes.get(what, 0) + sent
        self.calls[what] = self.calls.get(what, 0) + 1


def merged(tree: Tree, nodes: Sequence[tuple[Span, Tensor]]) -> list[tuple[Span, Tensor]]:
    """Add up neighbours that are children of the same parent, into the first of them."""
    found: list[tuple[Span, Tensor]] = []
    for span, value in nodes:
        while found and tree.siblings.get(span) == found[-1][0]:
            (low, _), left = found.pop()
            span, value = (low, span[1]), left.add_(value)
        found.append((span, value))
    return found


class Order:
    """Who holds which subtrees of a sum: `covers` by rank of `group`."""

    def __init__(
        self, tree: Tree, covers: Sequence[Sequence[Span]], rank: int, group: Any, traffic: Traffic
    ) -> None:
        self.tree, self.covers, self.rank, self.group = tree, covers, rank, group
        self.size, self.traffic = len(covers), traffic
        self.simple = self.size == 2 and all(len(cover) == 1 for cover in covers)

    @classmethod
    def of_ranks(cls, rank: int, size: int, group: Any, traffic: Traffic) -> Order:
        """Return the order in which one value of each rank is added."""
        return cls(Tree(size), [[(r, r + 1)] for r in range(size)], rank, group, traffic)

    def begin(self, parts: Sequence[Tensor], out: Tensor) -> Pending:
        """Begin to add; `parts` are flat sums of my subtrees, in order. `out` receives the sum.

        `parts[0]` may be `out` itself.
        """
        return Pending(self, parts, out)

    def split(self, parts: Sequence[Tensor], out: Tensor) -> tuple[Tensor, int]:
        """Return parts like `out` as [size, parts, piece], padded, and the numbers of a piece."""
        count = out.numel()
        piece = -(-count // self.size)
        sent = out.new_zeros(self.size, len(parts), piece)
        for place, part in enumerate(parts):
            full = count // piece
            sent[:full, place] = part[: full * piece].view(full, piece)
            if full < self.size and count > full * piece:
                sent[full, place, : count - full * piece] = part[full * piece :]
        return sent, piece

    def fold(self, received: Tensor, piece: int) -> Tensor:
        """Add what came for my piece, [parts of all ranks x piece], in the order of the tree."""
        spans = [span for cover in self.covers for span in cover]
        values = dict(zip(spans, received.view(len(spans), piece).unbind(), strict=True))
        return self.tree.fold(values, lambda a, b: a.add_(b))


class Pending:
    """A sum under way. `finish` waits for it, on CUDA only in the stream."""

    def __init__(self, order: Order, parts: Sequence[Tensor], out: Tensor) -> None:
        self.order, self.out = order, out
        self.work: Any = None
        self.piece = 0
        if order.size == 1:
            spans = order.covers[0]
            out.copy_(order.tree.fold(dict(zip(spans, parts, strict=True)), lambda a, b: a.add_(b)))
        elif order.simple:
            if parts[0].data_ptr() != out.data_ptr():
                out.copy_(parts[0])
            self.work = dist.all_reduce(out, group=order.group, async_op=True)
            order.traffic.count("gradients", out.nbytes)  # 2 (size - 1) / size of it
        else:
            self._scatter(parts)

    def _scatter(self, parts: Sequence[Tensor]) -> None:
        order = self.order
        sent, self.piece = order.split(parts, self.out)
        takes = [len(cover) * self.piece for cover in order.covers]
        gives = [len(parts) * self.piece] * order.size
        self.received = self.out.new_empty(sum(takes))
        self.sent = sent.view(-1)
        self.work = dist.all_to_all_single(
            self.received, self.sent, takes, gives, group=order.group, async_op=True
        )
        order.traffic.count("gradients", self.sent.nbytes * (order.size - 1) // order.size)

    def scattered(self) -> Tensor:
        """Wait for the pieces and return the sum of mine."""
        self.work.wait()
        found = self.order.fold(self.received, self.piece)
        del self.received, self.sent
        return found

    def finish(self) -> None:
        """Wait until the whole sum is in `out`."""
        if self.piece == 0:
            if self.work is not None:
                self.work.wait()
            return
        mine, order = self.scattered().contiguous(), self.order
        whole = self.out.new_empty(order.size * self.piece)
        gather_flat(whole, mine, group=order.group)
        order.traffic.count("gradients", mine.nbytes * (order.size - 1))
        self.out.copy_(whole[: self.out.numel()])
