"""Muon for many matrices at once: momentum, made orthogonal, as the update.

Jordan et al., "Muon: an optimizer for hidden layers" (2024). The same rule as
`torch.optim.Muon`; matrices of one shape are stacked and go through each Newton-Schulz product
together, which matters for small models, where calls cost more than arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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
        for param, update in zip(params, updates, strict=True):
            heights = list(self.rows.get(id(param), (param.size(0),)))
            for part, target in zip(update.split(heights), param.split(heights), strict=True):
                stacks.setdefault((part.size(0), part.size(1)), []).append((part, target))
        for (r, c), pairs in stacks.items():
            whole = self.orthogonalise([u for u, _ in pairs], group["steps"])
            moved = list(whole.float().unbind())
            torch._foreach_add_([t for _, t in pairs], moved, alpha=-lr * math.sqrt(max(1, r / c)))

    def _buffer(self, param: Tensor) -> Tensor:
        if param not in self.state:
            self.state[param] = {"momentum_buffer": torch.zeros_like(param)}
        return self.state[param]["momentum_buffer"]
