"""Causal attention: q [B, H, T, D], k and v [B, K, T, D] -> [B, H, T, D].

B examples, H query heads, K key and value heads (K divides H: grouped queries), T tokens, D
numbers a head. A query may also be the last token alone (T = 1) of a longer past, in generation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from surefoot.ops.way import Op, Way

__all__ = ["ATTENTION"]


def _reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(D)) v with everything after a token masked, softmax in fp32."""
    if k.size(1) != q.size(1):
        group = q.size(1) // k.size(1)
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = (q @ k.transpose(-2, -1)).float() / math.sqrt(q.size(-1))  # [B, H, T, S]
    new, seen = scores.shape[-2:]
    hidden = torch.ones(new, seen, dtype=torch.bool, device=q.device).triu(1 + seen - new)
    return scores.masked_fill(hidden, -math.inf).softmax(-1).to(v.dtype) @ v


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Torch's fused attention in the precision that it is given."""
    return F.scaled_dot_product_attention(
        q, k, v, is_causal=q.size(2) > 1, enable_gqa=k.size(1) != q.size(1)
    )


def _sdpa_fp32(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Torch's fused attention in fp32, also under autocast.

    On processors the bf16 kernel loses badly to the fp32 one for short sequences.
    """
    with torch.autocast(q.device.type, enabled=False):
        return _sdpa(q.float(), k.float(), v.float()).to(v.dtype)


ATTENTION = Op(
    "attention",
    {
        "reference": Way(_reference, tolerance=0.0),
        "sdpa": Way(_sdpa, tolerance=1e-5),
        "sdpa_fp32": Way(_sdpa_fp32, tolerance=1e-5),
    },
)
