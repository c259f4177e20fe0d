"""The small numbers that all ranks must have of each step: losses, units, wishes, checksums.

They travel in one gather that is under way while the last gradient is computed, so that a step
waits for one thing only. Losses of single micro-batches are added in the order of the tree on
every rank alike, so that the record does not depend on how many ranks there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surefoot.engine.ranks.sums import gather_flat
from surefoot.engine.ranks.team import Team
from surefoot.engine.ranks.tree import Tree, share
from surefoot.errors import Unsupported

__all__ = ["FAILED", "Tail", "Told"]

FAILED = 1 << 20  # a wish that nobody has: this rank ran out of memory
_HEAD, _WIDTH = 4, 24  # numbers of a rank; of a micro-batch: its loss, and parts of it


@dataclass(frozen=True)
class Told:
    """What all ranks said. `values` f32[micro-batches, 1 + parts], in the order of the batch."""

    wishes: list[int]
    weight: int
    states: list[int]
    busy: list[float]
    values: np.ndarray[Any, Any]

    @property
    def failed(self) -> list[int]:
        """The ranks that ran out of memory."""
        return [rank for rank, wish in enumerate(self.wishes) if wish & FAILED]

    def sums(self, tree: Tree) -> list[float]:
        """Return the loss and its parts, each added over micro-batches in fp32."""
        rows = {(i, i + 1): row.copy() for i, row in enumerate(self.values)}
        with np.errstate(over="ignore", invalid="ignore"):
            return [float(v) for v in tree.fold(rows, lambda a, b: a + b)]


class Tail:
    """One step's numbers of this rank, and the gather that brings those of the others."""

    def __init__(self, team: Team, leaves: int) -> None:
        self.team, self.leaves = team, leaves
        self.rows = max(len(share(leaves, rank, team.size)) for rank in range(team.size))
        self.sent = False

    def send(
        self,
        wish: int,
        weight: int,
        state: Tensor,
        losses: Sequence[Sequence[Tensor]],
        parts: int = 0,
    ) -> None:
        """Begin to tell the others; `losses` has the loss and its `parts` of each micro-batch."""
        team = self.team
        device = torch.device("cpu") if team.device.type == "mps" else team.device  # it has no fp64
        width = 1 + parts
        if width > _WIDTH:
            what = f"a loss has {width - 1} parts; with several devices {_WIDTH - 1} are the most"
            raise Unsupported(what, fix="return fewer parts from the loss function")
        numbers = torch.zeros(self.rows, _WIDTH, dtype=torch.float64, device=device)
        if losses:
            flat = torch.stack([v.detach() for row in losses for v in row]).to(device).double()
            numbers[: len(losses), :width] = flat.view(len(losses), width)
        head = torch.tensor([wish, weight, 0, round(team.busy * 1e9)], device=device)
        head[2] = state
        mine = torch.cat([head, numbers.view(-1).view(torch.int64)])
        self.out = mine.new_empty(team.size * mine.numel())
        team.calls += 1
        if team.size == 1:
            self.out, self.work = mine, None
        else:
            self.work = gather_flat(self.out, mine, async_op=True)
        self.width, self.sent = width, True

    def units(self) -> Tensor:
        """Return i64[], the weight of the whole batch, on the device and without waiting there."""
        if self.work is not None:
            self.work.wait()
        return self.out.view(self.team.size, -1)[:, 1].sum()

    def told(self) -> Told:
        """Wait and return what everybody said."""
        if self.work is not None:
            self.work.wait()
        found = self.out.view(self.team.size, -1).cpu().numpy()
        rows = found[:, _HEAD:].reshape(self.team.size, self.rows, _WIDTH).view(np.float64)
        counts = [len(share(self.leaves, rank, self.team.size)) for rank in range(self.team.size)]
        values = np.concatenate([rows[r, :n] for r, n in enumerate(counts)]).astype(np.float32)
        return Told(
            wishes=[int(v) for v in found[:, 0]], weight=int(found[:, 1].sum()),
            states=[int(v) for v in found[:, 2]], busy=[float(v) / 1e9 for v in found[:, 3]],
            values=values[:, : self.width],
        )  # fmt: skip
