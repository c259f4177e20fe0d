"""SwiGLU's gate: gate [..., F], up [..., F] -> silu(gate) up.

Shazeer, "GLU Variants Improve Transformer" (2020).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from surefoot.ops import kernels
from surefoot.ops.compiled import compiled
from surefoot.ops.draw import numbers, sizes
from surefoot.ops.way import Case, Op, Way

__all__ = ["SWIGLU"]


def _reference(gate: Tensor, up: Tensor) -> Tensor:
    """The formula; keeps gate, up and silu(gate) for backward."""
    return F.silu(gate) * up


def _recomputed(gate: Tensor, up: Tensor) -> Tensor:
    """Computes silu(gate) again in backward, so a third less is kept."""
    found: Tensor = _Recomputed.apply(gate, up)
    return found


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        share = F.silu(gate)
        # in place, the compiler of torch 2.11 would lose the gradient (see `of_type`)
        return share * up if torch.compiler.is_compiling() else share.mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        by_up = F.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), by_up


def _triton(gate: Tensor, up: Tensor) -> Tensor:
    """One kernel forward and one backward; keeps gate and up."""
    return kernels.load().swiglu(gate, up)


def _draw(stream: torch.Generator, large: bool) -> Case:
    b, t, f = (8, 128, 704) if large else sizes(stream, 4, 9, 90)
    return [numbers(stream, b, t, f).requires_grad_(), numbers(stream, b, t, f).requires_grad_()]


SWIGLU = Op(
    "swiglu",
    {
        "reference": Way(_reference, tolerance=0.0),
        "recomputed": Way(_recomputed, tolerance=1e-5),
        "compile": compiled(_reference, tolerance=1e-5),
        "triton": kernels.way(_triton, tolerance=1e-5),
    },
    draw=_draw,
)
