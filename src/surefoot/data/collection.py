"""Documents to learn from with a BPE: found, split, tokenised once, and cut into windows.

collect(path or corpus, ...)       ->  Collection: tokens, tokenizer, what came from where
Collection.source(context)         ->  training windows in any order (a Source, see batch.py)
Part.windows(context, m)           ->  held-out windows in sequence, each token once
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from surefoot.data import hub
from surefoot.data.batch import Batch
from surefoot.data.bpe import BPE, train_bpe
from surefoot.data.corpora import find
from surefoot.data.documents import BadText, Reading, documents, find_documents
from surefoot.data.fetch import cache_dir, writing
from surefoot.data.files import TextFile
from surefoot.data.shards import Progress, Side, Survey, shards, survey
from surefoot.data.text import TextSource, windows
from surefoot.data.tokens import Tokens
from surefoot.errors import DataError

__all__ = ["Collection", "Part", "collect"]

_FORMAT = 1
_SAMPLE = 1 << 26  # bytes of text that a vocabulary is learned from
_ALL = 2.0  # above every rank
_SPLITS = {"train": "train", "valid": "val", "validation": "val", "val": "val", "test": "test"}
_SPLIT = re.compile(rf"(^|[._-])({'|'.join(_SPLITS)})([._-]|$)")


@dataclass(frozen=True)
class Part:
    """Tokens [start, stop) that are only looked at, and how much text they stand for.

    `wikitext` says that perplexity is usually given by word.
    """

    tokens: Tokens = field(repr=False)
    start: int
    stop: int
    side: Side
    wikitext: bool = False

    def windows(self, context: int, batch: int) -> Iterator[Batch]:
        """Yield windows in sequence, `batch` at a time (see `text.windows`)."""
        return windows(self.tokens, context, self.start, self.stop, batch)


@dataclass(frozen=True)
class Collection:
    """Documents as tokens: some to train on, some held out, and a test set where there is one."""

    name: str
    licence: str
    where: str
    tokenizer: BPE
    train: Side
    tokens: Tokens = field(repr=False)
    val: Part
    test: Part | None
    digest: str
    notes: tuple[str, ...] = ()

    def source(self, context: int) -> TextSource:
        """Return the training windows; raises DataError when they are none."""
        self._check(context)
        digest = f"{self.digest} {self.tokenizer.fingerprint}"
        return TextSource(self.tokens, context, 0, self.train.tokens, self.name, digest)

    def _check(self, context: int) -> None:
        sides = {"training": self.train.tokens, "held-out": self.val.stop - self.val.start}
        if not self.train.documents:
            raise DataError(
                f"data.path: all {self.val.side.documents:,} documents of {self.name} are held out",
                where="documents that begin alike stay on one side",
                fix="give others as well, or some to validate with: --val-path FILE",
            )
        for side, count in sides.items():
            if count <= context:
                raise DataError(
                    f"data.path: the {side} part of {self.name} has {count:,} tokens, and one "
                    f"window of context {context} takes {context + 1:,}",
                    fix="a smaller --context, or more text",
                )

    def describe(self) -> dict[str, Any]:
        """Return what the record of a run says about its data; plain JSON values."""
        sides = {"train": self.train, "val": self.val.side}
        if self.test:
            sides["test"] = self.test.side
        counts = {name: _told(side) for name, side in sides.items()}
        return {
            "name": self.name,
            "licence": self.licence,
            "where": self.where,
            "unit": "tokens",
            "vocab_size": self.tokenizer.vocab_size,
            "tokenizer": self.tokenizer.fingerprint,
            **counts,
            "notes": list(self.notes),
        }

    def describe_line(self) -> str:
        """Return one line for people: name, size, vocabulary, licence and origin."""
        train, val = self.train, self.val.side
        return (
            f"{self.name}: {train.documents + val.documents:,} documents, "
            f"{train.tokens:,} tokens to train on, {val.tokens:,} held out; "
            f"vocabulary {self.tokenizer.vocab_size:,}, "
            f"{train.size / max(1, train.tokens):.2f} bytes a token; {self.licence}; {self.where}"
        )


def _many(count: int) -> str:
    return "one document" if count == 1 else f"{count or 'no'} documents"


def _told(side: Side) -> dict[str, int]:
    return {"documents": side.documents, "bytes": side.size, "tokens": side.tokens}


def collect(
    path: Path | None,
    corpus: str,
    *,
    val_path: Path | None = None,
    test_path: Path | None = None,
    val_ratio: float = 0.01,
    vocab_size: int = 8192,
    tokenizer: Path | None = None,
    text_field: str = "text",
    bad_utf8: BadText = "replace",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Collection:
    """Return the documents at `path`, else those of `corpus` (see also hub.py), as tokens.

    Held out are the documents at `val_path`; else of files named like train, valid and test the
    latter two; else each document whose hash falls below `val_ratio`, and at least one. The
    vocabulary is learned from the training part, or read from the file `tokenizer`. Raises
    DataError with what is wrong with the text and what to do.
    """
    cache = cache or cache_dir()
    if path is None and hub.named(corpus):
        path, notes = hub.fetch(corpus, cache, text_field), []
        name, licence, where = corpus, "its own licence", "the Hugging Face hub"
    elif path is None:
        found = find(corpus, cache)
        path, notes = found.path, list(found.notes)
        name, licence, where = found.corpus.name, found.corpus.licence, found.corpus.source
    else:
        name, licence, where, notes = path.resolve().name, "your own text", str(path), []
    files, others, remarks = _parts(path, val_path, test_path)
    reading = Reading(text_field, bad_utf8)
    seen = survey(files, reading, cache)
    threshold = -1.0 if "val" in others else max(val_ratio, seen.least)
    if not seen.documents or ("val" not in others and seen.documents < 2):
        raise DataError(
            f"data.path: {name} has {_many(seen.documents)}, and some are to be held out",
            fix="give more text, or others to validate with: --val-path FILE",
        )
    bpe = (
        _given(tokenizer)
        if tokenizer
        else _learned(files, reading, seen, threshold, vocab_size, cache)
    )
    if not tokenizer and bpe.vocab_size < vocab_size:
        notes.append(f"the text has words for {bpe.vocab_size:,} tokens, not {vocab_size:,}")
    main = shards(files, reading, bpe, threshold, seen.size, cache, progress=progress)
    more: dict[str, Part] = {}
    for part, found_files in others.items():
        more[part], told = _whole(found_files, reading, bpe, cache, progress)
        remarks += [f"{part}: {remark}" for remark in told]
    val = more.get("val") or Part(
        main.tokens, main.train.tokens, main.train.tokens + main.held.tokens, main.held,
        seen.wikitext,
    )  # fmt: skip
    return Collection(
        name, licence, where, bpe, main.train, main.tokens, val, more.get("test"),
        main.digest, (*notes, *remarks, *seen.remarks),
    )  # fmt: skip


def _parts(
    path: Path, val_path: Path | None, test_path: Path | None
) -> tuple[list[TextFile], dict[str, list[TextFile]], list[str]]:
    """Return the files to train on, those of other parts by name, and remarks."""
    files, notes = find_documents(path)
    parts = {"train": files}
    before, own = _named(path.name)
    if path.is_file() and own == "train":
        for other in sorted(path.parent.iterdir()):
            start, part = _named(other.name)
            if start == before and part in ("val", "test") and other.is_file():
                parts.setdefault(part, find_documents(other)[0])
    elif path.is_dir():
        sorted_out: dict[str, list[TextFile]] = {}
        for file in files:
            sorted_out.setdefault(_named(Path(file.name).name)[1], []).append(file)
        if {"train", "val"} <= set(sorted_out) <= {"train", "val", "test"}:
            parts = sorted_out
    for part, given in (("val", val_path), ("test", test_path)):
        if given is not None:
            parts[part] = find_documents(given)[0]
    train = parts.pop("train")
    for part, found in sorted(parts.items()):
        notes.append(f"{part} is {', '.join(file.name for file in found[:3])}")
    return train, parts, notes


def _named(name: str) -> tuple[str, str]:
    """Return what stands before the name of a split, and that split; empty where there is none.

    >>> _named("wiki.valid.tokens"), _named("novel.txt")
    (('wiki', 'val'), ('', ''))
    """
    found = _SPLIT.search(name.lower())
    return (name[: found.start()], _SPLITS[found[2]]) if found else ("", "")


def _whole(
    files: list[TextFile], reading: Reading, bpe: BPE, cache: Path, progress: Progress | None
) -> tuple[Part, list[str]]:
    """Return all documents of `files` as a part that is only looked at, and what was changed in it."""
    fresh = Reading(reading.text_field, reading.bad_utf8)
    seen = survey(files, fresh, cache)
    made = shards(files, fresh, bpe, _ALL, seen.size, cache, progress=progress)
    told = [remark for remark in seen.remarks if not remark.startswith("cut into")]
    return Part(made.tokens, 0, made.held.tokens, made.held, seen.wikitext), told


def _given(path: Path) -> BPE:
    try:
        return BPE(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        fix = "--tokenizer with a tokenizer.json that you may read, or none, to learn one"
        raise DataError(f"data.tokenizer: cannot read {path}: {why}", fix=fix) from None


def _learned(
    files: Sequence[TextFile],
    reading: Reading,
    seen: Survey,
    threshold: float,
    vocab_size: int,
    cache: Path,
) -> BPE:
    """Return the vocabulary of the training part, learned now or before."""
    digests = [file.digest for file in files]
    parts = [_FORMAT, digests, reading.text_field, reading.bad_utf8, threshold, vocab_size]
    key = xxhash.xxh3_128_hexdigest(json.dumps(parts).encode())
    path = cache / "tokens" / f"tokenizer-{key}.json"
    try:
        return BPE(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, DataError):
        pass  # it can always be learned again
    bpe = train_bpe(_sample(files, reading, seen, threshold), vocab_size)
    with writing(path) as file:
        file.write(bpe.to_json().encode())
    return bpe


def _sample(
    files: Sequence[TextFile], reading: Reading, seen: Survey, threshold: float
) -> Iterator[str]:
    """Yield about _SAMPLE bytes of the training part, spread over all of it."""
    highest = threshold + (1 - threshold) * min(1.0, _SAMPLE / max(1, seen.size))
    fresh = Reading(reading.text_field, reading.bad_utf8)
    return (p.text for p in documents(files, fresh) if threshold < p.rank <= highest)
