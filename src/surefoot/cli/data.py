"""surefoot data: the texts that need no file, and shards for elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from surefoot.cli.folded import hanging, room
from surefoot.cli.options import Parser, read
from surefoot.config.fields import Given
from surefoot.config.resolve import resolve
from surefoot.data.corpora import DEFAULT, Corpus, corpora, get
from surefoot.data.fetch import cache_dir
from surefoot.errors import DataError

__all__ = ["run"]


def run(verb: str, argv: list[str]) -> int:
    """Answer `surefoot data list`, `get NAME` and `shard --to URL`; return the exit code.

    Raises DataError for an unknown text, one that cannot be reached, or one that is damaged.
    """
    asked = _parser(verb).parse_args(argv)
    if asked.action == "shard":
        _shard(asked)
    elif asked.action == "get":
        _get(asked.name, asked.json)
    else:
        _list(asked.json)
    return 0


def _parser(verb: str) -> Parser:
    parser = Parser(
        f"surefoot {verb}",
        description="Texts that need no file of yours. Train on your own with --path.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="list | get NAME | shard")
    show = actions.add_parser("list", help="what there is, its licence, and what is here")
    fetch = actions.add_parser("get", help="download one now, for use offline")
    fetch.add_argument("name", metavar="NAME", help=", ".join(corpora()))
    write = actions.add_parser("shard", help="write tokens as shards to a folder, s3:// or http://")
    write.add_argument("--to", required=True, metavar="URL", help="an empty folder or prefix")
    text, group = "default: as `surefoot train gpt`", write.add_mutually_exclusive_group()
    group.add_argument("--corpus", metavar="NAME", help=f"documents by name; {text}")
    group.add_argument("--path", type=Path, help="your own: text, JSON Lines, a folder of them")
    write.add_argument("--preset", metavar="NAME", help="whose vocabulary and split count")
    write.add_argument("--val-path", type=Path, help="what is held out; default: a split of --path")
    write.add_argument("--test-path", type=Path, help="what `surefoot evaluate` measures beside it")
    write.add_argument("--val-ratio", type=float, metavar="SHARE", help=f"share held out; {text}")
    write.add_argument("--vocab-size", type=int, metavar="N", help=f"tokens to learn; {text}")
    write.add_argument("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json instead")
    write.add_argument("--text-field", metavar="NAME", help=f"of JSON Lines; {text}")
    write.add_argument("--bad-utf8", choices=("replace", "refuse"), help=text)
    write.add_argument(
        "--shard-size", type=read("bytes"), default="64MB", metavar="SIZE",
        help="bytes of a shard (default: 64MB)",
    )  # fmt: skip
    for action in (show, fetch, write):
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


_TEXT = (
    "corpus", "path", "val_path", "test_path", "val_ratio", "vocab_size", "tokenizer",
    "text_field", "bad_utf8",
)  # fmt: skip


def _shard(asked: Any) -> None:
    """Write shards of the documents that `surefoot train gpt` reads with the same flags."""
    from surefoot.data.manifest import publish
    from surefoot.recipes import gpt

    said = {name: getattr(asked, name) for name in _TEXT if getattr(asked, name) is not None}
    given = {f"data.{name}": Given(value, "command line") for name, value in said.items()}
    known = gpt.recipe
    config = resolve(
        known.name, known.config, known.presets, asked.preset, flags=given,
        default_preset=known.default_preset,
    ).config  # fmt: skip
    found = gpt.read(config)
    made, sent = publish(found, asked.to, asked.shard_size, gpt.Tokenising("writing shards"))
    shards = {side: len(some) for side, some in made.shards.items()}
    tokens = {side: counts.tokens for side, counts in made.sides.items()}
    if asked.json:
        about = {"to": asked.to, "digest": made.digest, "sent": sent}
        print(json.dumps({**about, "shards": shards, "tokens": tokens}, indent=2))
        return
    for side, count in shards.items():
        print(f"{side:<6} {tokens[side]:>14,} tokens in {count:,} shard{'s' * (count != 1)}")
    print(f"{asked.to}: {sent:,} bytes written" if sent else f"{asked.to}: all was there already")
    print(f"surefoot train gpt --shards {asked.to}")


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
    whole = sum(widths) + 8 + max(len(row[4]) for row in rows) <= room()
    for row in rows if whole else rows[1:]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        if whole:
            print("  ".join([*cells, row[4]]).rstrip())
            continue
        size = f"{row[1]} characters" if row[1] != "varies" else "size varies"
        here = "here" if row[2] == "yes" else row[2] if row[2] == "damaged" else "not here"
        for line in (f"{cells[0]}  {size}, {here}", f"  {row[4]}", f"  {row[3]}"):
            print(hanging(line, 4))
    print("\n" + hanging(f"* the default.  Cache: {cache_dir()}  (SUREFOOT_CACHE)", 2))


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
