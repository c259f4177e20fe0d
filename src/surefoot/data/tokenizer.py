"""Text to integers and back: one token for each character, or one for each byte.

A tokenizer is a value: it can be written as JSON, and equal JSON means equal tokens.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from surefoot.errors import DataError

__all__ = ["Bytes", "Characters", "Tokenizer", "code_points", "tokenizer_from_json"]

_SHOWN = 5  # unknown characters named in an error


class Tokenizer(Protocol):
    """What the rest of the house asks of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """How many different tokens there are."""
        ...

    @property
    def fingerprint(self) -> str:
        """A name of the mapping: equal fingerprints, equal tokens."""
        ...

    def encode(self, text: str) -> NDArray[Any]:
        """Return the tokens of `text` [n]."""
        ...

    def decode(self, ids: Any) -> str:
        """Return the text of tokens `ids` [n]."""
        ...

    def to_json(self) -> str:
        """Return the whole mapping as text that `tokenizer_from_json` reads."""
        ...


def code_points(text: str) -> NDArray[Any]:
    """Return the Unicode code points of `text`, as uint8 [n] where that is enough, else uint32.

    >>> code_points("aé").tolist()
    [97, 233]
    """
    try:
        return np.frombuffer(text.encode("latin-1"), dtype=np.uint8)
    except UnicodeEncodeError:
        return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


class Characters:
    """One token for each different character, in the order of their code points.

    >>> chars = Characters.train("hello")
    >>> chars.alphabet, chars.encode("hole").tolist(), chars.decode([1, 0])
    ('ehlo', [1, 3, 2, 0], 'he')
    """

    kind = "char"

    def __init__(self, alphabet: str) -> None:
        if list(alphabet) != sorted(set(alphabet)) or not alphabet:
            raise ValueError("an alphabet is a non-empty sorted string of different characters")
        self.alphabet = alphabet
        self._points = np.array([ord(c) for c in alphabet], dtype="<u4")
        size = len(alphabet)
        self.dtype = np.dtype(
            np.uint8 if size <= 1 << 8 else np.uint16 if size <= 1 << 16 else np.int32
        )

    @classmethod
    def train(cls, text: str) -> Characters:
        """Return the tokenizer whose alphabet is every character of `text`."""
        if not text:
            raise DataError(
                "an empty text has no characters to learn", fix="give a text that is not empty"
            )
        return cls("".join(sorted(set(text))))

    @property
    def vocab_size(self) -> int:
        """How many different characters there are."""
        return len(self.alphabet)

    @cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that name the alphabet."""
        return xxhash.xxh3_128_hexdigest(self.to_json().encode())

    @cached_property
    def _table(self) -> NDArray[np.int32]:
        # Token of each code point up to the largest, -1 where there is none; 4.4 MB at most.
        table = np.full(max(256, int(self._points[-1]) + 1), -1, dtype=np.int32)
        table[self._points] = np.arange(self.vocab_size, dtype=np.int32)
        return table

    def encode(self, text: str) -> NDArray[Any]:
        """Return the tokens of `text` [n] as uint8, uint16 or int32, the smallest that fits.

        Raises DataError that names characters outside the alphabet and where they stand.
        """
        points = code_points(text)
        if points.size and int(points.max()) >= len(self._table):
            self._refuse(text)
        ids = self._table[points]
        if ids.size and int(ids.min()) < 0:
            self._refuse(text)
        return ids.astype(self.dtype)

    def decode(self, ids: Any) -> str:
        """Return the text of tokens `ids` [n]; raises DataError for a number that is no token."""
        tokens = _tokens(ids, self.vocab_size)
        return self._points[tokens].tobytes().decode("utf-32-le", "surrogatepass")

    def _refuse(self, text: str) -> None:
        known = set(self.alphabet)
        first: dict[str, int] = {}
        for position, char in enumerate(text):
            if char not in known:
                first.setdefault(char, position)
        named = [f"{c!r} at position {p}" for c, p in list(first.items())[:_SHOWN]]
        more = f" and {len(first) - _SHOWN} more" if len(first) > _SHOWN else ""
        raise DataError(
            f"the vocabulary has no {', '.join(named)}{more}",
            where=f"vocabulary of {self.vocab_size} characters: {_printed(self.alphabet)}",
            fix="leave them out, or train with the byte vocabulary, which reads any text",
        )

    def to_json(self) -> str:
        """Return the alphabet as JSON."""
        return json.dumps({"kind": self.kind, "alphabet": self.alphabet})


class Bytes:
    """One token for each byte of the UTF-8 form: 256 tokens, no text is unknown.

    >>> Bytes().encode("é").tolist(), Bytes().decode([195, 169])
    ([195, 169], 'é')
    """

    kind = "byte"
    vocab_size = 256
    dtype = np.dtype(np.uint8)
    fingerprint = xxhash.xxh3_128_hexdigest(b'{"kind": "byte"}')

    def encode(self, text: str) -> NDArray[np.uint8]:
        """Return the UTF-8 bytes of `text` as uint8 [n]; raises DataError for half a surrogate."""
        try:
            # A terminal hands us undecodable bytes as surrogate escapes: they are bytes again.
            return np.frombuffer(text.encode("utf-8", "surrogateescape"), dtype=np.uint8)
        except UnicodeEncodeError as error:
            raise DataError(
                f"{text[error.start]!r} at position {error.start} is half a character",
                fix="remove it from the text",
            ) from None

    def decode(self, ids: Any) -> str:
        """Return the text of bytes `ids` [n]; bytes that are no UTF-8 become U+FFFD."""
        tokens = _tokens(ids, self.vocab_size)
        return tokens.astype(np.uint8).tobytes().decode("utf-8", "replace")

    def to_json(self) -> str:
        """Return the kind as JSON; there is nothing else to know."""
        return json.dumps({"kind": self.kind})


def tokenizer_from_json(text: str, where: str | None = None) -> Tokenizer:
    """Return the tokenizer that `to_json` wrote; raises DataError when it is none.

    `where` is what the message points at, usually the name of the file.

    >>> tokenizer_from_json(Characters("ab").to_json()).vocab_size
    2
    """
    try:
        value = json.loads(text)
        if value["kind"] == "byte":
            return Bytes()
        if value["kind"] == "char":
            return Characters(value["alphabet"])
    except (ValueError, KeyError, TypeError):
        pass
    if '"BPE"' in text:
        from surefoot.data.bpe import BPE  # the library that reads it is needed for nothing else

        return BPE(text, where or "tokenizer.json")
    raise DataError(
        "this is no tokenizer that we know",
        where=where or text[:60],
        fix="missing: surefoot resume RUN writes it anew; damaged: delete it first; newer: update",
    )


def _tokens(ids: Any, vocab_size: int) -> NDArray[Any]:
    tokens = np.asarray(ids).reshape(-1)
    if not tokens.size:
        return np.zeros(0, dtype=np.int64)
    if tokens.dtype.kind not in "iu" or tokens.min() < 0 or tokens.max() >= vocab_size:
        raise DataError(
            f"tokens must be whole numbers from 0 to {vocab_size - 1}",
            where=f"{tokens.dtype} from {tokens.min()} to {tokens.max()}",
            fix="decode with the tokenizer that encoded them",
        )
    return tokens


def _printed(alphabet: str) -> str:
    text = repr(alphabet)
    return text if len(text) <= 120 else text[:117] + "..."
