"""A text to learn from: loaded, split, and cut into windows.

    load_text(path or corpus)  ->  Text: tokens, tokenizer, what it is and where it came from
    Text.source(context)       ->  training windows in any order (a Source, see batch.py)
    Text.windows(context, m)   ->  validation windows in sequence, each target once

Tokens stay where they are (those of a large text in a file); a batch copies only what it shows.
A window holds `context` inputs x and as many targets y, shifted by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from surefoot.data.batch import Batch
from surefoot.data.corpora import find, recognise
from surefoot.data.encoded import Kind, encode
from surefoot.data.fetch import cache_dir
from surefoot.data.files import TextFile, find_files, held_out_rank
from surefoot.data.order import keyed_hash
from surefoot.data.tokenizer import Tokenizer
from surefoot.data.tokens import Tokens
from surefoot.errors import DataError
from surefoot.seeds import derive

__all__ = ["IGNORED", "Text", "TextSource", "load_text", "windows"]

Int = NDArray[np.int64]
Origin = Literal["cache", "download", "given path", "bundled"]

IGNORED = -100  # a target that no loss counts, as torch's cross_entropy has it
_ORIGINS = {
    "cache": "cached, from",
    "download": "downloaded now, from",
    "given path": "read from",
    "bundled": "no download: made from",
}
_HASHED_AT_ONCE = 1 << 24  # tokens


@dataclass(frozen=True)
class Text:
    """A text, split into a part to train on and a part held out.

    `train` and `val` are ranges [start, stop) of `tokens`; a text in one file is cut in two, a
    folder is split by file. `digest` names the tokens. `notes` are sentences that the user and
    the record of the run must see: what was substituted, left out or changed.
    """

    name: str
    licence: str
    origin: Origin
    where: str
    tokenizer: Tokenizer
    tokens: Tokens = field(repr=False)  # [n]
    train: tuple[int, int]
    val: tuple[int, int]
    val_ratio: float
    digest: str
    vocabulary: Kind
    notes: tuple[str, ...] = ()

    @property
    def characters(self) -> int:
        """Return the length: characters, or bytes for the byte vocabulary."""
        return len(self.tokens)

    @property
    def unit(self) -> str:
        """Return what one token is."""
        return "characters" if self.vocabulary == "char" else "bytes"

    @cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that name the tokens, what they mean, and the split."""
        parts = f"text 1 {self.digest} {self.tokenizer.fingerprint} {self.train} {self.val}"
        return xxhash.xxh3_128_hexdigest(parts.encode())

    def source(self, context: int) -> TextSource:
        """Return the training windows; raises DataError when either part is too short."""
        self.check(context)
        return TextSource(self.tokens, context, *self.train, self.name, self.digest)

    def windows(self, context: int, batch: int) -> Iterator[Batch]:
        """Yield the held-out part in sequence, `batch` windows at a time (see `windows`)."""
        return windows(self.tokens, context, *self.val, batch)

    def check(self, context: int) -> None:
        """Raise DataError when a part that is asked for cannot fill one window of `context`."""
        parts = {"training": self.train[1] - self.train[0]}
        if self.val_ratio:
            parts["validation"] = self.val[1] - self.val[0]
        part, least = min(parts.items(), key=lambda item: item[1])
        window = context + 1  # the inputs and one target more
        if least >= window:
            return
        about = "at least" if self.train[1] == _cut(self.characters, self.val_ratio) else "about"
        purpose = " to split off validation" if self.val_ratio else ""
        smaller = f"--context {1 << ((least - 1).bit_length() - 1)}, or " if least > 1 else ""
        raise DataError(
            f"data.path: {self.name} has {self.characters:,} {self.unit}; context {context} needs "
            f"{about} {_least(window, self.val_ratio):,}{purpose}",
            where=f"the {part} part has {least:,} {self.unit}, one window takes {window:,}",
            fix=f"{smaller}more text",
        )

    def describe(self) -> dict[str, Any]:
        """Return what the record of a run says about its data; plain JSON values."""
        return {
            "name": self.name,
            "licence": self.licence,
            "origin": self.origin,
            "where": self.where,
            "characters": self.characters,
            "unit": self.unit,
            "vocabulary": self.vocabulary,
            "vocab_size": self.tokenizer.vocab_size,
            "train": list(self.train),
            "val": list(self.val),
            "fingerprint": self.fingerprint,
            "notes": list(self.notes),
        }

    def describe_line(self) -> str:
        """Return one line for people: name, size, vocabulary, licence and origin."""
        kinds = f" of {self.tokenizer.vocab_size} kinds" if self.vocabulary == "char" else ""
        return (
            f"{self.name}: {self.characters:,} {self.unit}{kinds}; {self.licence}; "
            f"{_ORIGINS[self.origin]} {self.where}"
        )


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
        tokens: Tokens,
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
        self._tokens, self._digest, self._ring = tokens, digest, stop - start - 1
        if isinstance(tokens, np.ndarray):
            self._views = sliding_window_view(tokens, context + 1)

    def __len__(self) -> int:
        """Return how many windows do not overlap."""
        return self._ring // self.context

    @cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that name the tokens, the range and the cut."""
        if self._digest is None:
            place, bytes_of = "range", _digest(self._tokens, self.start, self.stop)
        else:
            place, bytes_of = f"{self.start}:{self.stop}", self._digest
        return xxhash.xxh3_128_hexdigest(f"text 1 {bytes_of} {place} {self.context}".encode())

    def batch(self, index: Int, epoch: Int, key: int) -> Batch:
        """Return windows `index` [m] of `epoch` [m]: x and y int64 [m, context]; pure."""
        place = self._phase(epoch, key)
        place += index * self.context
        place %= self._ring
        crossing = np.flatnonzero(place > self._ring - self.context)
        beyond = place[crossing]
        place[crossing] = 0
        place += self.start
        rows = self._rows(place)  # [m, context + 1]
        x, y = rows[:, :-1].astype(np.int64), rows[:, 1:].astype(np.int64)
        for row, at in zip(crossing, beyond):
            x[row], y[row] = self._around(int(at))
        return Batch({"x": x, "y": y}, weight=x.size)

    def _phase(self, epoch: Int, key: int) -> Int:
        """Return where the first window begins in `epoch` [m], int64 [m]."""
        phase = keyed_hash(epoch, derive(key, "phase"))
        phase %= self._ring
        return phase.view(np.int64)

    def _rows(self, begin: Int) -> NDArray[Any]:
        if isinstance(self._tokens, np.ndarray):
            return self._views[begin]
        return self._tokens.rows(begin, self.context + 1)

    def _around(self, at: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return x and y [context] of a window that begins `at` and goes on at the beginning."""
        tail = self._tokens[self.start + at : self.stop]
        rest = self.context + 1 - len(tail)
        head = self._tokens[self.start : self.start + rest + 1]
        return np.concatenate([tail[:-1], head[:-1]]), np.concatenate([tail[1:], head[1:]])


