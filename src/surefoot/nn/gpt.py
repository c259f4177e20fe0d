"""A decoder-only transformer in public layouts.

`modern` is Qwen3 (RMSNorm, rotary positions, QK-norm, SwiGLU, optional grouped queries), without
`qk_norm` Llama and with squared ReLU besides Arcee; `gpt2` is GPT-2 (LayerNorm, learned positions, GELU in its exact form,
biases). Every parameter maps to one or a few rows-wise pieces of the public model's.

B examples, T tokens, C width, H query heads, K key and value heads, D numbers a head, V words.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.config.model import GPTConfig
from surefoot.nn.again import again
from surefoot.nn.dropout import Dropout
from surefoot.nn.init import Embedding, Linear, fill_
from surefoot.nn.norm import RMSNorm, rotary
from surefoot.ops import ATTENTION, CROSS_ENTROPY, ROTARY, SQUARED_RELU, SWIGLU, WITHIN, Op
from surefoot.ops.gelu import gelu

__all__ = ["GPT", "Attention", "Block", "FeedForward", "Past", "capped"]

_AT_ONCE = 2048  # positions whose bounded logits exist at the same time


class Past:
    """Keys and values of the tokens seen so far by one layer, in memory of a fixed size.

    Holds up to `limit` tokens of B examples: [B, K, limit, D] each.
    """

    def __init__(self, batch: int, limit: int) -> None:
        self.batch, self.limit, self.length = batch, limit, 0
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add [B, K, T, D] of new tokens; return those of all tokens so far."""
        if self.k is None or self.v is None:
            shape = (self.batch, k.size(1), self.limit, k.size(3))
            self.k, self.v = k.new_empty(shape), v.new_empty(shape)
        start, self.length = self.length, self.length + k.size(2)
        self.k[:, :, start : self.length] = k
        self.v[:, :, start : self.length] = v
        return self.k[:, :, : self.length], self.v[:, :, : self.length]


class Attention(nn.Module):
    """Self-attention with fused projections: `qkv` holds q, k and v on top of each other.

    With `apart` it is always told documents, which do not see each other.
    """

    def __init__(self, config: GPTConfig, causal: bool = True, apart: bool = False) -> None:
        super().__init__()
        self.causal = causal
        way: dict[str, Op] = {"within": WITHIN} if apart else {"attend": ATTENTION}
        self.kernels = {**way, "rotate": ROTARY}
        self.within = WITHIN.call
        self.attend, self.rotate = ATTENTION.call, ROTARY.call
        self.heads = config.num_heads
        self.kv_heads = config.num_kv_heads or config.num_heads
        self.width = config.d_model // config.num_heads
        bias = config.layout == "gpt2"
        rows = (self.heads + 2 * self.kv_heads) * self.width
        self.qkv = Linear(config.d_model, rows, bias=bias)
        self.out = Linear(config.d_model, config.d_model, bias=bias)
        self.q_norm = self.k_norm = None
        if config.layout == "modern" and config.qk_norm:
            self.q_norm = RMSNorm(self.width, config.norm_eps)
            self.k_norm = RMSNorm(self.width, config.norm_eps)
        self.value_scale = nn.Parameter(torch.zeros(1)) if config.value_embeddings else None

    @property
    def stacked(self) -> tuple[Tensor, list[int]]:
        """The fused matrix, and the heights of q, k and v in it."""
        heads = (self.heads, self.kv_heads, self.kv_heads)
        return self.qkv.weight, [h * self.width for h in heads]

    def forward(
        self,
        x: Tensor,
        turn: Tensor | None,
        past: Past | None = None,
        documents: Tensor | None = None,
        extra: Tensor | None = None,
    ) -> Tensor:
        """A token sees its own of `documents` [B, T] only; `extra` [B, T, K D] is added to values."""
        heads = self.qkv(x).unflatten(-1, (-1, self.width))  # [B, T, H + 2K, D]
        count = [self.heads, self.kv_heads]
        asked = count if turn is None else [sum(count)]  # what is turned stays in one piece
        *both, v = heads.split([*asked, self.kv_heads], 2)
        if self.value_scale is not None and extra is not None:
            v = v + (self.value_scale * extra.unflatten(-1, (-1, self.width))).to(v.dtype)
        if turn is not None:
            both = self.rotate(both[0], turn, *self._qk_norm()).split(count, 2)
        q, k, v = (part.transpose(1, 2) for part in (*both, v))
        if past is not None:
            k, v = past.append(k, v)
        if documents is None:
            found = self.attend(q, k, v, self.causal)
        else:
            found = self.within(q, k, v, documents)
        return self.out(found.transpose(1, 2).flatten(2))

    def _qk_norm(self) -> tuple[Tensor | None, float]:
        """Return the weights of the norms, head by head [H + K, D], and their eps."""
        if self.q_norm is None or self.k_norm is None:
            return None, 0.0
        q = self.q_norm.weight.expand(self.heads, -1)
        k = self.k_norm.weight.expand(self.kv_heads, -1)
        return torch.cat((q, k)), self.q_norm.eps


class FeedForward(nn.Module):
    """SwiGLU or squared ReLU (modern), or GELU (gpt2).

    Shazeer, "GLU Variants Improve Transformer" (2020); So et al., "Primer" (2021).
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        biased = config.layout == "gpt2"
        gated = not biased and config.feed_forward == "swiglu"
        self.gate = Linear(config.d_model, config.ff_width, bias=False) if gated else None
        op = SWIGLU if gated else SQUARED_RELU
        self.kernels: dict[str, Op] = {} if biased else {"bend": op}
        self.bend: Callable[..., Tensor] = gelu if biased else op.call
        self.up = Linear(config.d_model, config.ff_width, bias=biased)
        self.down = Linear(config.ff_width, config.d_model, bias=biased)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)  # [B, T, F]
        h = self.bend(h) if self.gate is None else self.bend(self.gate(x), h)
        out: Tensor = self.down(h)
        return out


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """Bound logits by +- cap (Gemma Team, "Gemma 2", 2024); None leaves them."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _capped_loss(hidden: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
    logits = capped(F.linear(hidden, weight).float(), cap)
    return F.cross_entropy(logits, targets, reduction="sum")  # -100 does not count


