"""Rows of a table by number, for torch's compiler: weight [V, C], tokens [...] -> [..., C].

V words, C width. Left alone, the compiler turns the gradient into an `index_put` that adds the rows
of a frequent word one after the other; torch's own kernel for embeddings sorts the words and adds in
parallel, in an order that does not change. To the compiler that gradient is one operation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["rows"]


def rows(weight: Tensor, tokens: Tensor) -> Tensor:
    """Return `weight[tokens]`, with the gradient of `torch.nn.Embedding` run without a compiler."""
    found: Tensor = _Rows.apply(weight, tokens)
    return found


@torch.library.custom_op("surefoot::rows_backward", mutates_args=())
def _backward(grad: Tensor, tokens: Tensor, words: int) -> Tensor:
    return torch.ops.aten.embedding_dense_backward(grad, tokens, words, -1, False)


@_backward.register_fake
def _(grad: Tensor, tokens: Tensor, words: int) -> Tensor:
    return grad.new_empty(words, grad.size(-1))


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.words = weight.size(0)
        return F.embedding(tokens, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (tokens,) = ctx.saved_tensors
        return _backward(grad, tokens, ctx.words), None
