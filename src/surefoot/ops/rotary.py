"""Rotary positions: heads x [B, T, H, D], turn [2, T, 1, D] -> x turned, of its type.

With a weight [H, D] each head is first normalised like RMSNorm (QK-norm). Su et al., "RoFormer"
(2021), in the half-split form of Llama and Qwen3. `turn` holds cosines, and sines with the sign
of the half they act on (`nn.norm.rotary`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surefoot.ops.compiled import compiled
from surefoot.ops.draw import numbers, sizes
from surefoot.ops.norm import scale_of, unnorm
from surefoot.ops.way import Case, Op, Way, of_type, wide

__all__ = ["ROTARY"]


def _reference(x: Tensor, turn: Tensor, weight: Tensor | None = None, eps: float = 0.0) -> Tensor:
    """The two formulas one after the other."""
    exact = wide(x)
    if weight is not None:
        exact = exact * (exact.square().mean(-1, keepdim=True) + eps).rsqrt() * weight
    cos, sin = turn.unbind()
    return (exact * cos + _swap(exact) * sin).to(x.dtype)


def _fused(x: Tensor, turn: Tensor, weight: Tensor | None = None, eps: float = 0.0) -> Tensor:
    """One node that knows its gradient; the weight is folded into the angles."""
    found: Tensor = _Rotate.apply(x, turn, weight, eps)
    return found


class _Rotate(torch.autograd.Function):
    """y = n cos + swap(n) sin with n = weight x / rms(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, turn: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        unit, scale = wide(x), None
        cos, sin = turn.unbind()
        if weight is not None:
            scale = scale_of(unit, eps)
            unit = unit * scale
            cos, sin = cos * weight, sin * _swap(weight)
            ctx.save_for_backward(turn, unit, weight, scale)
        else:
            ctx.save_for_backward(turn)
        ctx.kind = x.dtype
        return of_type(torch.addcmul(unit * cos, _swap(unit), sin), x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None, None]:
        turn, *normed = ctx.saved_tensors
        cos, sin = turn.unbind()
        grad = wide(grad)
        grad = _swap(grad * sin).addcmul_(grad, cos)  # turned back
        if not normed:
            return grad.to(ctx.kind), None, None, None
        found, by_weight = unnorm(grad, *normed)
        return found.to(ctx.kind), None, by_weight.flatten(0, 1).sum(0), None


def _swap(x: Tensor) -> Tensor:
    """Exchange the halves of the last dimension."""
    return x.roll(x.size(-1) // 2, -1)


def _draw(stream: torch.Generator, large: bool) -> Case:
    b, t, h, half = (8, 128, 8, 16) if large else sizes(stream, 3, 12, 4, 9)
    x, angle = numbers(stream, b, t, h, 2 * half), numbers(stream, t, half)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))).unsqueeze(2)
    weight = 1 + 0.1 * numbers(stream, h, 2 * half)
    return [x.requires_grad_(), turn, weight.requires_grad_(), 1e-6]


ROTARY = Op(
    "rotary",
    {
        "reference": Way(_reference, tolerance=0.0),
        "fused": Way(_fused, tolerance=1e-5),
        "compile": compiled(_reference, tolerance=1e-5),
    },
    standard="fused",
    draw=_draw,
)
