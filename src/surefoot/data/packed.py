"""Files of code as rows of tokens: packed one after the other, and cut at the context.

Between files stands the tokenizer's boundary; nothing is padded and nothing is lost but the last
row's rest. A row may be rearranged so that the model learns to fill in the middle (Bavarian et
al., "Efficient training of language models to fill in the middle", 2022, at the level of rows).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from surefoot.data.batch import Batch
from surefoot.data.bpe import BPE
from surefoot.data.text import windows
from surefoot.errors import DataError
from surefoot.seeds import derive

Int = NDArray[np.int64]

__all__ = ["MIDDLE", "Blank", "Packed", "middle_tokens", "pack", "rows"]

MIDDLE = (  # names of the sentinels before prefix, suffix and middle, in various bases
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<PRE>", "<SUF>", "<MID>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
)


def middle_tokens(bpe: BPE) -> tuple[int, int, int] | None:
    """Return the tokens that stand before prefix, suffix and middle, where the base has them."""
    for names in MIDDLE:
        found = [bpe.token(name) for name in names]
        if None not in found:
            return tuple(found)  # type: ignore[return-value]
    return None


def pack(texts: Sequence[str], bpe: BPE) -> NDArray[Any]:
    """Return the tokens of all texts [n], a boundary before each and one at the end."""
    border = np.array([bpe.boundary], dtype=bpe.dtype)
    pieces = [part for tokens in bpe.encode_all(texts) for part in (border, tokens)]
    return np.concatenate([*pieces, border])


@dataclass(frozen=True)
class Packed:
    """Rows of `context` tokens, each a target once in an epoch (a Source, see batch.py).

    In every epoch the rows begin elsewhere, so that no place is always at a border. `rate` is the
    share of rows that are rearranged with the three tokens `middle`. `base` names what the tokens
    are for.
    """

    tokens: NDArray[Any] = field(repr=False)
    context: int
    rate: float = 0.0
    middle: tuple[int, int, int] | None = None
    base: str = ""

    def __post_init__(self) -> None:
        if len(self.tokens) <= self.context:
            raise DataError(
                f"data.repo: the files to train on have {len(self.tokens):,} tokens, and one row "
                f"takes {self.context + 1:,}",
                fix="a smaller --context, or a larger repository",
            )

    @cached_property
    def fingerprint(self) -> str:
        """Names the tokens and how they are cut."""
        state = xxhash.xxh3_128(np.ascontiguousarray(self.tokens).data)
        state.update(f"packed 1 {self.context} {self.rate} {self.middle} {self.base}".encode())
        return state.hexdigest()

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.context

    def batch(self, index: Int, epoch: Int, key: int) -> Batch:
        """Return x and y i64[m, context]; rows are cut `shift` tokens later in each epoch."""
        spare = (len(self.tokens) - 1) % self.context
        shift = np.array([derive(key, "shift", int(e)) % (spare + 1) for e in epoch])
        begin = index * self.context + shift
        rows = self.tokens[begin[:, None] + np.arange(self.context + 1)].astype(np.int64)
        if self.middle is not None and self.rate:
            for row, i, e in zip(rows, index.tolist(), epoch.tolist()):
                self._rearrange(row, derive(key, "middle", e, i))
        return Batch({"x": rows[:, :-1], "y": rows[:, 1:]}, weight=rows[:, 1:].size)

    def _rearrange(self, row: Int, key: int) -> None:
        """Turn prefix, middle, suffix into prefix, suffix, middle, in place."""
        assert self.middle is not None
        draw = np.random.Generator(np.random.Philox(key))
        if draw.random() >= self.rate or len(row) < 6:
            return
        body = row[: len(row) - 3].copy()
        first, second = sorted(draw.integers(0, len(body) + 1, 2).tolist())
        before, inside, after = body[:first], body[first:second], body[second:]
        p, s, m = ([token] for token in self.middle)
        row[:] = np.concatenate([p, before, s, after, m, inside])


@dataclass(frozen=True)
class Blank:
    """`count` rows of `context` tokens that are all the same: what planning needs of a Source."""

    context: int
    count: int

    @property
    def fingerprint(self) -> str:
        return f"blank {self.context} {self.count}"

    def __len__(self) -> int:
        return self.count

    def batch(self, index: Int, epoch: Int, key: int) -> Batch:
        """Return x and y i64[m, context], zeros."""
        rows = np.zeros((len(index), self.context), np.int64)
        return Batch({"x": rows, "y": rows.copy()}, weight=rows.size)


def rows(
    tokens: NDArray[Any], context: int, batch: int, most: int | None = None
) -> Iterator[Batch]:
    """Yield rows in sequence, each token but the first a target once; at most `most` tokens."""
    stop = len(tokens) if most is None else min(len(tokens), most + 1)
    return windows(tokens, context, 0, stop, batch)
