"""From a question to an answer: encoder and decoder, with or without a bottleneck between them.

`SimpleTransformer`: the decoder attends to what the encoder made of every token (Vaswani et al.,
"Attention Is All You Need", 2017). `LatentTransformer`: it attends to a few latents only, which
have read the encoder's memory (Jaegle et al., "Perceiver", 2021). `DecoderOnly` reads question and
answer as one line. All three have the same interface, and the blocks of `nn.gpt`.

B examples, S tokens of a question, T tokens of an answer, N latents, C width, H heads, D numbers
a head, V words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from surefoot.config.model import EncoderDecoderConfig, GPTConfig
from surefoot.errors import DataError
from surefoot.nn.dropout import Dropout
from surefoot.nn.gpt import GPT, Block, Past
from surefoot.nn.init import Embedding, Linear, fill_
from surefoot.nn.norm import RMSNorm, rotary
from surefoot.ops import ATTENTION, Op

__all__ = [
    "Answering",
    "DecoderOnly",
    "LatentTransformer",
    "SimpleTransformer",
    "dimensions",
    "lengths",
]

Known = tuple[Tensor, Tensor]  # keys and values [B, H, S, D]


class CrossAttention(nn.Module):
    """Attention of x [B, T, C] to a memory [B, S, C]; every token may look at every place."""

    kernels: ClassVar[dict[str, Op]] = {"attend": ATTENTION}

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.width = config.d_model // config.num_heads
        self.attend = ATTENTION.call
        self.q = Linear(config.d_model, config.d_model, bias=False)
        self.kv = Linear(config.d_model, 2 * config.d_model, bias=False)
        self.out = Linear(config.d_model, config.d_model, bias=False)

    @property
    def stacked(self) -> tuple[Tensor, list[int]]:
        """The fused matrix, and the heights of k and v in it."""
        return self.kv.weight, [self.kv.out_features // 2] * 2

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.width)).transpose(1, 2)  # [B, H or 2H, T, D]

    def read(self, memory: Tensor) -> Known:
        """Return the keys and values of a memory [B, S, C], [B, H, S, D] each."""
        k, v = self._split(self.kv(memory)).chunk(2, 1)
        return k, v

    def forward(self, x: Tensor, known: Known) -> Tensor:
        found = self.attend(self._split(self.q(x)), *known, False)
        return self.out(found.transpose(1, 2).flatten(2))

    def shares(self, x: Tensor, known: Known) -> Tensor:
        """Return the attention that each token pays to each place: [B, H, T, S], rows sum to 1."""
        scores = self._split(self.q(x)) @ known[0].mT * self.width**-0.5
        return scores.float().softmax(-1)


class CrossBlock(nn.Module):
    """A look at a memory, and then a block: attention of the tokens to each other, feed-forward."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.cross = CrossAttention(config)
        self.drop = Dropout(config.dropout)
        self.block = Block(config)

    def forward(self, x: Tensor, turn: Tensor, memory: Tensor) -> Tensor:
        x = x + self.drop(self.cross(self.norm(x), self.cross.read(memory)))
        return self.block(x, turn)

    def decode(self, x: Tensor, turn: Tensor, known: Known, past: Past) -> Tensor:
        """Like `forward`, for one token that follows those in `past`; never drops anything."""
        return self.block.decode(x + self.cross(self.norm(x), known), turn, past)


@dataclass
class Answering:
    """An answer in the making: what each layer knows of the question, and of the answer so far."""

    known: list[Known]
    pasts: list[Past]


