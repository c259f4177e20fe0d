"""Shards for elsewhere: what they are, as a file that lists them, and how they are written.

    shards.json               what is there: sides, tokenizer, each shard with its SHA-256
    tokenizer.json            the vocabulary
    train-00000-HASH.bin      tokens as little-endian integers; held-…, test-…

A shard to train on ends with a copy of the first tokens of the next, so that a window that begins
in it can be read from it alone. Names hold the beginning of the hash and `shards.json` is written
last: what an interrupted upload left is found again, and never mistaken for a whole one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xxhash

from surefoot.data.collection import Collection
from surefoot.data.place import Place
from surefoot.data.shards import Progress, Side
from surefoot.data.tokens import Tokens
from surefoot.errors import DataError

__all__ = ["MANIFEST", "TOKENIZER", "Manifest", "Shard", "publish", "read_manifest"]

MANIFEST = "shards.json"
TOKENIZER = "tokenizer.json"
_FORMAT = 1
_OVERLAP = 1 << 14  # tokens, of the next shard; the longest context that needs one shard only
_SIDES = ("train", "held", "test")


@dataclass(frozen=True)
class Shard:
    """One file of tokens; `overlap` of them are those of the next."""

    name: str
    tokens: int
    overlap: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All that is known of a collection without its tokens."""

    name: str
    licence: str
    dtype: str
    tokenizer: str  # SHA-256 of its file
    sides: Mapping[str, Side]
    wikitext: tuple[str, ...]  # the sides of which perplexity is given by word
    shards: Mapping[str, tuple[Shard, ...]]
    notes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that name all tokens and what they mean, wherever they lie."""
        shards = {
            side: [[shard.sha256, shard.tokens, shard.overlap] for shard in found]
            for side, found in self.shards.items()
        }
        said = json.dumps([_FORMAT, self.dtype, self.tokenizer, shards], sort_keys=True)
        return xxhash.xxh3_128_hexdigest(said.encode())

    def to_json(self) -> str:
        """Return the text of `shards.json`."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=1) + "\n"


def read_manifest(text: str | bytes, where: str) -> Manifest:
    """Return what `shards.json` says. Raises DataError where that makes no sense."""
    try:
        said = json.loads(text)
        if said.pop("format") != _FORMAT:
            raise DataError("shards.json is of a newer format", where=where, fix="update Surefoot")
        sides = {name: Side(**side) for name, side in said.pop("sides").items()}
        shards = {
            name: tuple(Shard(**shard) for shard in found)
            for name, found in said.pop("shards").items()
        }
        wikitext, notes = (tuple(said.pop(name)) for name in ("wikitext", "notes"))
        found = Manifest(sides=sides, shards=shards, wikitext=wikitext, notes=notes, **said)
        plain = np.dtype(found.dtype).kind == "u"
        whole = all(sum(s.tokens for s in shards[n]) == side.tokens for n, side in sides.items())
        named = all(_sound(shard) for some in shards.values() for shard in some)
        if {"train", "held"} <= set(sides) == set(shards) and plain and whole and named:
            return found
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise DataError(
        "shards.json is damaged", where=where, fix="write it anew with `surefoot data shard`"
    )


def _sound(shard: Shard) -> bool:
    """Whether what a file from elsewhere says of a shard may become part of a path here."""
    counts = type(shard.tokens) is int is type(shard.overlap) and shard.tokens > 0
    plain = re.fullmatch(r"\w[\w.-]*", shard.name, re.ASCII) is not None
    return bool(
        counts and shard.overlap >= 0 and plain and re.fullmatch(r"[0-9a-f]{64}", shard.sha256)
    )


def publish(
    found: Collection, to: str, size: int, progress: Progress | None = None
) -> tuple[Manifest, int]:
    """Write the tokens of `found` as shards of about `size` bytes to the address `to`.

    Goes on where an earlier call was interrupted. Returns the manifest and how many bytes were
    sent. Raises DataError where other shards lie there already, or the address cannot be used.
    """
    place = Place(to)
    _free(place, to)
    pieces = list(_pieces(found, max(1, size // found.tokenizer.dtype.itemsize)))
    shards: dict[str, list[Shard]] = {side: [] for side in _SIDES}
    sent = 0
    for number, (side, count, overlap, read) in enumerate(pieces):
        content = read()
        sha256 = hashlib.sha256(content).hexdigest()
        name = f"{side}-{len(shards[side]):05}-{sha256[:12]}.bin"
        shards[side].append(Shard(name, count, overlap, sha256))
        if place.size(name) != len(content):
            place.push(name, content)
            sent += len(content)
        if progress:
            progress(number + 1, len(pieces))
    kept = found.tokenizer.to_json().encode()
    sides = {"train": found.train, "held": found.val.side}
    wikitext = [name for name, part in _parts(found).items() if part.wikitext]
    if found.test is not None:
        sides["test"] = found.test.side
    made = Manifest(
        found.name, found.licence, found.tokenizer.dtype.newbyteorder("<").str,
        hashlib.sha256(kept).hexdigest(), sides, tuple(wikitext),
        {side: tuple(shards[side]) for side in sides}, found.notes,
    )  # fmt: skip
    text = made.to_json().encode()
    if place.size(MANIFEST) is not None:
        _same(place.pull(MANIFEST), made, to)
        return made, sent
    place.push(TOKENIZER, kept)
    place.push(MANIFEST, text)
    return made, sent + len(kept) + len(text)


def _free(place: Place, to: str) -> None:
    """Raise DataError early, before hours of work, where something else lies at the address."""
    if place.size(MANIFEST) is not None:
        try:
            read_manifest(place.pull(MANIFEST), f"{to}/{MANIFEST}")
        except DataError as error:
            fix = f"--to another folder, or remove {MANIFEST} there first"
            raise DataError(error.what, where=error.where, fix=fix) from None


def _same(text: bytes, made: Manifest, to: str) -> None:
    if read_manifest(text, f"{to}/{MANIFEST}").digest != made.digest:
        raise DataError(
            "other shards lie at this address, and runs may be reading them",
            where=to, fix="--to another folder, or remove shards.json there first",
        )  # fmt: skip


def _parts(found: Collection) -> dict[str, Any]:
    return {"held": found.val} | ({"test": found.test} if found.test is not None else {})


def _pieces(found: Collection, most: int) -> Iterator[tuple[str, int, int, Callable[[], bytes]]]:
    """Yield (side, tokens, overlap, how to read them) of each shard; `most` is in tokens."""
    ranges: dict[str, tuple[Tokens, int, int]] = {"train": (found.tokens, 0, found.train.tokens)}
    ranges |= {name: (part.tokens, part.start, part.stop) for name, part in _parts(found).items()}
    for side, (tokens, start, stop) in ranges.items():
        for at in range(start, stop, most):
            end = min(at + most, stop)
            over = min(_OVERLAP, most, stop - end) if side == "train" else 0

            def read(tokens: Tokens = tokens, at: int = at, end: int = end + over) -> bytes:
                piece = tokens[at:end]
                return piece.astype(piece.dtype.newbyteorder("<"), copy=False).tobytes()

            yield side, end - at, over, read
