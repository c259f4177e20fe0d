"""RMSNorm, alone and together with the rotation of queries and keys, in few operations.

Torch has no fused RMSNorm on processors: its parts, each with a node of its own for backward, take
four times as long as LayerNorm. These functions know their own gradients. Arithmetic is fp32 (or
fp64 for fp64 input), as in the public implementations of Llama and Qwen3.

B examples, T tokens, H heads, D numbers a head, C numbers a token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["RMSNorm", "rotary", "rotate"]


class RMSNorm(nn.Module):
    """x / root mean square of the last dimension, times a weight. Takes and gives [..., C].

    Under autocast the result has autocast's type, because a matrix product comes next. Zhang and
    Sennrich, "Root Mean Square Layer Normalization" (2019).
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        narrow = torch.is_autocast_enabled(device)
        kind = torch.get_autocast_dtype(device) if narrow else x.dtype
        found: Tensor = _Norm.apply(x, self.weight, self.eps, kind)
        return found

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


def rotary(width: int, context: int, theta: float) -> Tensor:
    """Return f32[2, context, 1, D]: cosines, and sines with the sign of the half they act on.

    Su et al., "RoFormer" (2021), in the half-split form of Llama and Qwen3.
    """
    power = torch.arange(0, width, 2, dtype=torch.int64).float() / width
    angle = torch.outer(torch.arange(context).float(), 1.0 / theta**power)  # [T, D/2]
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))).unsqueeze(2)


def rotate(x: Tensor, turn: Tensor, weight: Tensor | None = None, eps: float = 0.0) -> Tensor:
    """Turn heads [B, T, H, D] by the angles of `turn` [2, T, 1, D].

    With a `weight` [H, D], each head is first normalised like RMSNorm (QK-norm).
    """
    found: Tensor = _Rotate.apply(x, turn, weight, eps)
    return found


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, kind: torch.dtype) -> Tensor:
        wide = _wide(x)
        scale = _scale(wide, eps)
        unit = wide * scale
        ctx.save_for_backward(unit, weight, scale)
        ctx.kind = x.dtype
        return (unit * weight).to(kind)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        unit, weight, scale = ctx.saved_tensors
        found, by_weight = _unnorm(_wide(grad), unit, weight, scale)
        return found.to(ctx.kind), by_weight.flatten(0, -2).sum(0), None, None


class _Rotate(torch.autograd.Function):
    """y = n cos + swap(n) sin with n = weight x / rms(x); the weight is folded into the angles."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, turn: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        unit, scale = _wide(x), None
        cos, sin = turn.unbind()
        if weight is not None:
            scale = _scale(unit, eps)
            unit = unit * scale
            cos, sin = cos * weight, sin * _swap(weight)
            ctx.save_for_backward(turn, unit, weight, scale)
        else:
            ctx.save_for_backward(turn)
        ctx.kind = x.dtype
        return torch.addcmul(unit * cos, _swap(unit), sin).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None, None]:
        turn, *normed = ctx.saved_tensors
        cos, sin = turn.unbind()
        grad = _wide(grad)
        grad = _swap(grad * sin).addcmul_(grad, cos)  # turned back
        if not normed:
            return grad.to(ctx.kind), None, None, None
        found, by_weight = _unnorm(grad, *normed)
        return found.to(ctx.kind), None, by_weight.flatten(0, 1).sum(0), None


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _swap(x: Tensor) -> Tensor:
    """Exchange the halves of the last dimension."""
    return x.roll(x.size(-1) // 2, -1)


def _scale(x: Tensor, eps: float) -> Tensor:
    """1 / root of (mean square of the last dimension + eps)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().mul_(1 / x.size(-1)).add_(eps).rsqrt_()


def _unnorm(grad: Tensor, unit: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and, not yet summed, of the weight, for y = weight * unit.

    unit = x * scale(x); `grad` is that of y.
    """
    by_weight = grad * unit
    along = (by_weight * weight).sum(-1, keepdim=True)
    found = (grad * weight).addcmul_(unit, along, value=-1 / unit.size(-1)).mul_(scale)
    return found, by_weight
