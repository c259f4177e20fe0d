"""A GPT arranged for writing: the same function as `nn.gpt`, in few operations for a token.

With one token at a time every weight is read once for each, so memory decides, and next to that
the number of operations. There is nothing here for backward, and no module is called. The residual
stream is fp32 (fp64 for fp64 weights), whatever the weights are held in.

B examples, T tokens, C width, H query heads, K key and value heads, D numbers a head, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.nn.gpt import GPT, Block, Past, capped
from surefoot.nn.norm import RMSNorm
from surefoot.nn.one_text import OneText

__all__ = ["Decoder"]

Product = Callable[[Tensor], Tensor]


class Decoder:
    """Reads tokens after tokens that it has read, and says what comes next.

    Refers to the weights of `model`: make another one after they changed their place. With
    `past_mkl` a processor does without Intel's library, which is slow on AMD's: one text is written
    by numpy (`nn.one_text`), fp32 products of more rows go through oneDNN; the same numbers but for
    rounding.
    """

    def __init__(self, model: GPT, past_mkl: bool = False) -> None:
        self.model = model
        self.layers = [_Layer(cast(Block, block), past_mkl) for block in model.blocks]
        self.norm, self.head = _norm(model.norm), _product(model.head, past_mkl)
        self.one = OneText(model) if past_mkl and OneText.fits(model) else None

    @property
    def context(self) -> int:
        """Tokens that the model sees at once."""
        return self.model.config.context

    @property
    def device(self) -> torch.device:
        """Where tokens are expected."""
        return self.model.embed.weight.device

    def empty(self, batch: int) -> list[Past]:
        """Return memory for the keys and values of `batch` texts, as long as the context."""
        return [Past(batch, self.context) for _ in self.layers]

    @torch.no_grad()
    def __call__(self, tokens: Tensor, pasts: list[Past]) -> Tensor:
        """Read i64[B, T] after what `pasts` hold and return the logits [B, V] of what comes next.

        T is anything at the very beginning, and 1 afterwards. The context limits the sum.
        """
        if self.one is not None and tokens.numel() == 1 and pasts[0].k is not None:
            return self.one(int(tokens), pasts)
        x = self._read(tokens, pasts[0].length, pasts)
        return capped(_wide(self.head(self.norm(x[:, -1]))), self.model.config.softcap)

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        """Return [B, T, V] for i64[B, T]: what `GPT` gives, in operations without a gradient."""
        x = self._read(tokens, 0, [None] * len(self.layers))
        return capped(_wide(self.head(self.norm(x))), self.model.config.softcap)

    def _read(self, tokens: Tensor, start: int, pasts: Sequence[Past | None]) -> Tensor:
        model, span = self.model, slice(start, start + tokens.size(1))
        x = _wide(model.embed.weight[tokens])  # [B, T, C]
        if model.positions is not None:
            x = x + model.positions.weight[span]
        turn = None if model.turn is None else model.turn[:, span]
        extra = None if model.values is None else _wide(model.values.weight[tokens])
        for layer, past in zip(self.layers, pasts, strict=True):
            x = layer(x, turn, past, extra)
        return x


class _Layer:
    """One block, as the functions that it applies."""

    def __init__(self, block: Block, past_mkl: bool) -> None:
        attn, mlp = block.attn, block.mlp
        self.heads, self.kv_heads, self.width = attn.heads, attn.kv_heads, attn.width
        self.norm1, self.norm2 = _norm(block.norm1), _norm(block.norm2)
        self.qkv, self.out = _product(attn.qkv, past_mkl), _product(attn.out, past_mkl)
        self.up, self.down = _product(mlp.up, past_mkl), _product(mlp.down, past_mkl)
        self.gate = None if mlp.gate is None else _product(mlp.gate, past_mkl)
        self.bend, self.value_scale = mlp.bend, attn.value_scale
        self.head_norm: Product | None = None
        if attn.q_norm is not None and attn.k_norm is not None:
            q, k = (
                n.weight.expand(r, -1)
                for n, r in ((attn.q_norm, self.heads), (attn.k_norm, self.kv_heads))
            )
            self.head_norm = _rms(_wide(torch.cat((q, k)).detach()), attn.q_norm.eps)

    def __call__(
        self, x: Tensor, turn: Tensor | None, past: Past | None, extra: Tensor | None
    ) -> Tensor:
        heads = self.qkv(self.norm1(x)).unflatten(-1, (-1, self.width))  # [B, T, H + 2K, D]
        both, v = heads.split([self.heads + self.kv_heads, self.kv_heads], 2)
        if self.value_scale is not None and extra is not None:
            v = v + (self.value_scale * extra.unflatten(-1, (-1, self.width))).to(v.dtype)
        if turn is not None:
            both = _turned(both if self.head_norm is None else self.head_norm(both), turn)
        q, k = both.transpose(1, 2).split([self.heads, self.kv_heads], 1)
        k, v = k.to(v.dtype), v.transpose(1, 2)
        if past is not None:
            k, v = past.append(k, v)
        found = F.scaled_dot_product_attention(
            q.to(v.dtype),
            k,
            v,
            is_causal=past is None or q.size(2) > 1,
            enable_gqa=self.heads != self.kv_heads,
        )
        x = x + self.out(found.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        up = self.up(h)
        return x + self.down(self.bend(up) if self.gate is None else F.silu(self.gate(h)).mul_(up))


def _norm(module: nn.Module) -> Product:
    """Return what a norm does to fp32 numbers."""
    if isinstance(module, RMSNorm):
        return _rms(_wide(module.weight.detach()), module.eps)
    assert isinstance(module, nn.LayerNorm)
    shape, eps = module.normalized_shape, module.eps
    weight, bias = _wide(module.weight.detach()), _wide(module.bias.detach())
    return lambda x: F.layer_norm(x, shape, weight, bias, eps)


def _rms(weight: Tensor, eps: float) -> Product:
    """Return x -> x / root mean square of the last dimension, times `weight`."""
    least, share = weight.new_tensor(eps), 1 / weight.size(-1)

    def norm(x: Tensor) -> Tensor:
        x = _wide(x)
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x * torch.addcmul(least, size, size, value=share).rsqrt_()).mul_(weight)

    return norm


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """Turn heads [B, T, H, D] by the angles of `turn` [2, T, 1, D]; see `ops.rotary`."""
    cos, sin = turn.unbind()
    x = _wide(x)
    return torch.addcmul(x * cos, x.roll(x.size(-1) // 2, -1), sin)


def _product(module: nn.Module, past_mkl: bool) -> Product:
    """Return what a linear layer does, in the precision of its weights."""
    if not isinstance(module, nn.Linear):
        return module  # its weights are packed, and it knows how
    weight, bias = module.weight, module.bias
    if past_mkl and weight.dtype == torch.float32 and weight.device.type == "cpu":
        product = torch.ops.mkldnn._linear_pointwise  # what torch's compiler calls, too
        return lambda x: product(x, weight, bias, "none", [], "")
    if weight.dtype in (torch.float32, torch.float64):
        return lambda x: F.linear(x, weight, bias)
    return lambda x: F.linear(x.to(weight.dtype), weight, bias)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
