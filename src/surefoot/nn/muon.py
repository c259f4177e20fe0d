"""Muon for many matrices at once: momentum, made orthogonal, as the update.

Jordan et al., "Muon: an optimizer for hidden layers" (2024). The same rule as
`torch.optim.Muon`; matrices of one shape are stacked and go through each Newton-Schulz product
together, which matters for small models, where calls cost more than arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from surefoot.nn.optimiser import groups_of

__all__ = ["Muon", "orthogonalise"]

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: steep at zero, near one elsewhere


def orthogonalise(stack: Tensor, steps: int = 5) -> Tensor:
    """Push all singular values of each matrix of [n, r, c] towards 1; bf16, of the same shape."""
    tall = stack.size(1) > stack.size(2)
    x = stack.bfloat16()
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = QUINTIC
    for _ in range(steps):
        gram = x @ x.mT
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        x = factor @ x  # (a + b gram + c gram²) x
    return x.mT if tall else x


class Muon:
    """Muon with decoupled weight decay, for 2-D parameters.

    A parameter that is several matrices on top of each other (fused queries, keys and values)
    names their heights in `rows`, by its id: each is made orthogonal on its own. The step of an
    r x c matrix is lr * sqrt(max(1, r/c)). State: `momentum_buffer` of each parameter.
    """

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
            stack = pairs[0][0].new_empty(len(pairs), r, c, dtype=torch.bfloat16)
            torch._foreach_copy_(list(stack.unbind()), [u for u, _ in pairs])
            whole = orthogonalise(stack, group["steps"])
            moved = list(whole.float().unbind())
            torch._foreach_add_([t for _, t in pairs], moved, alpha=-lr * math.sqrt(max(1, r / c)))

    def _buffer(self, param: Tensor) -> Tensor:
        if param not in self.state:
            self.state[param] = {"momentum_buffer": torch.zeros_like(param)}
        return self.state[param]["momentum_buffer"]
