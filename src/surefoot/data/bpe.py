"""Byte-level BPE: no text is unknown, and frequent words are one token.

Sennrich et al., "Neural machine translation of rare words with subword units" (2016), over bytes
as in GPT-2. The `tokenizers` library trains and encodes; its own JSON is the format, so the file
opens wherever that library does. Encoding words once and looking them up afterwards is about
five times as fast as the library on whole documents, with the same tokens.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from surefoot.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

__all__ = ["BOUNDARY", "BPE", "LEAST", "alone_digits", "train_bpe", "way_to_tokenizer"]

BOUNDARY = "<|endoftext|>"
_ENDS = (BOUNDARY, "</s>", "<|end_of_text|>", "<|im_end|>")  # what may stand between documents
LEAST = 257  # the boundary and all bytes

# Where one of these ends, a token of GPT-2's pattern ends: letters, digits or marks of ASCII that no
# other character follows which might belong to them, with the space before; else all up to a space;
# spaces. An apostrophe is no mark here, because "'s" is a token. Spaces are Unicode's White_Space,
# which is Python's \s without four control characters.
_SPACE, _OTHER = r"[^\S\x1c-\x1f]", r"[\S\x1c-\x1f]"
_ASCII = r"(?:[A-Za-z]++|[0-9]++|[!-&(-/:-@\[-`{-~][!-/:-@\[-`{-~]*+)(?![^\t\n\r -~])"
_WORDS = re.compile(rf" ?{_ASCII}| ?{_OTHER}+|{_SPACE}+(?!{_OTHER})|{_SPACE}+")
_REMEMBERED = 1 << 19  # words; about 80 MB
_OTHER_FORMS = {"vocab.json": "transformers", "tokenizer.model": "transformers with sentencepiece"}
_REWRITE = 'python -c "import sys, transformers as t; t.AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])"'


class BPE:
    """A trained byte-level BPE: a Tokenizer (see tokenizer.py) with a token between documents."""

    kind = "bpe"

    def __init__(self, text: str, where: str = "tokenizer.json") -> None:
        """Read the library's JSON. Raises DataError when it is no byte-level BPE."""
        self._text = text
        self._library, self.splits = _read(text, where)
        self.by_words = self.splits == "gpt-2"
        self.vocab_size: int = self._library.get_vocab_size()
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.int32)
        ends = (self._library.token_to_id(name) for name in _ENDS)
        self.boundary: int = next((end for end in ends if end is not None), -1)
        if self.boundary < 0:
            raise DataError(
                f"this tokenizer has none of {', '.join(_ENDS)}, one of which is to stand between "
                "documents", where=where, fix="add one to it, or leave data.tokenizer out",
            )  # fmt: skip
        self._known: dict[str, bytes] = {}

    @cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that name the vocabulary and its rules."""
        content = json.dumps(json.loads(self._text), sort_keys=True)
        return xxhash.xxh3_128_hexdigest(content.encode())

    def encode(self, text: str) -> NDArray[Any]:
        """Return the tokens of `text` [n] as uint16, or int32 for more than 65,536 tokens.

        A boundary that is spelled out in the text is text like any other. Raises DataError for
        half a character, which is how bytes that are no UTF-8 come from a terminal.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            what = f"what stands at position {error.start} is half a character"
            raise DataError(what, fix="write it in UTF-8") from None
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """Return the tokens of each of `texts`; many short ones are much faster at once."""
        if not self.by_words:
            found = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
            return [np.array(one.ids, dtype=self.dtype) for one in found]
        listed = [_WORDS.findall(text) for text in texts]
        different = set().union(*listed)
        if len(self._known) + len(different) > _REMEMBERED:
            self._known.clear()
        self._learn(sorted(different.difference(self._known)))
        pieces = (b"".join(map(self._known.__getitem__, words)) for words in listed)
        return [np.frombuffer(piece, dtype=self.dtype) for piece in pieces]

    def decode(self, ids: Any) -> str:
        """Return the text of tokens `ids` [n]; bytes that are no UTF-8 become U+FFFD."""
        tokens = np.asarray(ids).reshape(-1)
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocab_size:
            raise DataError(
                f"tokens must be whole numbers from 0 to {self.vocab_size - 1}",
                where=f"from {tokens.min()} to {tokens.max()}",
                fix="decode with the tokenizer that encoded them",
            )
        found: str = self._library.decode(tokens.tolist(), skip_special_tokens=False)
        return found

    def token(self, name: str) -> int | None:
        """Return the number of the token called `name`, or None."""
        found: int | None = self._library.token_to_id(name)
        return found

    def begins_with(self, token: int) -> bool:
        """Whether the file says that texts begin with this token."""
        return self._library.encode("").ids[:1] == [token]

    def to_json(self) -> str:
        """Return the library's JSON."""
        return self._text

    def _learn(self, words: list[str]) -> None:
        if not words:
            return
        ids = self._library.encode_batch_fast(words, add_special_tokens=False)
        for word, found in zip(words, ids):
            self._known[word] = np.array(found.ids, dtype=self.dtype).tobytes()


def train_bpe(texts: Iterable[str], vocab_size: int) -> BPE:
    """Learn a vocabulary of at most `vocab_size` tokens: the boundary, all bytes, merges.

    The same texts give the same tokens, on any number of cores. It is smaller than asked where the
    texts have no pair left that occurs twice.
    """
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max(LEAST, vocab_size), min_frequency=2, show_progress=False,
        special_tokens=[BOUNDARY], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    library.train_from_iterator(_pieces(texts), trainer)
    return BPE(library.to_str())


def way_to_tokenizer(folder: Path, instead: str) -> str | None:
    """Say how a folder with a vocabulary in another form comes to a tokenizer.json.

    One of characters never does: what to do `instead` depends on who asks.
    """
    if (folder / "vocabulary.json").is_file():
        return f"its vocabulary is one of characters: {instead}"
    for name, packages in _OTHER_FORMS.items():
        if (folder / name).is_file():
            return f"{packages} can write one from {name}: {_REWRITE} {shlex.quote(str(folder))}"
    return None


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """Cut at line ends: the library counts words faster in pieces that fit a cache."""
    for text in texts:
        yield from text.splitlines(keepends=True)


def alone_digits() -> Any:
    """Return how SmolLM splits texts: as GPT-2 does, but that each digit stands alone."""
    from tokenizers import pre_tokenizers as ways

    return ways.Sequence(
        [ways.Digits(individual_digits=True), ways.ByteLevel(add_prefix_space=False)]
    )


def _read(text: str, where: str) -> tuple[Library, str | None]:
    """Return the tokenizer, and how it splits by llama.cpp's name for that: gpt-2, smollm or None."""
    from tokenizers import Tokenizer as Library
    from tokenizers.pre_tokenizers import ByteLevel

    try:
        library = Library.from_str(text)
        told = json.loads(text)
        usual = ByteLevel(add_prefix_space=False)
        known = {
            way.__getstate__(): name for way, name in ((usual, "gpt-2"), (alone_digits(), "smollm"))
        }
        if told["model"]["type"] != "BPE":
            raise DataError("this tokenizer is no BPE", where=where, fix="leave data.tokenizer out")
        library.encode_special_tokens = True
        way = library.pre_tokenizer
        plain = way is not None and told["normalizer"] is None
        return library, known.get(way.__getstate__()) if plain else None
    except DataError:
        raise
    except Exception as error:  # the library raises nothing more exact
        raise DataError(
            f"no tokenizer: {error}", where=where, fix="give a tokenizer.json that is whole"
        ) from None
