"""GELU in its exact form, for torch's compiler: x [..., F] -> x Phi(x), Phi of a normal distribution.

Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016). Left alone, the compiler keeps x and takes
an error function forward, and that and an exponential backward. Both come from one exponential, so
the slope is made forward and kept instead of x, in its type: backward is one product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from surefoot.ops.way import compiling_for_cpu, of_type, wide

__all__ = ["gelu"]

# Abramowitz and Stegun, 7.1.26: erfc(z) = exp(-z²) (a1 t + ... + a5 t⁵), t = 1 / (1 + p z), to 1.5e-7,
# which is how torch's vectors compute it, too.
_P = 0.3275911
_A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def gelu(x: Tensor) -> Tensor:
    """Return x Phi(x) of the type of x."""
    if compiling_for_cpu(x) and x.dtype != torch.float64:
        found: Tensor = _Gelu.apply(x)
        return found
    return F.gelu(x)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        found, slope = _both(x)
        ctx.save_for_backward(slope)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return grad * slope


def _both(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return GELU and its slope Phi(x) + x phi(x), of the type of x."""
    exact = wide(x)
    bell = (exact.square() * -0.5).exp()
    t = 1 / (1 + _P * 0.5**0.5 * exact.abs())
    sum_of_powers = torch.zeros_like(t)
    for factor in reversed(_A):
        sum_of_powers = (sum_of_powers + factor) * t
    tail = 0.5 * sum_of_powers * bell  # Phi(-|x|)
    share = torch.where(exact < 0, tail, 1 - tail)
    slope = share + exact * bell * (2 * torch.pi) ** -0.5
    return of_type(exact * share, x.dtype), of_type(slope, x.dtype)