class SimpleTransformer(nn.Module):
    """question i64[B, S], inputs i64[B, T] -> logits [B, T, V] of what follows each input.

    `question` and `answer` are the numbers of tokens of each. Values are a function of `seed`.
    """

    turn: Tensor

    def __init__(
        self,
        config: EncoderDecoderConfig,
        vocab_size: int,
        question: int,
        answer: int,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        block = config.block(max(question, answer, config.num_latent))
        self.embed = Embedding(vocab_size, config.d_model)
        self.places = Embedding(question, config.d_model)
        self.answer_places = Embedding(answer, config.d_model)
        turn = rotary(config.d_model // config.num_heads, block.context, block.rope_theta)
        self.register_buffer("turn", turn, persistent=False)
        self.drop = Dropout(config.dropout)
        layers = range(config.num_layers)
        self.encoder = nn.ModuleList(Block(block, causal=False) for _ in layers)
        self.memory_norm = RMSNorm(config.d_model, block.norm_eps)
        self._add_bottleneck(block)
        self.decoder = nn.ModuleList(CrossBlock(block) for _ in layers)
        self.norm = RMSNorm(config.d_model, block.norm_eps)
        self.head = Linear(config.d_model, vocab_size, bias=False)
        fill_(self, seed, branches=3 * config.num_layers)

    def _add_bottleneck(self, block: GPTConfig) -> None:
        """The decoder sees the whole memory."""

    def _narrow(self, memory: Tensor) -> Tensor:
        return memory

    def memory(self, question: Tensor) -> Tensor:
        """Return what the decoder may look at: [B, S, C], or the latents [B, N, C]."""
        x = self.drop(self.embed(question) + self.places.weight)
        for block in self.encoder:
            x = block(x, self.turn[:, : x.size(1)])
        return self._narrow(self.memory_norm(x))

    def forward(self, question: Tensor, inputs: Tensor) -> Tensor:
        memory = self.memory(question)
        x = self.drop(self.embed(inputs) + self.answer_places.weight)
        for block in self.decoder:
            x = block(x, self.turn[:, : x.size(1)], memory)
        return self.head(self.norm(x))

    def begin(self, question: Tensor) -> Answering:
        """Read i64[B, S] and return an answer of which nothing is said yet."""
        memory = self.memory(question)
        places = self.answer_places.num_embeddings
        known = [block.cross.read(memory) for block in self._decoder()]
        return Answering(known, [Past(len(question), places) for _ in known])

    def follow(self, token: Tensor, answering: Answering) -> Tensor:
        """Add i64[B] to the answer and return the logits [B, V] of what comes next."""
        place = answering.pasts[0].length
        x = self.embed(token.unsqueeze(1)) + self.answer_places.weight[place]
        turn = self.turn[:, place : place + 1]
        for block, known, past in zip(
            self._decoder(), answering.known, answering.pasts, strict=True
        ):
            x = block.decode(x, turn, known, past)
        return self.head(self.norm(x[:, -1]))

    def attended(self, question: Tensor, inputs: Tensor) -> Tensor:
        """Return the attention of each layer of the decoder to the memory: [L, B, H, T, S or N]."""
        memory = self.memory(question)
        x = self.embed(inputs) + self.answer_places.weight
        found = []
        for block in self._decoder():
            found.append(block.cross.shares(block.norm(x), block.cross.read(memory)))
            x = block(x, self.turn[:, : x.size(1)], memory)
        return torch.stack(found)

    def _decoder(self) -> list[CrossBlock]:
        return cast("list[CrossBlock]", list(self.decoder))

    def flops(self) -> int:
        """Floating-point operations of forward and backward for one example, attention left out."""
        c, question = self.config, self.places.num_embeddings
        answer = self.answer_places.num_embeddings
        encoder = question * _matrices(self.encoder)
        crossed = [b.cross.kv.weight.numel() for b in self._decoder()]
        decoder = answer * (_matrices(self.decoder) - sum(crossed) + self.head.weight.numel())
        seen = c.num_latent if isinstance(self, LatentTransformer) else question
        return 6 * (encoder + decoder + seen * sum(crossed) + self._bottleneck_flops())

    def _bottleneck_flops(self) -> int:
        return 0


def _matrices(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.dim() > 1)


class LatentTransformer(SimpleTransformer):
    """Like `SimpleTransformer`, but the decoder sees `num_latent` latents and nothing else.

    The latents begin as learned vectors, read the encoder's memory once by cross-attention, and
    then attend to each other in `latent_layers` blocks.
    """

    def _add_bottleneck(self, block: GPTConfig) -> None:
        self.latents = Embedding(self.config.num_latent, block.d_model)
        self.reader_norm = RMSNorm(block.d_model, block.norm_eps)
        self.reader = CrossAttention(block)
        layers = range(self.config.latent_layers)
        self.latent_blocks = nn.ModuleList(Block(block, causal=False) for _ in layers)
        self.latent_norm = RMSNorm(block.d_model, block.norm_eps)

    def _narrow(self, memory: Tensor) -> Tensor:
        x = self.latents.weight.expand(len(memory), -1, -1)  # [B, N, C]
        x = x + self.reader(self.reader_norm(x), self.reader.read(memory))
        for block in self.latent_blocks:
            x = block(x, self.turn[:, : x.size(1)])
        return self.latent_norm(x)

    def _bottleneck_flops(self) -> int:
        latents = self.config.num_latent * (
            _matrices(self.latent_blocks) + 2 * self.reader.q.weight.numel()
        )
        return latents + self.places.num_embeddings * self.reader.kv.weight.numel()


class DecoderOnly(nn.Module):
    """The same interface around one GPT that reads question and answer as one line."""

    def __init__(
        self,
        config: EncoderDecoderConfig,
        vocab_size: int,
        question: int,
        answer: int,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        blocks = config.block(question + answer)
        self.gpt = GPT(blocks, vocab_size, seed=seed)

    @property
    def head(self) -> Linear:
        return self.gpt.head

    def forward(self, question: Tensor, inputs: Tensor) -> Tensor:
        return self.gpt(torch.cat((question, inputs), 1))[:, question.size(1) :]

    def begin(self, question: Tensor) -> Answering:
        """Read i64[B, S] and return an answer of which nothing is said yet."""
        blocks = self.gpt.config
        pasts = [Past(len(question), blocks.context) for _ in range(blocks.num_layers)]
        self.gpt.decode(question, pasts)
        return Answering([], pasts)

    def follow(self, token: Tensor, answering: Answering) -> Tensor:
        """Add i64[B] to the answer and return the logits [B, V] of what comes next."""
        return self.gpt.decode(token.unsqueeze(1), answering.pasts)

    def flops(self) -> int:
        """Floating-point operations of forward and backward for one example, attention left out."""
        matrices = _matrices(self.gpt.blocks) + self.gpt.head.weight.numel()
        return 6 * self.gpt.config.context * matrices


def lengths(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Return for how many tokens of a question and of an answer a simple or latent model is made.

    Raises DataError where these are no shapes of one.
    """
    needed = ("places.weight", "answer_places.weight", "encoder.0.attn.out.weight")
    missing = [name for name in needed if name not in shapes]
    if missing:
        what = f"these are no weights of a simple or latent model: {missing[0]} is missing"
        raise DataError(what, fix="names are those that a checkpoint of `multiply` has")
    return shapes[needed[0]][0], shapes[needed[1]][0]


def dimensions(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the sizes that the tensors of a model of this file reveal, by configuration field.

    Heads leave no trace in the shapes but in that of the rotary norms. Raises KeyError where a
    tensor that every such model has is missing.
    """
    prefix = "gpt.blocks" if "gpt.embed.weight" in shapes else "encoder"
    first = f"{prefix}.0.attn"
    width = shapes[f"{first}.out.weight"][0]
    found = {
        "d_model": width,
        "num_layers": _count(shapes, prefix),
        "num_heads": width // shapes[f"{first}.q_norm.weight"][0],
        "d_ff": shapes[f"{prefix}.0.mlp.up.weight"][0],
    }
    if "latents.weight" in shapes:
        found["num_latent"] = shapes["latents.weight"][0]
        found["latent_layers"] = _count(shapes, "latent_blocks")
    return found


def _count(shapes: Mapping[str, Any], prefix: str) -> int:
    numbers = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in shapes)
    return 1 + max((int(m[1]) for m in numbers if m), default=-1)
