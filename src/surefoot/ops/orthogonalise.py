"""Muon's update: n matrices [r, c] -> a stack [n, r, c], all singular values of each near 1.

Jordan et al., "Muon: an optimizer for hidden layers" (2024): a quintic Newton-Schulz iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from surefoot.ops.compiled import compiled
from surefoot.ops.draw import numbers, sizes
from surefoot.ops.way import Case, Op, Way, wide

__all__ = ["ORTHOGONALISE", "QUINTIC"]

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: steep at zero, near one elsewhere


def _iterate(x: Tensor, steps: int) -> Tensor:
    tall = x.size(1) > x.size(2)
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


def _reference(matrices: Sequence[Tensor], steps: int = 5) -> Tensor:
    """The iteration in fp32."""
    return _iterate(wide(torch.stack(list(matrices))), steps)


def _bf16(matrices: Sequence[Tensor], steps: int = 5) -> Tensor:
    """The iteration in bf16, as in Jordan's code: Muon needs no more of it."""
    first = matrices[0]
    stack = first.new_empty(len(matrices), *first.shape, dtype=torch.bfloat16)
    torch._foreach_copy_(list(stack.unbind()), list(matrices))
    return _iterate(stack, steps)


def _outcome(call: Callable[..., Any], case: Case) -> list[Tensor]:
    with torch.no_grad():
        return [call(*case)]


def _draw(stream: torch.Generator, large: bool) -> Case:
    n, r, c = (8, 256, 256) if large else sizes(stream, 4, 40, 40)
    return [list(numbers(stream, n, r, c).unbind()), 5]


ORTHOGONALISE = Op(
    "orthogonalise",
    {
        "reference": Way(_reference, tolerance=0.0),
        "bf16": Way(_bf16, tolerance=0.1, dtypes=(torch.float32, torch.bfloat16)),
        "compile": compiled(_reference, tolerance=1e-4),
    },
    standard="bf16",
    draw=_draw,
    outcome=_outcome,
)
