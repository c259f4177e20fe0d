"""Causal attention in tiles of queries, each of which meets only the keys that it may see.

The plain way multiplies every query with every key and masks half of it. A tile skips what lies
beyond its last token, and its scores stay in the cache of a processor core between the product, the
softmax and the second product, where those of a whole context do not. FlashAttention (Dao et al.,
2022) cuts the keys as well, which needs a running maximum; with at most some thousand keys a tile's
rows fit as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from surefoot.ops.kept import kept
from surefoot.ops.way import compiling_for_cpu

__all__ = ["by_key_head", "kept_mask", "mask_of", "tiles"]

TILE = 128  # queries; of 64, 128 and 256 the fastest on a core with 1 MiB of cache of its own


def tiles(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    """Attention in the precision of the values; keeps each tile's probabilities for backward.

    Shapes and meaning are those of `ops.attention`. Where several tiles share a key, its gradient
    is summed in the precision of the values, from the last tile to the first.
    """
    found: Tensor = _Tiles.apply(q.to(v.dtype), k.to(v.dtype), v, causal)
    return found


class _Tiles(torch.autograd.Function):
    """One step for all tiles, so that autograd keeps no slice and adds up no gradient of one."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        ctx.shapes = q.shape, k.shape
        with torch.autocast(q.device.type, enabled=False):
            q, k, v = by_key_head(q, k, v)
            found, shares = (_forward_as_one if compiling_for_cpu(q) else _forward)(q, k, v, causal)
            ctx.save_for_backward(q, k, v, *shares)
            ctx.causal = causal
            return found.view(ctx.shapes[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *shares = ctx.saved_tensors
        query, key = ctx.shapes
        compute = _backward_as_one if compiling_for_cpu(q) else _backward
        by_q, by_k, by_v = compute(grad.reshape(q.shape), q, k, v, shares, ctx.causal)
        return by_q.view(query), by_k.view(key), by_v.view(key), None


def by_key_head(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries [B K, H/K, T, D], and keys and values [B K, S, D], of what attention is given."""
    examples, kv_heads, seen, width = k.shape
    queries = q.reshape(examples * kv_heads, q.size(1) // kv_heads, q.size(2), width)
    return queries, k.reshape(-1, seen, width), v.reshape(-1, seen, width)


def _forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, list[Tensor]]:
    """Return the result [B K, H/K, T, D], and each tile's probabilities [B K, H/K tile, visible]."""
    (group, new, width), seen = q.shape[1:], k.size(1)
    found, kept_shares = torch.empty_like(q), []
    # Compiled code makes the mask as it goes; otherwise it is kept from the last time.
    make = mask_of if torch.compiler.is_compiling() else kept_mask
    for first, last, visible in _cut(new, seen, causal):
        mask = make(last - first, seen if causal else 0, group, q.dtype, q.device)
        mask = mask[:, -visible:] if causal else mask
        keys = k[:, :visible].contiguous()  # torch would copy a transposed piece number by number
        scores = torch.baddbmm(mask, _rows(q, first, last), keys.mT, alpha=width**-0.5)
        shares = scores.softmax(-1)
        found[:, :, first:last] = torch.bmm(shares, v[:, :visible]).unflatten(1, (group, -1))
        kept_shares.append(shares)
    return found, kept_shares


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, kept_shares: list[Tensor], causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, in their shapes inside."""
    (group, new, width), seen = q.shape[1:], k.size(1)
    by_q, by_k, by_v = torch.empty_like(q), k.new_empty(0), v.new_empty(0)
    cuts = list(zip(_cut(new, seen, causal), kept_shares, strict=True))
    for (first, last, visible), shares in reversed(cuts):
        here = _rows(grad, first, last)
        by_shares = torch.bmm(here, v[:, :visible].contiguous().mT)
        by_scores = torch._softmax_backward_data(by_shares, shares, -1, shares.dtype)
        by_q[:, :, first:last] = torch.bmm(by_scores, k[:, :visible]).unflatten(1, (group, -1))
        of_k, of_v = torch.bmm(by_scores.mT, _rows(q, first, last)), torch.bmm(shares.mT, here)
        if last == new:  # the last tile comes first, and sees all keys
            by_k, by_v = of_k, of_v
        else:
            by_k[:, :visible] += of_k
            by_v[:, :visible] += of_v
    for found in (by_q, by_k):
        found.mul_(width**-0.5)
    return by_q, by_k, by_v


# To the compiler all tiles are one operation: it would make code for each.
@torch.library.custom_op("surefoot::tiles", mutates_args=())
def _forward_as_one(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, list[Tensor]]:
    return _forward(q, k, v, causal)


@_forward_as_one.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, list[Tensor]]:
    (group, new), seen = q.shape[1:3], k.size(1)
    cuts = _cut(new, seen, causal)
    shares = [q.new_empty(q.size(0), group * (last - first), x) for first, last, x in cuts]
    return torch.empty_like(q), shares


@torch.library.custom_op("surefoot::tiles_backward", mutates_args=())
def _backward_as_one(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, kept_shares: list[Tensor], causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(grad, q, k, v, kept_shares, causal)


@_backward_as_one.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, kept_shares: list[Tensor], causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _cut(new: int, seen: int, causal: bool) -> Iterator[tuple[int, int, int]]:
    """Yield each tile's first query, the one after its last, and how many keys it may see."""
    for first in range(0, new, TILE):
        last = min(first + TILE, new)
        yield first, last, seen - new + last if causal else seen


def _rows(x: Tensor, first: int, last: int) -> Tensor:
    """Return [B K, H/K (last - first), D] of [B K, H/K, T, D]."""
    return x[:, :, first:last].reshape(x.size(0), -1, x.size(-1))


def mask_of(tile: int, seen: int, group: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return [group * tile, seen]: -inf in the last `tile` columns where a token would see what
    follows it, else 0; [1, 1], zero, where nothing is seen too early.
    """
    if seen == 0:
        return torch.zeros(1, 1, dtype=dtype, device=device)
    hidden = torch.full((tile, seen), -math.inf, dtype=dtype, device=device)
    return hidden.triu(1 + seen - tile).repeat(group, 1)


kept_mask = kept(mask_of)
