"""Files to tokens, once: in memory for a small text, in the cache for a large one.

Text is read, encoded and written a piece at a time, so memory does not grow with the corpus. A
large text becomes a file of bare integers (this machine's), named by the hash of what it was made
of, and is read from there a window at a time.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import xxhash

from surefoot.data.fetch import writing
from surefoot.data.files import TextFile, characters_of
from surefoot.data.tokenizer import (
    Bytes,
    Characters,
    Tokenizer,
    code_points,
    tokenizer_from_json,
)
from surefoot.data.tokens import TokenFile, Tokens
from surefoot.errors import DataError

__all__ = ["IN_MEMORY", "Encoded", "Kind", "encode"]

IN_MEMORY = 1 << 25  # bytes of text; above, tokens live in a file
_FORMAT = 1
_BLOCK = 1 << 22  # bytes
_LARGEST_POINT = 0x110000

Kind = Literal["char", "byte"]


@dataclass(frozen=True)
class Encoded:
    """All tokens of a corpus: `tokens[:boundary]` from the first files, the rest from the others.

    `digest` names the tokens themselves: equal digests, equal tokens.
    """

    tokens: Tokens  # [n]
    tokenizer: Tokenizer
    boundary: int
    digest: str
    remarks: tuple[str, ...] = ()


def encode(
    first: Sequence[TextFile],
    second: Sequence[TextFile],
    kind: Kind,
    cache: Path,
    in_memory: int | None = None,
) -> Encoded:
    """Return the tokens of `first` followed by those of `second`.

    The alphabet is that of all files together. A file that does not end in a newline gets one
    when another follows it. Up to `in_memory` bytes of text (default: 32 MB) stay in memory, more
    goes to the cache. Raises DataError for text that cannot be read or has no characters.
    """
    limit = IN_MEMORY if in_memory is None else in_memory
    if sum(file.size for file in (*first, *second)) <= limit:
        memory = io.BytesIO()
        return _write(first, second, kind, nullcontext(memory))
    path = cache / "tokens" / f"{_key(first, second, kind)}.bin"
    kept = _load(path)
    if kept is None:
        done = _write(first, second, kind, writing(path))
        _describe(path, done)
        kept = _load(path)
        assert kept is not None, "the tokens were written a moment ago"
    return kept


def _write(
    first: Sequence[TextFile],
    second: Sequence[TextFile],
    kind: Kind,
    target: AbstractContextManager[BinaryIO],
) -> Encoded:
    remarks: set[str] = set()
    tokenizer: Tokenizer = Bytes()
    if kind == "char":
        tokenizer = _alphabet((*first, *second), remarks)
    dtype = tokenizer.encode("").dtype
    state, counts = xxhash.xxh3_128(str(dtype).encode()), [0, 0]
    with target as out:
        for side, files in enumerate((first, second)):
            for piece in _joined(files, kind, remarks):
                ids = code_points(piece) if kind == "byte" else tokenizer.encode(piece)
                state.update(ids.data)
                out.write(ids.data)
                counts[side] += len(ids)
    if not sum(counts):
        raise DataError("data.path: the text has no characters", fix="give a text that has some")
    in_memory = out.getvalue() if isinstance(out, io.BytesIO) else b""
    tokens = np.frombuffer(in_memory, dtype=dtype)
    return Encoded(tokens, tokenizer, counts[0], state.hexdigest(), tuple(sorted(remarks)))


def _joined(files: Sequence[TextFile], kind: Kind, remarks: set[str]) -> Iterator[str]:
    glue = ""
    for file in files:
        if glue:
            yield glue
        last = "\n"
        for piece in characters_of(file, kind, remarks):
            yield piece
            last = piece[-1]
        glue = "" if last == "\n" else "\n"


def _alphabet(files: Sequence[TextFile], remarks: set[str]) -> Characters:
    seen = np.zeros(_LARGEST_POINT, dtype=bool)
    for file in files:
        for piece in characters_of(file, "char", remarks):
            seen[code_points(piece)] = True
    if len(files) > 1:
        seen[ord("\n")] = True  # it may stand between two files
    if not seen.any():
        raise DataError("data.path: the text has no characters", fix="give a text that has some")
    return Characters("".join(map(chr, np.flatnonzero(seen).tolist())))


def _key(first: Sequence[TextFile], second: Sequence[TextFile], kind: Kind) -> str:
    sides = [[file.digest for file in files] for files in (first, second)]
    return xxhash.xxh3_128_hexdigest(json.dumps([_FORMAT, kind, sides]).encode())


def _describe(path: Path, done: Encoded) -> None:
    about = {
        "format": _FORMAT,
        "tokenizer": done.tokenizer.to_json(),
        "dtype": done.tokens.dtype.name,
        "boundary": done.boundary,
        "digest": done.digest,
        "remarks": done.remarks,
    }
    with writing(path.with_suffix(".json")) as file:
        file.write(json.dumps(about).encode())


def _load(path: Path) -> Encoded | None:
    """Return the tokens kept at `path`, or None where there are none or they are damaged."""
    try:
        about = json.loads(path.with_suffix(".json").read_text("utf-8"))
        dtype = np.dtype(about["dtype"])
        if _digest_of(path, str(dtype)) != about["digest"]:
            return None
        return Encoded(
            TokenFile(path, dtype),
            tokenizer_from_json(about["tokenizer"]),
            about["boundary"],
            about["digest"],
            tuple(about["remarks"]),
        )
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None  # tokens can always be made again from the text


def _digest_of(path: Path, dtype: str) -> str:
    state = xxhash.xxh3_128(dtype.encode())
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            state.update(block)
    return state.hexdigest()
