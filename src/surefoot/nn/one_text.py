"""One text, one token at a time, on a processor: `nn.decode` by numpy.

A product with one row reads its matrix once and hardly computes, so the best library is the one that
reads at the speed of memory. In fp32 on AMD's processors that is numpy's OpenBLAS; narrower matrices
are read by torch. numpy's calls also cost less than torch's, of which a token needs some hundred.

C width, H query heads, K key and value heads, D numbers a head, F inner width, V words.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import cast

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.config.model import GPTConfig
from surefoot.nn.blas import Pool, openblas
from surefoot.nn.gpt import GPT, Attention, Block, Past, capped
from surefoot.nn.norm import RMSNorm

__all__ = ["OneText", "side_by_side"]

Numbers = NDArray[np.float32]
Reader = Callable[[], object]

_BLOCK = 16  # rows that the kernels of OpenBLAS take at once, at most


def side_by_side(model: nn.Module) -> None:
    """Move the parameters of `model`, fp32 on a processor, into one block of memory, in order.

    numpy asks the kernel for large pages where a block is large, and through them memory is read
    a fifth faster. Behind the last one is room for rows that are read too many (`_padded`).
    The model holds the same numbers; what referred to the old memory does not see it any more.
    """
    found = [p for p in model.parameters() if p.dtype == torch.float32 and p.device.type == "cpu"]
    sizes = [p.numel() for p in found]
    spare = _unit() * max((p.size(-1) for p in found), default=0)
    block = torch.from_numpy(np.empty(sum(sizes) + spare, np.float32))
    for parameter, place in zip(found, block.split([*sizes, spare])):
        parameter.data = place.view(parameter.shape).copy_(parameter.detach())
    block[sum(sizes) :] = 0


class OneText:
    """Reads one token after those in `pasts`, of which there is at least one.

    Refers to the weights of `model`, like `nn.decode.Decoder`. Measures, in some milliseconds, how
    many threads pay now.
    """

    @torch.no_grad()
    def __init__(self, model: GPT) -> None:
        config, blocks = model.config, [cast(Block, block) for block in model.blocks]
        unit = _unit() if _shareable(model, _unit()) else 1
        self.model, self.room = model, _Room(config, model.vocab_size, blocks[0].attn, unit)
        self.layers = [_Layer(block, self.room) for block in blocks]
        self.embed = model.embed.weight.detach()
        self.head = _reader(model.head, self.room.h, self.room.logits[0], unit)
        self.values = None if model.values is None else model.values.weight.detach()
        self.norm = _Norm(model.norm)
        self.turn = _array(cast(Tensor, model.turn)).reshape(2, config.context, 2, -1)
        # [L, H + K, 2, D / 2]: by what heads are multiplied, and the same with halves exchanged
        self.factors = np.stack([_factors(block.attn) for block in blocks])
        self.exchanged = self.factors[:, :, ::-1].copy()
        library = openblas()
        assert library is not None
        self.pool = Pool(library, self.head, None if unit > 1 else 1)
        self.pasts: list[Past] = []
        self.held: list[tuple[Numbers, Numbers]] = []

    @staticmethod
    def fits(model: GPT) -> bool:
        """Whether the model's layout and weights are such as can be read here."""
        plain = all(
            type(p.data) is Tensor
            and p.device.type == "cpu"
            and p.dtype in (torch.float32, torch.bfloat16, torch.float16)
            and p.is_contiguous()
            for p in model.parameters()
        )
        return plain and model.config.layout == "modern" and openblas() is not None

    def __call__(self, token: int, pasts: list[Past]) -> Tensor:
        """Return the logits f32[1, V] of what comes after `token`."""
        if pasts is not self.pasts:
            self.pasts = pasts
            self.held = [_held(past) for past in pasts]
        at, x = pasts[0].length, self.room.x
        np.copyto(x, _array(self.embed[token]))
        cos, sin = self.factors * self.turn[0, at], self.exchanged * self.turn[1, at]
        extra = None if self.values is None else _array(self.values[token])
        with self.pool:
            for i, layer in enumerate(self.layers):
                layer.attend(cos[i], sin[i], *self.held[i], at, extra)
                layer.think()
                pasts[i].length = at + 1
            self.norm(x, self.room.h)
            self.head()
        return capped(torch.from_numpy(self.room.logits.copy()), self.model.config.softcap)


