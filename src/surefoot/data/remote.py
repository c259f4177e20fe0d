"""Training from shards that lie elsewhere: windows are read through a cache of bounded size.

open_shards(url, limit)    ->  Collection, as `collect` makes it from text
Collection.source(context) ->  FarSource: a Source that also knows an order for such data
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from surefoot.data.blocks import BlockOrder
from surefoot.data.bpe import BPE
from surefoot.data.collection import Collection, Part
from surefoot.data.fetch import cache_dir, writing
from surefoot.data.manifest import MANIFEST, TOKENIZER, Manifest, Shard, read_manifest
from surefoot.data.order import Permutation
from surefoot.data.place import Place, Silent
from surefoot.data.shelf import Item, Shelf
from surefoot.data.text import TextSource
from surefoot.errors import DataError
from surefoot.seeds import derive

__all__ = ["FarCollection", "FarSource", "FarTokens", "open_shards"]

Int = NDArray[np.int64]


class FarTokens:
    """Tokens [n] of shards elsewhere; any number of threads may read. See `tokens.TokenFile`."""

    ndim = 1

    def __init__(
        self, shards: Sequence[Shard], dtype: np.dtype[Any], shelf: Shelf, place: Place
    ) -> None:
        self.dtype, self.shelf = np.dtype(dtype), shelf
        self.ends = np.cumsum([shard.tokens for shard in shards], dtype=np.int64)
        self._reach = self.ends + np.array([shard.overlap for shard in shards], dtype=np.int64)
        self._items = [
            Item(
                shard.name, shard.sha256, (shard.tokens + shard.overlap) * self.dtype.itemsize,
                partial(place.pull, shard.name),
            )
            for shard in shards
        ]  # fmt: skip

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, where: slice) -> NDArray[Any]:
        """Return tokens `where` (a slice with step 1) as an array [k]."""
        start, stop, step = where.indices(len(self))
        if step != 1:
            raise IndexError("shards of tokens are read in sequence")
        pieces = [np.empty(0, dtype=self.dtype)]
        while start < stop:
            number = self._number(start)
            end = min(stop, int(self._reach[number]))
            with self.shelf.open(self._items[number]) as handle:
                pieces.append(self._read(handle, number, start, end - start))
            start = end
        return np.concatenate(pieces)

    def rows(self, begin: Any, width: int) -> NDArray[Any]:
        """Return `width` tokens from each of `begin` [m] on, as an array [m, width]."""
        begin = np.asarray(begin)
        found = np.empty((len(begin), width), dtype=self.dtype)
        numbers = np.searchsorted(self.ends, begin, "right")
        for number in dict.fromkeys(numbers.tolist()):
            mine = np.flatnonzero(numbers == number)
            inside = begin[mine] + width <= self._reach[number]
            with self.shelf.open(self._items[number]) as handle:
                for row in mine[inside].tolist():
                    found[row] = self._read(handle, number, int(begin[row]), width)
            for row in mine[~inside].tolist():  # a context longer than what shards share
                found[row] = self[int(begin[row]) : int(begin[row]) + width]
        return found

    def expect(self, begin: Int) -> None:
        """Be told where the next windows begin, in this order."""
        numbers = np.searchsorted(self.ends, begin, "right")
        self.shelf.expect([self._items[n] for n in dict.fromkeys(numbers.tolist())])

    def _number(self, at: int) -> int:
        return int(np.searchsorted(self.ends, at, "right"))

    def _read(self, handle: int, number: int, start: int, count: int) -> NDArray[Any]:
        size = self.dtype.itemsize
        first = int(self.ends[number - 1]) if number else 0
        content = os.pread(handle, count * size, (start - first) * size)
        return np.frombuffer(content, dtype=self.dtype)


class FarSource(TextSource):
    """Training windows of shards elsewhere: a Source whose order may go through a few at a time.

    With `together` shards, windows begin at multiples of the context from a phase below it, so
    that those of a shard are one block, and `BlockOrder` mixes that many blocks. With 0 order and
    windows are those of any text.
    """

    def __init__(
        self, tokens: FarTokens, context: int, name: str, digest: str, together: int
    ) -> None:
        digest = f"{digest} by {together}" if together else digest
        super().__init__(tokens, context, 0, len(tokens), name, digest)
        self._far, self._together = tokens, together

    def order(self, seed: int) -> Callable[[Int, Int], Int]:
        """Return which window stands at a place of an epoch (see `batch.Ordered`)."""
        key = derive(seed, "order")
        if not self._together:
            return Permutation(len(self), key)
        augment = derive(seed, "augment")

        def ends(epoch: int) -> Int:
            """Windows that begin before the end of each shard."""
            phase = int(self._phase(np.array([epoch], dtype=np.int64), augment)[0])
            before = -(-(self._far.ends - phase) // self.context)
            before[-1] = len(self)
            return np.clip(before, 0, len(self))

        return BlockOrder(ends, self._together, key)

    def expect(self, index: Int, epoch: Int, key: int) -> None:
        """Be told which windows come next."""
        self._far.expect((self._phase(epoch, key) + index * self.context) % self._ring)

    def _phase(self, epoch: Int, key: int) -> Int:
        phase = super()._phase(epoch, key)
        return phase % self.context if self._together else phase


@dataclass(frozen=True)
class FarCollection(Collection):
    """A collection whose tokens lie elsewhere; `together` is that of `FarSource`."""

    together: int = 0

    def source(self, context: int) -> FarSource:
        """Return the training windows; raises DataError when they are none."""
        self._check(context)
        digest = f"{self.digest} {self.tokenizer.fingerprint}"
        assert isinstance(self.tokens, FarTokens)
        return FarSource(self.tokens, context, self.name, digest, self.together)


def open_shards(
    url: str, limit: int, together: int = 0, cache: Path | None = None
) -> FarCollection:
    """Return the collection at the address `url`, read through a cache of `limit` bytes.

    `together` is how many shards are shuffled among each other at a time, 0 for all. Where the
    address does not answer but was read before, what is in the cache is used. Raises DataError
    when it holds no shards or the cache has no room for one, SurefootError without an answer.
    """
    cache = cache or cache_dir()
    place = Place(url)
    text, notes = _described(place, MANIFEST, cache)
    found = read_manifest(text, f"{place.url}/{MANIFEST}")
    kept, more = _described(place, TOKENIZER, cache, silent=bool(notes))
    if hashlib.sha256(kept).hexdigest() != found.tokenizer:
        raise DataError(
            f"{TOKENIZER} is not the one of these shards: its bytes changed",
            where=place.url, fix="write the shards anew with `surefoot data shard`",
        )  # fmt: skip
    notes = list(dict.fromkeys([*found.notes, *notes, *more, *_crowded(found, limit, together)]))
    shelf, dtype = Shelf(cache / "shards", limit), np.dtype(found.dtype)
    far = {side: FarTokens(some, dtype, shelf, place) for side, some in found.shards.items()}
    parts = {
        side: Part(tokens, 0, len(tokens), found.sides[side], side in found.wikitext)
        for side, tokens in far.items()
    }
    return FarCollection(
        found.name, found.licence, place.url, BPE(kept.decode(), TOKENIZER), found.sides["train"],
        far["train"], parts["held"], parts.get("test"), found.digest, tuple(notes), together,
    )  # fmt: skip


def _described(
    place: Place, name: str, cache: Path, silent: bool = False
) -> tuple[bytes, list[str]]:
    """Return a small file of the address; without an answer, the copy of an earlier time.

    Of an address that is known to be `silent` the copy is taken at once, where there is one.
    """
    key = xxhash.xxh3_128_hexdigest(place.url.encode())
    copy = cache / "tokens" / f"shards-{key}.{name}"
    if silent and copy.exists():
        return copy.read_bytes(), []
    try:
        content = place.pull(name)
    except Silent as error:
        with suppress(OSError):
            return copy.read_bytes(), [f"{place.url} does not answer; {name} is as it was"]
        raise error
    with writing(copy) as file:
        file.write(content)
    return content, []


def _crowded(found: Manifest, limit: int, together: int) -> list[str]:
    """Say what a cache of `limit` bytes means. Raises DataError when no shard fits."""
    width = np.dtype(found.dtype).itemsize
    sizes = {
        side: [(shard.tokens + shard.overlap) * width for shard in some]
        for side, some in found.shards.items()
    }
    largest, all_of_it = max(max(some, default=0) for some in sizes.values()), sum(sizes["train"])
    if largest > limit:
        raise DataError(
            f"data.shard_cache: {limit:,} bytes hold no shard of {largest:,}",
            fix="a larger --shard-cache, or shards written with a smaller --shard-size",
        )
    if all_of_it <= limit:
        return []
    if not together:
        share = 1 - limit / all_of_it
        return [
            f"the shards have {all_of_it / 1e9:,.2f} GB and the cache {limit / 1e9:,.2f}: "
            f"{share:.0%} of all windows fetch a shard of {largest / 1e6:,.1f} MB; "
            "--shuffle-shards 8 fetches each once an epoch"
        ]
    if 2 * together * largest > limit:
        return [
            f"the cache holds less than twice {together} shards: training waits where the next "
            "are fetched"
        ]
    return []
