"""Attention within documents: q [B, H, T, D], k and v [B, K, T, D], documents [B, T] -> [B, H, T, D].

A token sees those up to itself that have the same number in `documents`, where numbers never fall.
B examples, H query heads, K key and value heads (K divides H), T tokens, D numbers a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from surefoot.ops.compiled import by_shape, compiled
from surefoot.ops.compiler import compiler
from surefoot.ops.draw import numbers, sizes
from surefoot.ops.way import Case, Op, Way, wide

__all__ = ["WITHIN"]


def _reference(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
    """softmax(q k' / sqrt(D)) v over what a token sees, softmax in fp32."""
    if k.size(1) != q.size(1):
        group = q.size(1) // k.size(1)
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = wide(q @ k.transpose(-2, -1)) / math.sqrt(q.size(-1))  # [B, H, T, T]
    return scores.masked_fill(~_seen(documents), -math.inf).softmax(-1).to(v.dtype) @ v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
    """Torch's fused attention with a mask, in the precision of the values."""
    with torch.autocast(q.device.type, enabled=False):
        return F.scaled_dot_product_attention(
            q.to(v.dtype), k.to(v.dtype), v, attn_mask=_seen(documents),
            enable_gqa=k.size(1) != q.size(1),
        )  # fmt: skip


def _seen(documents: Tensor) -> Tensor:
    """Return bool[B, 1, T, T]: what a token sees."""
    return (documents.unsqueeze(1) == documents.unsqueeze(2)).tril().unsqueeze(1)


def _flex(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
    """Torch's FlexAttention: blocks of tokens that share no document are never computed."""
    if torch.compiler.is_compiling():
        return _in_blocks(q, k, v, documents)
    if not _made:  # a model that is not compiled: by itself, for not compiled it would be slow
        _made["flex"] = by_shape(_in_blocks)
    found: Tensor = _made["flex"](q, k, v, documents)
    return found


_made: dict[str, Any] = {}


def _in_blocks(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def seen(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents[b, query] == documents[b, key])

    count, length = documents.shape
    with torch.autocast(q.device.type, enabled=False):
        blocks = create_block_mask(seen, count, None, length, length, device=q.device)
        return flex_attention(
            q.to(v.dtype), k.to(v.dtype), v, block_mask=blocks,
            enable_gqa=k.size(1) != q.size(1),
        )  # fmt: skip


def _no_compiler(device: torch.device) -> str | None:
    return None if compiler(device.type) else "there is no Triton"


def _draw(stream: torch.Generator, large: bool) -> Case:
    b, k, group, t, d = (8, 4, 1, 256, 32) if large else sizes(stream, 3, 3, 3, 40, 17)
    heads = (group * k, k, k)
    parts = numbers(stream, b, t, sum(heads), d).split(heads, 2)
    begins = torch.rand(b, t, generator=stream) < 0.1
    return [*(x.transpose(1, 2).requires_grad_() for x in parts), begins.cumsum(1)]


WITHIN = Op(
    "within",
    {
        "reference": Way(_reference, tolerance=0.0),
        "sdpa": Way(_sdpa, tolerance=1e-5),
        "flex": Way(
            _flex, tolerance=1e-4, devices=("cuda",), obstacle=_no_compiler, slow_start=True,
            dtypes=(torch.float32, torch.bfloat16, torch.float16),
        ),
        "compile": compiled(_reference, tolerance=1e-5),
    },
    standard="sdpa",
    draw=_draw,
)  # fmt: skip