class _Room:
    """Arrays that every layer works in, one after another, and for `unit` numbers behind each."""

    def __init__(self, config: GPTConfig, words: int, attn: Attention, unit: int) -> None:
        def row(length: int) -> Numbers:
            return np.empty(length + unit, np.float32)[:length]

        self.unit = unit
        heads, kv_heads, size = attn.heads, attn.kv_heads, attn.width
        self.x, self.h, self.y = (row(config.d_model) for _ in range(3))
        self.qkv = row((heads + 2 * kv_heads) * size)
        both, self.v = np.split(self.qkv.reshape(-1, size), [heads + kv_heads])
        self.q, self.k = both[:heads].reshape(kv_heads, -1, size), both[heads:]
        self.row, self.column = both[:, None], both[:, :, None]
        self.halves = both.reshape(len(both), 2, -1)
        self.exchanged, self.turned = self.halves[:, ::-1], np.empty_like(self.halves)
        self.sizes = np.empty((len(both), 1, 1), np.float32)
        self.found = np.empty_like(self.q)
        self.flat = self.found.reshape(-1)
        self.inner = row(2 * config.ff_width)
        self.gate, self.up = np.split(self.inner, 2)
        self.gate_tensor = torch.from_numpy(self.gate)
        self.logits = row(words)[None]
        self.h.fill(0)


class _Norm:
    """x / root mean square, times a weight."""

    def __init__(self, module: nn.Module) -> None:
        assert isinstance(module, RMSNorm)
        self.weight, self.eps = _array(module.weight), module.eps
        self.share = 1 / len(self.weight)

    def __call__(self, x: Numbers, out: Numbers) -> None:
        np.multiply(x, self.weight, out)
        out *= 1 / math.sqrt(float(np.dot(x, x)) * self.share + self.eps)


class _Layer:
    def __init__(self, block: Block, room: _Room) -> None:
        attn, mlp, self.room = block.attn, block.mlp, room
        self.norm1, self.norm2 = _Norm(block.norm1), _Norm(block.norm2)
        unit = room.unit
        self.qkv = _reader(attn.qkv, room.h, room.qkv, unit)
        self.out = _reader(attn.out, room.flat, room.y, unit)
        self.gated, self.rise = mlp.gate is not None, [_reader(mlp.up, room.h, room.up, unit)]
        if mlp.gate is not None:
            joined = _joined(mlp.gate.weight, mlp.up.weight, room.h, room.inner, unit)
            apart = [_reader(mlp.gate, room.h, room.gate, unit), *self.rise]  # up's place last
            self.rise = apart if joined is None else [joined]
        self.down = _reader(mlp.down, room.gate if self.gated else room.up, room.y, unit)
        self.least = None if attn.q_norm is None else attn.width * attn.q_norm.eps
        self.scale = None if attn.value_scale is None else _array(attn.value_scale)

    def attend(
        self, cos: Numbers, sin: Numbers, k: Numbers, v: Numbers, at: int, extra: Numbers | None
    ) -> None:
        """Add what attention finds to x; `k` and `v` [K, limit, D] get their row number `at`."""
        room, end = self.room, at + 1
        self.norm1(room.x, room.h)
        self.qkv()
        if self.least is not None:
            np.matmul(room.row, room.column, room.sizes)
            room.sizes += self.least
            room.halves /= np.sqrt(room.sizes, room.sizes)
        np.multiply(room.exchanged, sin, room.turned)
        room.halves *= cos
        room.halves += room.turned
        if self.scale is not None and extra is not None:
            room.v += self.scale * extra.reshape(room.v.shape)
        k[:, at], v[:, at] = room.k, room.v
        scores = np.matmul(room.q, k[:, :end].swapaxes(1, 2))  # [K, H / K, end]
        scores -= np.maximum.reduce(scores, -1, keepdims=True)
        np.exp(scores, scores)
        np.matmul(scores, v[:, :end], room.found)
        room.found /= np.add.reduce(scores, -1, keepdims=True)
        self.out()
        room.x += room.y

    def think(self) -> None:
        """Add what the feed-forward part finds to x."""
        room = self.room
        self.norm2(room.x, room.h)
        for read in self.rise:
            read()
        if self.gated:
            F.silu(room.gate_tensor, inplace=True)
            room.gate *= room.up
        else:
            np.square(np.maximum(room.up, 0, out=room.up), room.up)
        self.down()
        room.x += room.y


