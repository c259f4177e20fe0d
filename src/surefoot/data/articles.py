"""Encyclopedic documents from what packages ship. Pure functions: text in, documents out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from surefoot.data.bpe import BOUNDARY

__all__ = ["articles", "definitions", "joined", "leads"]

_ARTICLE = re.compile(r"<doc [^>]*>\n(.*?)</doc>", re.DOTALL)
_SHORT = 200  # characters; shorter articles are titles and lists without their items


def leads(content: bytes) -> Iterator[str]:
    """Yield title and first section of articles, from JSON: title -> {"extract": ...}.

    >>> list(leads(b'{"Ant": {"title": "Ant", "extract": "Ants are insects."}}'))
    ['Ant\\n\\nAnts are insects.']
    """
    for title, about in json.loads(content).items():
        text = about["extract"].replace("\u00a0", " ").strip()
        if text:
            yield f"{title}\n\n{text}"


def articles(content: bytes) -> Iterator[str]:
    """Yield whole articles, from blocks of `<doc ...>` as WikiExtractor writes them."""
    for found in _ARTICLE.finditer(content.decode()):
        text = found[1].replace("\u00a0", " ").strip()
        if len(text) >= _SHORT:
            yield text


def definitions(content: bytes) -> Iterator[str]:
    """Yield entries of a dictionary, from JSON: word -> {"pos": [{"definitions": ...}]}."""
    for word, about in json.loads(content).items():
        senses = list(_senses(about["pos"]))
        if senses:
            yield "\n".join([word, "", *senses])


def _senses(parts: Iterable[dict[str, object]]) -> Iterator[str]:
    for part in parts:
        kind = part["part_of_speech"]
        for sense in part["definitions"]:  # type: ignore[attr-defined]
            text = " ".join(sense["text"].split())
            examples = (" ".join(str(e).split()) for e in sense["examples"])
            if text:
                yield " ".join([f"({kind})" if kind else "", text, *examples]).strip()


def joined(documents: Iterable[str]) -> str:
    """Return one text, with the boundary between documents.

    >>> joined(["one", "two"])
    'one\\n<|endoftext|>\\ntwo\\n'
    """
    return f"\n{BOUNDARY}\n".join(documents) + "\n"
