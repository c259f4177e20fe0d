"""Write with a model: draw the next token, again and again.

Reads nothing and prints nothing; leaves the global generators and the model's mode alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from surefoot.engine.place import reads_past_mkl
from surefoot.errors import ConfigError
from surefoot.nn.decode import Decoder
from surefoot.ops.way import exact, exact_place
from surefoot.seeds import derive

if TYPE_CHECKING:
    from surefoot.nn.gpt import GPT, Past

__all__ = ["Decodes", "choose", "generate"]


class Decodes(Protocol):
    """Reads tokens after tokens that it has read: `nn.decode.Decoder`, `formats.llama.LlamaCpp`."""

    @property
    def context(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def empty(self, batch: int) -> list[Past]: ...

    def __call__(self, tokens: Tensor, pasts: list[Past]) -> Tensor: ...


def generate(
    model: GPT | Decodes,
    tokens: Tensor,
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int | Sequence[int] = 0,
) -> Iterator[Tensor]:
    """Yield i64[B], `count` times: what follows the prompts `tokens` i64[B, T], T >= 1.

    Temperature 0 always takes the most probable token. A row draws from a stream of its own, so
    it does not depend on the others: row i of an int `seed` draws from stream i, and a sequence
    gives each row the seed with which it would write the same alone.

    Logits of tokens that the prompt or the text has are divided by `repetition_penalty` where they
    are positive, else multiplied (Keskar et al., "CTRL", 2019); 1 leaves them.

    Past the context limit the model goes on with a shorter memory: whenever the context is full,
    its oldest quarter is dropped and the rest is read anew. A longer prompt is cut in the same
    way, from the left. Arithmetic is that of the weights; autocast is ignored.
    """
    _check(tokens, count, temperature, top_k, top_p, min_p, repetition_penalty)
    decode = Decoder(model, reads_past_mkl()) if isinstance(model, nn.Module) else model
    batch, context = tokens.size(0), decode.context
    draws = _draws(seed, batch, count).to(exact_place(tokens.device))
    known = torch.empty(batch, tokens.size(1) + count, dtype=torch.int64, device=tokens.device)
    known[:, : tokens.size(1)] = tokens
    end = tokens.size(1)
    start, pasts = max(0, end - context), decode.empty(batch)
    fresh = known[:, start:end]
    for step in range(count):
        logits = _next(decode, fresh, pasts)
        if repetition_penalty != 1.0:
            logits = _penalised(logits, known[:, :end], repetition_penalty)
        token = choose(logits, draws[:, step], temperature, top_k, top_p, min_p)
        known[:, end] = token
        end += 1
        yield token
        fresh = known[:, end - 1 : end]
        if end - start > context:
            start = end - (context - context // 4)
            fresh, pasts = known[:, start:end], decode.empty(batch)


@torch.no_grad()
def choose(
    logits: Tensor,
    draw: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """Pick a token i64[B] from logits [B, V] with uniform numbers `draw` f64[B].

    The `top_k` most probable tokens stay, ties with the last of them included; of those, the
    fewest that together reach `top_p` (nucleus sampling, Holtzman et al., 2020), at least one; of
    those, the ones at least `min_p` times as probable as the first (Nguyen et al., 2024).
    """
    if temperature == 0.0:
        return logits.argmax(-1)
    home, logits = logits.device, exact(logits) / temperature
    if top_k is not None and top_k < logits.size(-1):
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p is not None and top_p < 1.0:
        probabilities = _nucleus(probabilities, top_p)
    if min_p is not None:
        least_p = min_p * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least_p, 0.0)
    reached = probabilities.cumsum(-1)  # [B, V]
    place = (reached <= draw.unsqueeze(-1) * reached[:, -1:]).sum(-1)
    return torch.minimum(place, reached.argmax(-1)).to(home)


def _penalised(logits: Tensor, known: Tensor, penalty: float) -> Tensor:
    """Return `logits` [B, V] with those of tokens in `known` i64[B, T] made less likely."""
    there = logits.gather(1, known)
    return logits.scatter(1, known, torch.where(there > 0, there / penalty, there * penalty))


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= top_p, 0.0)
    return torch.zeros_like(probabilities).scatter(-1, order, ordered)


def _check(
    tokens: Tensor,
    count: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    penalty: float,
) -> None:
    rules = [
        (tokens.dim() == 2 and tokens.numel() > 0, "the prompt needs at least one token"),
        (count >= 0, f"cannot write {count} tokens"),
        (temperature >= 0, f"temperature {temperature} is negative"),
        (top_k is None or top_k >= 1, f"top_k {top_k} leaves no token to choose from"),
        (top_p is None or 0 < top_p <= 1, f"top_p {top_p} is not in (0, 1]"),
        (min_p is None or 0 <= min_p <= 1, f"min_p {min_p} is not in [0, 1]"),
        (0 < penalty < float("inf"), f"repetition_penalty {penalty} is not above 0"),
    ]
    broken = [text for holds, text in rules if not holds]
    if broken:
        raise ConfigError("; ".join(broken))


def _draws(seed: int | Sequence[int], batch: int, count: int) -> Tensor:
    """Return f64[B, count] in [0, 1): row by row from streams of their own."""
    keys = (
        [derive(seed, "sample", row) for row in range(batch)]
        if isinstance(seed, int)
        else [derive(s, "sample", 0) for s in seed]
    )
    if len(keys) != batch:
        raise ConfigError(f"{len(keys)} seeds for {batch} prompts")
    rows = [torch.rand(count, dtype=torch.float64, generator=_stream(k)) for k in keys]
    return torch.stack(rows)


def _stream(key: int) -> torch.Generator:
    return torch.Generator().manual_seed(key)


def _next(decode: Decodes, tokens: Tensor, pasts: list[Past]) -> Tensor:
    with torch.autocast(tokens.device.type, enabled=False):
        return decode(tokens, pasts)