def windows(tokens: Tokens, context: int, start: int, stop: int, batch: int) -> Iterator[Batch]:
    """Yield `tokens[start:stop]` in sequence, `batch` windows at a time.

    Every token but the first is a target exactly once. x and y are int64 [m, context]; the last
    window may be short: its x is filled with 0 and its y with -100, and the weight of a batch
    counts real targets only.
    """
    targets = max(0, stop - start - 1)
    full, rest = divmod(targets, context)
    for first in range(0, full + bool(rest), batch):
        count = min(batch, full - first)
        body = tokens[start + first * context : start + (first + count) * context + 1]
        x = body[:-1].astype(np.int64).reshape(count, context)
        y = body[1:].astype(np.int64).reshape(count, context)
        if rest and first + batch > full:
            x, y = _with_short(x, y, tokens[stop - rest - 1 : stop])
        yield Batch({"x": x, "y": y}, weight=int(np.count_nonzero(y != IGNORED)))


def load_text(
    path: Path | None,
    corpus: str | None,
    *,
    val_ratio: float,
    vocabulary: Kind,
    cache: Path | None = None,
) -> Text:
    """Return the text at `path` (a file or a folder), else `corpus`, else the default corpus.

    One file is cut: the first 1 - `val_ratio` trains. Of a folder each file is on one side, as a
    hash of its name says; both sides get at least one file. Raises DataError with what is wrong
    with the text and what to do. Where the default corpus cannot be reached, the one that is always
    here replaces it, and `notes` says so.
    """
    cache = cache or cache_dir()
    origin: Origin
    if path is None:
        found = find(corpus, cache)
        files, notes = find_files(found.path)
        about = found.corpus
        name, licence, origin, where = about.name, about.licence, found.origin, about.source
        notes = [*found.notes, *notes]
    else:
        files, notes = find_files(path, kind=vocabulary)
        known = recognise(path) if path.is_file() else None
        name = known.name if known else path.resolve().name
        licence = known.licence if known else "your own text"
        origin, where = "given path", str(path)
    first, second = _split(files, val_ratio)
    made = encode(first, second, vocabulary, cache)
    size, cut = len(made.tokens), made.boundary
    if not second:
        cut = _cut(size, val_ratio)
    return Text(
        name=name,
        licence=licence,
        origin=origin,
        where=where,
        tokenizer=made.tokenizer,
        tokens=made.tokens,
        train=(0, cut),
        val=(cut, size),
        val_ratio=val_ratio,
        digest=made.digest,
        vocabulary=vocabulary,
        notes=(*notes, *made.remarks),
    )


def _cut(size: int, ratio: float) -> int:
    return int(size * (1 - ratio))


def _least(window: int, ratio: float) -> int:
    """Return the shortest text whose parts both hold `window` tokens when it is cut in two."""
    size = int((window - 1) / min(ratio or 1.0, 1 - ratio))
    while _cut(size, ratio) < window or (ratio > 0 and size - _cut(size, ratio) < window):
        size += 1
    return size


def _split(files: list[TextFile], ratio: float) -> tuple[list[TextFile], list[TextFile]]:
    """Return (training files, held-out files); a single file is left whole."""
    if not ratio or len(files) == 1:
        return files, []
    ordered = sorted(files, key=lambda file: held_out_rank(file.name))
    count = sum(held_out_rank(file.name) < ratio for file in files)
    chosen = {file.name for file in ordered[: min(max(count, 1), len(files) - 1)]}
    return (
        [file for file in files if file.name not in chosen],
        [file for file in files if file.name in chosen],
    )


def _with_short(x: Int, y: Int, tail: NDArray[Any]) -> tuple[Int, Int]:
    context, rest = x.shape[1], len(tail) - 1
    last_x = np.zeros((1, context), dtype=np.int64)
    last_y = np.full((1, context), IGNORED, dtype=np.int64)
    last_x[0, :rest], last_y[0, :rest] = tail[:-1], tail[1:]
    return np.concatenate([x, last_x]), np.concatenate([y, last_y])


def _digest(tokens: Tokens, start: int, stop: int) -> str:
    state = xxhash.xxh3_128(str(tokens.dtype).encode())
    for at in range(start, stop, _HASHED_AT_ONCE):
        piece = tokens[at : min(stop, at + _HASHED_AT_ONCE)]
        state.update(np.ascontiguousarray(piece).data)
    return state.hexdigest()
