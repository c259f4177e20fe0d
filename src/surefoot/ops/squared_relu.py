"""Squared ReLU: x [..., F] -> relu(x)². So et al., "Primer" (2021)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from surefoot.ops import kernels
from surefoot.ops.compiled import compiled
from surefoot.ops.draw import numbers, sizes
from surefoot.ops.way import Case, Op, Way

__all__ = ["SQUARED_RELU"]


def _reference(x: Tensor) -> Tensor:
    """The formula."""
    return F.relu(x).square()


def _fused(x: Tensor) -> Tensor:
    """One node for both, which keeps relu(x)."""
    found: Tensor = _Fused.apply(x)
    return found


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        kept = F.relu(x)
        ctx.save_for_backward(kept)
        return kept * kept

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (kept,) = ctx.saved_tensors
        found: Tensor = (grad * kept).mul_(2)
        return found


def _triton(x: Tensor) -> Tensor:
    """One kernel forward and one backward; keeps x."""
    return kernels.load().squared_relu(x)


def _draw(stream: torch.Generator, large: bool) -> Case:
    b, t, f = (8, 128, 704) if large else sizes(stream, 4, 9, 90)
    return [numbers(stream, b, t, f).requires_grad_()]


SQUARED_RELU = Op(
    "squared_relu",
    {
        "reference": Way(_reference, tolerance=0.0),
        "fused": Way(_fused, tolerance=1e-5),
        "compile": compiled(_reference, tolerance=1e-5),
        "triton": kernels.way(_triton, tolerance=1e-5),
    },
    draw=_draw,
)
