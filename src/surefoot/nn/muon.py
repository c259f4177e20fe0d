"""Muon for many matrices at once: momentum, made orthogonal, as the update.

Jordan et al., "Muon: an optimizer for hidden layers" (2024). The same rule as
`torch.optim.Muon`; matrices of one shape are stacked and go through each Newton-Schulz product
together, which matters for small models, where calls cost more than arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from surefoot.nn.optimiser import groups_of
from surefoot.ops import ORTHOGONALISE, Op

__all__ = ["Muon"]


class Muon:
    """Muon with decoupled weight decay, for 2-D parameters.

    A parameter that is several matrices on top of each other (fused queries, keys and values)
    names their heights in `rows`, by its id: each is made orthogonal on its own. The step of an
    r x c matrix is lr * sqrt(max(1, r/c)). State: `momentum_buffer` of each parameter.

    Where parameters are rows of larger ones, `span` says which rows, and `whole` makes of an update
    of those rows the whole update, with the help of whoever has the other rows.
    """

    kernels: ClassVar[dict[str, Op]] = {"orthogonalise": ORTHOGONALISE}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        steps: int = 5,
        rows: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        self.param_groups = groups_of(
            params, lr=lr, weight_decay=weight_decay, momentum=momentum, steps=steps
        )
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self.rows = rows or {}
        self.span: Callable[[Tensor], tuple[int, int]] | None = None
        self.whole: Callable[[Tensor, Tensor], Tensor] | None = None
        self.orthogonalise = ORTHOGONALISE.call
        for group in self.param_groups:
            if any(p.dim() != 2 for p in group["params"]):
                raise ValueError("Muon is for matrices; give vectors and embeddings to AdamW")

    @torch.no_grad()
    def step(self) -> None:
        """Apply one update from the gradients at hand."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step(params, group)

    def _step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        grads = [p.grad for p in params if p.grad is not None]
        buffers = [self._buffer(p) for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        updates = torch._foreach_lerp(grads, buffers, momentum)  # Nesterov
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        stacks: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        mine: dict[tuple[int, int], list[slice]] = {}
        for param, update in zip(params, updates, strict=True):
            low, high = (0, update.size(0)) if self.span is None else self.span(param)
            if self.whole is not None:
                update = self.whole(param, update)
            heights = list(self.rows.get(id(param), (update.size(0),)))
            targets = param.split(heights) if self.span is None else _cut(param, heights, low, high)
            for part, target in zip(update.split(heights), targets, strict=True):
                stacks.setdefault((part.size(0), part.size(1)), []).append((part, target))
            if self.span is not None:
                _own_rows(mine, heights, update.size(1), low, high)
        for (r, c), pairs in stacks.items():
            whole = self.orthogonalise([u for u, _ in pairs], group["steps"])
            moved = list(whole.float().unbind())
            if self.span is not None:
                moved = [m[rows] for m, rows in zip(moved, mine[r, c], strict=True)]
            torch._foreach_add_([t for _, t in pairs], moved, alpha=-lr * math.sqrt(max(1, r / c)))

    def _buffer(self, param: Tensor) -> Tensor:
        if param not in self.state:
            self.state[param] = {"momentum_buffer": torch.zeros_like(param)}
        return self.state[param]["momentum_buffer"]


def _bounds(heights: Sequence[int], low: int, high: int) -> Iterator[tuple[int, int, int]]:
    """Yield where each matrix begins, and which rows of the whole are both in it and from low to high."""
    place = 0
    for height in heights:
        yield place, min(max(place, low), high), min(max(place + height, low), high)
        place += height


def _cut(param: Tensor, heights: Sequence[int], low: int, high: int) -> list[Tensor]:
    """Return the rows of each matrix that are in `param`, which holds those from `low` on."""
    return [param[first - low : last - low] for _, first, last in _bounds(heights, low, high)]


def _own_rows(
    found: dict[tuple[int, int], list[slice]],
    heights: Sequence[int],
    width: int,
    low: int,
    high: int,
) -> None:
    """Add to each shape which rows of its matrices those are."""
    for height, (place, first, last) in zip(heights, _bounds(heights, low, high), strict=True):
        rows = slice(max(0, first - place), max(0, last - place))
        found.setdefault((height, width), []).append(rows)
