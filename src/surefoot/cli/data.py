"""surefoot data: the texts that need no file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from surefoot.cli.options import Parser
from surefoot.data.corpora import DEFAULT, Corpus, corpora, get
from surefoot.data.fetch import cache_dir
from surefoot.errors import DataError

__all__ = ["run"]


def run(verb: str, argv: list[str]) -> int:
    """Answer `surefoot data list` and `surefoot data get NAME`; return the exit code.

    Raises DataError for an unknown text, one that cannot be reached, or one that is damaged.
    """
    asked = _parser(verb).parse_args(argv)
    if asked.action == "get":
        _get(asked.name, asked.json)
    else:
        _list(asked.json)
    return 0


def _parser(verb: str) -> Parser:
    parser = Parser(
        f"surefoot {verb}",
        description="Texts that need no file of yours. Train on your own with --path.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="list | get NAME")
    show = actions.add_parser("list", help="what there is, its licence, and what is here")
    fetch = actions.add_parser("get", help="download one now, for use offline")
    fetch.add_argument("name", metavar="NAME", help=", ".join(corpora()))
    for action in (show, fetch):
        action.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _get(name: str, as_json: bool) -> None:
    found = get(name)
    about = {**_facts(found.corpus), "origin": found.origin}
    if as_json:
        print(json.dumps(about, indent=2))
        return
    corpus, how = found.corpus, {"download": "downloaded", "cache": "was here already"}
    print(f"{name}: {how.get(found.origin, 'made')}, from {corpus.source}; {corpus.licence}")
    print(found.path)


def _list(as_json: bool) -> None:
    facts = [_facts(corpus) for corpus in corpora().values()]
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    rows = [("NAME", "CHARACTERS", "HERE", "LICENCE", "WHAT")]
    for fact in facts:
        size = f"{fact['characters']:,}" if fact["characters"] else "varies"
        name = fact["name"] + (" *" if fact["default"] else "")
        rows.append((name, size, fact["here"], fact["licence"], fact["summary"]))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[4]]).rstrip())
    print(f"\n* the default.  Cache: {cache_dir()}  (SUREFOOT_CACHE)")


def _facts(corpus: Corpus) -> dict[str, Any]:
    path: Path | None = None
    try:
        path = corpus.cached(cache_dir())
        here = "yes" if path else "no"
    except DataError:
        here = "damaged"
    return {
        "name": corpus.name,
        "summary": corpus.summary,
        "licence": corpus.licence,
        "source": corpus.source,
        "characters": corpus.characters,
        "sha256": corpus.sha256,
        "default": corpus.name == DEFAULT,
        "here": here,
        "path": str(path) if path else None,
    }
