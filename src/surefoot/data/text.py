"""Windows of a long text: training windows in any order, validation windows in sequence.

Tokens stay where they are (usually in a memory-mapped file); a batch copies only what it shows.
Every window holds `context` inputs x and the same number of targets y, shifted by one.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import xxhash
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from surefoot.data.batch import Batch
from surefoot.data.order import keyed_hash
from surefoot.errors import DataError
from surefoot.seeds import derive

__all__ = ["IGNORED", "TextSource", "windows"]

Int = NDArray[np.int64]

IGNORED = -100  # a target that no loss counts, as torch's cross_entropy has it
_HASHED_AT_ONCE = 1 << 24  # tokens
_RELEASE_EVERY = 1024  # windows; at 64 kB mapped around each, some 64 MB stay resident


class TextSource:
    """Training windows of `tokens[start:stop]`: a Source (see batch.py).

    The range is a ring of stop - start - 1 inputs, cut into windows of `context` tokens from a
    phase that is drawn anew for each epoch. So an epoch shows every token at most once, leaves
    out fewer than `context` tokens (others each time), and no boundary stays where it is. The one
    window that crosses the end goes on at the beginning; each of its targets is still the token
    that follows its input.
    """

    def __init__(
        self,
        tokens: NDArray[Any],
        context: int,
        start: int = 0,
        stop: int | None = None,
        name: str = "text",
        digest: str | None = None,
    ) -> None:
        """Cut `tokens` [n] (unsigned or int32), of which `start` to `stop` may be shown.

        `digest` names the bytes of all tokens where they are already hashed. Raises DataError
        when the range holds less than one window.
        """
        stop = len(tokens) if stop is None else stop
        if context < 1 or not 0 <= start <= stop <= len(tokens):
            raise ValueError(f"no windows of {context} in [{start}, {stop}) of {len(tokens)}")
        if stop - start < context + 1:
            raise DataError(
                f"{name} has {stop - start} tokens; a window of context {context} needs "
                f"{context + 1}",
                fix="a smaller context, or more text",
            )
        self.context, self.start, self.stop, self.name = context, start, stop, name
        self._digest = digest
        self._tokens = np.asarray(tokens)[start:stop]  # not a memmap: slicing those is slow
        self._rows = sliding_window_view(self._tokens, context + 1)
        self._ring = stop - start - 1
        self._pages = _Pages(tokens)

    def __len__(self) -> int:
        """Return how many windows do not overlap."""
        return self._ring // self.context

    @cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that name the tokens, the range and the cut."""
        if self._digest is None:
            place, bytes_of = "range", _digest(self._tokens)
        else:
            place, bytes_of = f"{self.start}:{self.stop}", self._digest
        return xxhash.xxh3_128_hexdigest(f"text 1 {bytes_of} {place} {self.context}".encode())

    def batch(self, index: Int, epoch: Int, key: int) -> Batch:
        """Return windows `index` [m] of `epoch` [m]: x and y int64 [m, context]; pure."""
        phase = keyed_hash(epoch, derive(key, "phase"))
        phase %= self._ring
        place = phase.view(np.int64)
        place += index * self.context
        place %= self._ring
        crossing = np.flatnonzero(place > self._ring - self.context)
        begin = place.copy() if crossing.size else place
        begin[crossing] = 0
        rows = self._rows[begin]  # [m, context + 1]
        x, y = rows[:, :-1].astype(np.int64), rows[:, 1:].astype(np.int64)
        for row in crossing:
            ring = np.arange(place[row], place[row] + self.context) % self._ring
            x[row], y[row] = self._tokens[ring], self._tokens[ring + 1]
        self._pages.touched(len(index))
        return Batch({"x": x, "y": y}, weight=x.size)


def windows(
    tokens: NDArray[Any], context: int, start: int, stop: int, batch: int
) -> Iterator[Batch]:
    """Yield `tokens[start:stop]` in sequence, `batch` windows at a time.

    Every token but the first is a target exactly once. x and y are int64 [m, context]; the last
    window may be short: its x is filled with 0 and its y with -100, and the weight of a batch
    counts real targets only.
    """
    held = np.asarray(tokens)[start:stop]
    pages = _Pages(tokens)
    targets = max(0, len(held) - 1)
    full, rest = divmod(targets, context)
    for first in range(0, full + bool(rest), batch):
        count = min(batch, full - first)
        body = held[first * context : (first + count) * context + 1]
        x = body[:-1].astype(np.int64).reshape(count, context)
        y = body[1:].astype(np.int64).reshape(count, context)
        if rest and first + batch > full:
            x, y = _with_short(x, y, held[targets - rest :])
        pages.touched(len(x))
        yield Batch({"x": x, "y": y}, weight=int(np.count_nonzero(y != IGNORED)))


def _with_short(x: Int, y: Int, tail: NDArray[Any]) -> tuple[Int, Int]:
    context, rest = x.shape[1], len(tail) - 1
    last_x = np.zeros((1, context), dtype=np.int64)
    last_y = np.full((1, context), IGNORED, dtype=np.int64)
    last_x[0, :rest], last_y[0, :rest] = tail[:-1], tail[1:]
    return np.concatenate([x, last_x]), np.concatenate([y, last_y])


def _digest(tokens: NDArray[Any]) -> str:
    state = xxhash.xxh3_128(str(tokens.dtype).encode())
    for at in range(0, len(tokens), _HASHED_AT_ONCE):
        state.update(np.ascontiguousarray(tokens[at : at + _HASHED_AT_ONCE]))
    return state.hexdigest()


class _Pages:
    """Lets go of mapped pages now and then, so that memory does not grow with the corpus.

    The pages stay in the system's cache and come back when touched; only the count of what this
    process holds goes down. Without a mapped file, or where the system has no such call, nothing
    happens.
    """

    def __init__(self, tokens: NDArray[Any]) -> None:
        mapping = getattr(tokens, "_mmap", None)
        able = isinstance(mapping, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED")
        self._mapping = mapping if able else None
        self._windows = 0

    def touched(self, windows: int) -> None:
        if self._mapping is None:
            return
        self._windows += windows
        if self._windows >= _RELEASE_EVERY:
            self._windows = 0
            self._mapping.madvise(mmap.MADV_DONTNEED)
