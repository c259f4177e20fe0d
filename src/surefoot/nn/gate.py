"""SwiGLU: a feed-forward part that is multiplied with a gate.

Shazeer, "GLU Variants Improve Transformer" (2020). The function knows its own gradient and writes
both halves of it into one tensor, where autograd would make three and copy them together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["swiglu"]


def swiglu(x: Tensor) -> Tensor:
    """Return silu(gate) * up, where x [..., 2F] holds gate, then up."""
    found: Tensor = _SwiGLU.apply(x)
    return found


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        gate, up = x.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate, up = x.chunk(2, -1)
        found = torch.empty_like(x)
        by_gate, by_up = found.chunk(2, -1)
        torch.mul(grad, F.silu(gate), out=by_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=by_gate)
        return found
