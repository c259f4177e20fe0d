"""RMSNorm: x [..., C], weight [C] -> weight x / rms(x) of type `kind`.

Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019). Arithmetic is fp32, or fp64 for
fp64 input, as in the public implementations of Llama and Qwen3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from surefoot.ops import kernels
from surefoot.ops.compiled import compiled
from surefoot.ops.draw import numbers, sizes
from surefoot.ops.way import Case, Op, Way, of_type, wide

__all__ = ["NORM", "scale_of", "unnorm"]


def _reference(x: Tensor, weight: Tensor, eps: float, kind: torch.dtype) -> Tensor:
    """The formula, each part with a node of its own for backward."""
    exact = wide(x)
    return (exact * (exact.square().mean(-1, keepdim=True) + eps).rsqrt() * weight).to(kind)


def _fused(x: Tensor, weight: Tensor, eps: float, kind: torch.dtype) -> Tensor:
    """One node that knows its gradient; keeps the normalised x in fp32."""
    found: Tensor = _Norm.apply(x, weight, eps, kind)
    return found


def _torch(x: Tensor, weight: Tensor, eps: float, kind: torch.dtype) -> Tensor:
    """Torch's own, which is one kernel on CUDA and the formula in parts on a processor."""
    exact = wide(x)
    return F.rms_norm(exact, (x.size(-1),), weight.to(exact.dtype), eps).to(kind)


def _triton(x: Tensor, weight: Tensor, eps: float, kind: torch.dtype) -> Tensor:
    """One kernel forward and one backward, a row a program; keeps x and one number a row."""
    return kernels.load().rms_norm(x, weight, eps, kind)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, kind: torch.dtype) -> Tensor:
        exact = wide(x)
        scale = scale_of(exact, eps)
        unit = exact * scale
        ctx.save_for_backward(unit, weight, scale)
        ctx.kind = x.dtype
        return of_type(unit * weight, kind)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        unit, weight, scale = ctx.saved_tensors
        found, by_weight = unnorm(wide(grad), unit, weight, scale)
        return found.to(ctx.kind), by_weight.flatten(0, -2).sum(0), None, None


def scale_of(x: Tensor, eps: float) -> Tensor:
    """Return 1 / root of (mean square of the last dimension + eps): [..., 1]."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().mul_(1 / x.size(-1)).add_(eps).rsqrt_()


def unnorm(grad: Tensor, unit: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and, not yet summed, of the weight, for y = weight * unit.

    unit = x * scale(x); `grad` is that of y.
    """
    by_weight = grad * unit
    along = (by_weight * weight).sum(-1, keepdim=True)
    found = (grad * weight).addcmul_(unit, along, value=-1 / unit.size(-1)).mul_(scale)
    return found, by_weight


def _draw(stream: torch.Generator, large: bool) -> Case:
    b, t, c = (8, 128, 256) if large else sizes(stream, 5, 9, 70)
    x, weight = numbers(stream, b, t, c), 1 + 0.1 * numbers(stream, c)
    return [x.requires_grad_(), weight.requires_grad_(), 1e-6, x.dtype]


NORM = Op(
    "norm",
    {
        "reference": Way(_reference, tolerance=0.0),
        "fused": Way(_fused, tolerance=1e-5),
        "torch": Way(_torch, tolerance=1e-5),
        "compile": compiled(_reference, tolerance=1e-5),
        "triton": kernels.way(_triton, tolerance=1e-5),
    },
    standard="fused",
    draw=_draw,
)
