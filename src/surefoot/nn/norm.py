"""RMSNorm, and the angles of rotary positions. Their arithmetic is in `surefoot.ops`."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from surefoot.ops import NORM, Op

__all__ = ["RMSNorm", "rotary"]


class RMSNorm(nn.Module):
    """x / root mean square of the last dimension, times a weight. Takes and gives [..., C].

    Under autocast the result has autocast's type, because a matrix product comes next.
    """

    kernels: ClassVar[dict[str, Op]] = {"compute": NORM}

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.compute = NORM.call

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        narrow = torch.is_autocast_enabled(device)
        kind = torch.get_autocast_dtype(device) if narrow else x.dtype
        found: Tensor = self.compute(x, self.weight, self.eps, kind)
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