def _norm(config: GPTConfig) -> nn.Module:
    kind = RMSNorm if config.layout == "modern" else nn.LayerNorm
    return kind(config.d_model, config.norm_eps)


class Block(nn.Module):
    """One layer: attention, then feed-forward, each on a norm of the residual stream."""

    def __init__(self, config: GPTConfig, causal: bool = True, apart: bool = False) -> None:
        super().__init__()
        self.norm1, self.attn = _norm(config), Attention(config, causal, apart)
        self.norm2, self.mlp = _norm(config), FeedForward(config)
        self.drop1, self.drop2 = Dropout(config.dropout), Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        turn: Tensor | None,
        documents: Tensor | None = None,
        extra: Tensor | None = None,
    ) -> Tensor:
        """Take `documents` and `extra` as `Attention` does."""
        x = x + self.drop1(self.attn(self.norm1(x), turn, None, documents, extra))
        return x + self.drop2(self.mlp(self.norm2(x)))

    def decode(self, x: Tensor, turn: Tensor | None, past: Past) -> Tensor:
        """Like `forward`, for tokens that follow those in `past`; never drops anything."""
        x = x + self.attn(self.norm1(x), turn, past)
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Tokens i64[B, T] to logits [B, T, V].

    Values are a function of `seed` alone. With `border`, the token between documents, no token
    sees another document. With `checkpointing`, the inside of a layer is computed again for its gradient.
    """

    kernels: ClassVar[dict[str, Op]] = {"cross_entropy": CROSS_ENTROPY}

    def __init__(
        self, config: GPTConfig, vocab_size: int, *, seed: int = 0, border: int | None = None,
        checkpointing: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config, self.vocab_size, self.border = config, vocab_size, border
        self.checkpointing = checkpointing
        self.embed = Embedding(vocab_size, config.d_model)
        self.positions = None
        if config.layout == "gpt2":
            self.positions = Embedding(config.context, config.d_model)
            self.turn = None
        else:
            turn = rotary(config.d_model // config.num_heads, config.context, config.rope_theta)
            self.register_buffer("turn", turn, persistent=False)
        self.values = None
        if config.value_embeddings:
            heads = config.num_kv_heads or config.num_heads
            self.values = Embedding(vocab_size, heads * (config.d_model // config.num_heads))
        self.drop = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(config, apart=border is not None) for _ in range(config.num_layers)
        )
        self.norm = _norm(config)
        self.head = Linear(config.d_model, vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight
        self.cross_entropy = CROSS_ENTROPY.call
        fill_(self, seed, branches=2 * config.num_layers, zero=config.zero_init)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Return what the head reads: [B, T, C], after the last norm."""
        length = tokens.size(1)
        x = self.embed(tokens)
        if self.positions is not None:
            x = x + self.positions.weight[:length]
        turn = None if self.turn is None else self.turn[:, :length]
        x = self.drop(x)
        documents = None if self.border is None else (tokens == self.border).cumsum(1)
        extra = None if self.values is None else self.values(tokens)
        for block in self.blocks:
            layer = partial(again, block) if self.checkpointing else block
            x = layer(x, turn, documents, extra)
        return self.norm(x)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return logits [B, T, V]; with targets i64[B, T], nats summed over those not -100."""
        hidden = self.hidden(tokens)
        cap = self.config.softcap
        if targets is None:
            return capped(self.head(hidden), cap)
        if cap is not None:
            return self._by_chunks(hidden.flatten(0, 1), targets.flatten(), cap)
        found: Tensor = self.cross_entropy(
            hidden.flatten(0, 1), self.head.weight, targets.flatten()
        )
        return found

    def _by_chunks(self, hidden: Tensor, targets: Tensor, cap: float) -> Tensor:
        """Return the loss of bounded logits, of which few exist at a time, also for backward."""
        weight = self.head.weight
        found = hidden.new_zeros((), dtype=torch.float32)
        for h, t in zip(hidden.split(_AT_ONCE), targets.split(_AT_ONCE)):
            found = found + again(_capped_loss, h, weight, t, cap)
        return found

    @torch.no_grad()
    def decode(self, tokens: Tensor, pasts: list[Past]) -> Tensor:
        """Read i64[B, T] after what `pasts` hold and return the logits [B, V] of what comes next.

        T is anything at the very beginning, and 1 afterwards. The context limits the sum.
        """
        start = pasts[0].length
        span = slice(start, start + tokens.size(1))
        x = self.embed(tokens)
        if self.positions is not None:
            x = x + self.positions.weight[span]
        turn = None if self.turn is None else self.turn[:, span]
        for block, past in zip(self._layers(), pasts, strict=True):
            x = block.decode(x, turn, past)
        return self.head(self.norm(x[:, -1]))

    def _layers(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))

    @property
    def num_parameters(self) -> int:
        """All parameters, a shared embedding counted once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, context: int | None = None) -> int:
        """Floating-point operations of forward and backward for one token.

        6 for each weight of a matrix product, and causal attention counted half.
        """
        c = self.config
        matrices = sum(p.numel() for p in self.blocks.parameters() if p.dim() > 1)
        head = self.vocab_size * c.d_model
        return 6 * (matrices + head) + 6 * c.num_layers * c.d_model * (context or c.context)