def _factors(attn: Attention) -> Numbers:
    """Return f32[H + K, 2, D / 2]: weights of the heads' norms, and what scores are scaled by."""
    found = np.ones((attn.heads + attn.kv_heads, attn.width), np.float32)
    if attn.q_norm is not None and attn.k_norm is not None:
        found[: attn.heads] = _array(attn.q_norm.weight)
        found[attn.heads :] = _array(attn.k_norm.weight)
        found *= math.sqrt(attn.width)  # because sizes are of sums, not of means
    found[: attn.heads] /= math.sqrt(attn.width)
    return found.reshape(len(found), 2, -1)


def _reader(module: nn.Module, x: Numbers, out: Numbers, unit: int) -> Reader:
    """Return what writes the product of a linear layer and the row `x` into `out`."""
    if isinstance(module, nn.Linear) and module.weight.dtype == torch.float32:
        whole = _padded(module.weight, len(module.weight), unit)
        assert whole is not None
        return _product(whole, x, out)
    # a layer that is packed takes bf16
    kind = module.weight.dtype if isinstance(module, nn.Linear) else torch.bfloat16
    row = torch.empty(1, len(x), dtype=kind)
    source, narrow, target = torch.from_numpy(x), row[0], torch.from_numpy(out)

    def read() -> None:
        narrow.copy_(source)
        target.copy_(module(row)[0])

    return read


def _joined(upper: Tensor, lower: Tensor, x: Numbers, out: Numbers, unit: int) -> Reader | None:
    """Return what reads two fp32 matrices as one, where the second begins where the first ends."""
    if upper.dtype != torch.float32 or upper.data_ptr() + upper.nbytes != lower.data_ptr():
        return None
    whole = _padded(upper, len(upper) + len(lower), unit)
    return None if whole is None else _product(whole, x, out)


def _product(matrix: Tensor, x: Numbers, out: Numbers) -> Reader:
    return partial(_array(matrix).dot, x, as_strided(out, (len(matrix),)))


def _unit() -> int:
    """Rows by which all threads of numpy's library get whole blocks of them."""
    library = openblas()
    return _BLOCK * (library.num_threads if library is not None else 1)


def _shareable(model: GPT, unit: int) -> bool:
    """Whether all matrices that numpy reads have their rows, or others behind them, by the `unit`."""
    found = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    return all(w.dtype != torch.float32 or _padded(w, len(w), unit) is not None for w in found)


def _padded(weight: Tensor, rows: int, unit: int) -> Tensor | None:
    """Return the `rows` from the first of `weight` on, and what lies behind up to a multiple of `unit`.

    A thread whose share of the rows ends within a block of the kernel adds those up in another
    order. With whole blocks threads change no bit; what the rows behind give is not looked at.
    None where the memory ends before.
    """
    rows = -(-rows // unit) * unit
    end = weight.storage_offset() + rows * weight.size(1)
    if end * weight.itemsize > weight.untyped_storage().nbytes():
        return None
    return weight.detach().as_strided((rows, weight.size(1)), weight.stride())


def _held(past: Past) -> tuple[Numbers, Numbers]:
    """Return the keys and values [K, limit, D] of one text, which are fp32 from now on."""
    assert past.k is not None and past.v is not None
    past.k, past.v = past.k.float(), past.v.float()
    return past.k.numpy()[0], past.v.numpy()[0]


def _array(tensor: Tensor) -> Numbers:
    """Return the numbers of a tensor to read, of fp32 in the same memory.

    `numpy()` would forbid that it ever be freed, as weights are that a process holds only for now.
    """
    found: Numbers = np.from_dlpack(tensor.detach().float()).astype(np.float32, copy=False)
    return found
