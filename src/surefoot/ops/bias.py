"""A bias for torch's compiler: x [..., F] + bias [F], of the type of x.

A library's product with a bias first copies that into every row of its result; the compiler adds it
where the result is read next. Its gradient is a sum over rows: column by column, as the compiler
would add, every number comes from another page of memory, so some rows at a time are added first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surefoot.ops.way import of_type, wide

__all__ = ["add_bias"]

_ROWS = 16  # of 2,048 numbers: few enough for the cache of a core


def add_bias(x: Tensor, bias: Tensor) -> Tensor:
    """Return x + bias, added in fp32 at least."""
    found: Tensor = _Biased.apply(x, bias)
    return found


class _Biased(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        return of_type(wide(x) + bias, x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        rows = wide(grad.reshape(-1, grad.size(-1)))  # one vector is one row
        if rows.size(0) % _ROWS == 0:
            rows = rows.unflatten(0, (-1, _ROWS)).sum(1)
        return grad, rows.sum(0)
