"""Say of pieces of code whether a grammar takes them. Runs as a process of its own; executes none.

Started by parse_rate.py with this file's path and the folders where its parent found the grammars,
in a process that may use one gigabyte and some seconds. Reads a line of JSON for each piece, writes one for each verdict.
"""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

__all__ = ["judge", "limit", "main", "parser_for"]

_DEEP = 8  # blocks in each other that a piece may be cut off in
_BODIES = ("statement_block", "block", "compound_statement", "constructor_body")


def limit() -> None:
    """Take away what judging needs none of, as from the process that asks the compiler, and say ready."""
    spec = spec_from_file_location("compile_child", Path(__file__).with_name("compile_child.py"))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.limit()
    sys.stdout.write(module.READY + "\n")
    sys.stdout.flush()


def parser_for(module: str, function: str) -> Any:
    """Return a parser of the grammar that `module` carries."""
    import importlib

    from tree_sitter import Language, Parser

    return Parser(Language(getattr(importlib.import_module(module), function)()))


def judge(
    parser: Any, prefix: str, text: str, begin: int, closing: str, whole: bool
) -> dict[str, bool]:
    """Judge a completion of a function body that begins with the brace at byte `begin`.

    `closing` closes what is open around the function.
    """
    source, given = prefix + text, len(prefix.encode())
    body = _body(parser, source + closing, begin)
    end = None
    if body is not None and given < body.end_byte <= len(source.encode()):
        end = body.end_byte
    if end is not None:
        kept = source.encode()[:end].decode(errors="ignore")
    else:
        kept = _without_last(parser, source, begin, given, closing)
    return {
        "as_is": _parses(parser, source + closing),
        "cut": bool(kept) and _parses(parser, kept + closing),
        "ended": whole or end is not None,
        "empty": not text.strip(),
    }


def _without_last(parser: Any, source: str, begin: int, given: int, closing: str) -> str:
    """Return the text up to the last statement, which may be half, and the function closed; or nothing."""
    closed = (_body(parser, source + "\n}" * n + closing, begin) for n in range(1, _DEEP))
    body = next(filter(None, closed), None)
    inside = [] if body is None else [n for n in body.named_children if n.start_byte >= given]
    if len(inside) < 2:
        return ""
    return source.encode()[: inside[-1].start_byte].decode(errors="ignore") + "\n}"


def _body(parser: Any, source: str, begin: int) -> Any:
    """Return the block that the brace at byte `begin` opens, if the grammar sees one that is closed."""
    tree = parser.parse(source.encode())
    brace = tree.root_node.descendant_for_byte_range(begin, begin + 1)
    body = None if brace is None else brace.parent
    if body is None or body.type not in _BODIES or not body.children:
        return None
    last = body.children[-1]
    return body if last.type == "}" and not last.is_missing else None


def _parses(parser: Any, source: str) -> bool:
    return not parser.parse(source.encode()).root_node.has_error


def main(grammars: list[str]) -> None:
    """Judge what comes in, until nothing does; `grammars` are those that it may name."""
    parsers = {name: parser_for(*name.split(":")) for name in grammars}
    limit()
    for line in sys.stdin:
        told = json.loads(line)
        try:
            verdict = judge(
                parsers[told["grammar"]], told["prefix"], told["text"], told["begin"],
                told["closing"], told["whole"],
            )  # fmt: skip
        except Exception:  # of the judge itself, in a piece made to break it
            verdict = {"as_is": False, "cut": False, "ended": False, "empty": False}
        sys.stdout.write(json.dumps(verdict) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.path += json.loads(sys.argv[1])
    main(sys.argv[2:])
