"""Attention: q [B, H, T, D], k and v [B, K, S, D] -> [B, H, T, D], causal unless told otherwise.

B examples, H query heads, K key and value heads (K divides H: grouped queries), T tokens, D
numbers a head. S = T in training; in generation the query may be the last token of a longer past.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from surefoot.ops.attention_tiles import by_key_head, kept_mask, mask_of, tiles
from surefoot.ops.compiled import compiled
from surefoot.ops.draw import numbers, sizes
from surefoot.ops.way import Case, Op, Way, wide

__all__ = ["ATTENTION"]


def _reference(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    """softmax(q k' / sqrt(D)) v, softmax in fp32; causal: everything after a token is masked."""
    if k.size(1) != q.size(1):
        group = q.size(1) // k.size(1)
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = wide(q @ k.transpose(-2, -1)) / math.sqrt(q.size(-1))  # [B, H, T, S]
    if not causal:
        return scores.softmax(-1).to(v.dtype) @ v
    new, seen = scores.shape[-2:]
    hidden = torch.ones(new, seen, dtype=torch.bool, device=q.device).triu(1 + seen - new)
    return scores.masked_fill(hidden, -math.inf).softmax(-1).to(v.dtype) @ v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    """Torch's fused attention in the precision that it is given."""
    if q.size(2) == 1:  # asked in a statement: its compiler takes no size for a truth in a call
        causal = False
    return F.scaled_dot_product_attention(
        q, k, v, is_causal=causal, enable_gqa=k.size(1) != q.size(1)
    )


def _sdpa_fp32(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    """Torch's fused attention in fp32, also under autocast.

    On processors the bf16 kernel loses badly to the fp32 one for short sequences.
    """
    with torch.autocast(q.device.type, enabled=False):
        return _sdpa(q.float(), k.float(), v.float(), causal).to(v.dtype)


def _matmul(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    """Two batched products around a softmax, in the precision of the values.

    Keeps B x H x T x S probabilities for backward. For contexts of some hundred tokens on a
    processor with bf16 products this is faster than any fused kernel there.
    """
    found: Tensor = _Matmul.apply(q.to(v.dtype), k.to(v.dtype), v, causal)
    return found


class _Matmul(torch.autograd.Function):
    """Knows its own gradient, so that no intermediate is copied, kept or scaled twice."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        ctx.shapes = q.shape, k.shape
        scale = q.size(-1) ** -0.5
        with torch.autocast(q.device.type, enabled=False):
            q, k, v = by_key_head(q, k, v)
            group, new, seen = q.size(1), q.size(2), k.size(1)
            q = q.flatten(1, 2)
            if causal:
                # Compiled code makes the mask as it goes; otherwise it is kept from the last time.
                make = mask_of if torch.compiler.is_compiling() else kept_mask
                mask = make(new, seen, group, q.dtype, q.device)
                scores = torch.baddbmm(mask, q, k.mT, alpha=scale)  # [B K, H/K T, S]
            else:
                scores = torch.bmm(q * scale, k.mT)
            p = scores.softmax(-1)
            ctx.save_for_backward(q, k, v, p)
            return torch.bmm(p, v).view(ctx.shapes[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, p = ctx.saved_tensors
        query, key = ctx.shapes
        scale = query[-1] ** -0.5
        grad = grad.reshape(q.shape)
        by_scores = torch._softmax_backward_data(torch.bmm(grad, v.mT), p, -1, p.dtype)
        by_q = torch.bmm(by_scores, k).mul_(scale)
        by_k = torch.bmm(by_scores.mT, q).mul_(scale)
        return by_q.view(query), by_k.view(key), torch.bmm(p.mT, grad).view(key), None


def _draw(stream: torch.Generator, large: bool) -> Case:
    """q, k and v as a fused projection gives them: strided views of [B, T, heads, D]."""
    b, k, group, t, d = (8, 4, 1, 256, 32) if large else sizes(stream, 3, 3, 3, 300, 17)
    heads = (group * k, k, k)
    parts = numbers(stream, b, t, sum(heads), d).split(heads, 2)
    return [x.transpose(1, 2).requires_grad_() for x in parts]


ATTENTION = Op(
    "attention",
    {
        "reference": Way(_reference, tolerance=0.0),
        "sdpa": Way(_sdpa, tolerance=1e-5),
        "sdpa_fp32": Way(
            _sdpa_fp32, tolerance=1e-5, dtypes=(torch.float32, torch.bfloat16, torch.float16)
        ),
        "matmul": Way(_matmul, tolerance=1e-5),
        "tiles": Way(tiles, tolerance=1e-5),
        "compile": compiled(_reference, tolerance=1e-5),
    },
    standard="sdpa",
    draw=_draw,
)
