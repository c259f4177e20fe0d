"""How often code that a model wrote in languages with braces is taken by a grammar.

A grammar of tree-sitter recovers from mistakes and knows little of a language, so this is an upper
bound: what parses need not compile. It is asked of a limited process; nothing is executed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from surefoot.data.compile_rate import Completion, Prompt, Verdict, asked_of, drawn, verdicts
from surefoot.data.parse_child import parser_for
from surefoot.data.repository import CodeFile

__all__ = ["GRAMMARS", "brace_prompts", "judge_parse", "missing_grammars"]

# Language -> module of its wheel, and the function in it.
GRAMMARS = {
    "c": "tree_sitter_c:language",
    "cpp": "tree_sitter_cpp:language",
    "go": "tree_sitter_go:language",
    "java": "tree_sitter_java:language",
    "javascript": "tree_sitter_javascript:language",
    "rust": "tree_sitter_rust:language",
    "typescript": "tree_sitter_typescript:language_typescript",
}
_TSX = "tree_sitter_typescript:language_tsx"
_BODIES = ("statement_block", "block", "compound_statement", "constructor_body")
_HEADS = ("function", "method", "constructor")


def missing_grammars(languages: Iterable[str]) -> list[str]:
    """Return which of `languages` could be judged, were their grammars installed."""
    known = sorted({name for name in languages if name in GRAMMARS})
    return [name for name in known if not _installed(name)]


def _installed(language: str) -> bool:
    module = GRAMMARS[language].partition(":")[0]
    return find_spec("tree_sitter") is not None and find_spec(module) is not None


def _folders(modules: Iterable[str]) -> list[str]:
    """Return the folders that hold `modules`: a process of its own would not look in all of them."""
    found = (find_spec(module) for module in modules)
    origins = (spec.origin for spec in found if spec is not None and spec.origin)
    return list(dict.fromkeys(str(Path(origin).parents[1]) for origin in origins))


def brace_prompts(files: Iterable[CodeFile], most: int, seed: int = 0) -> list[Prompt]:
    """Return up to `most` functions of files in languages with a grammar, four of a file.

    Files that the grammar does not take as they are give none.
    """
    parsers: dict[str, Any] = {}
    found: list[Prompt] = []
    for file in files:
        if file.language in GRAMMARS and _installed(file.language):
            grammar = _grammar(file)
            if grammar not in parsers:
                parsers[grammar] = parser_for(*grammar.split(":"))
            found += drawn(_of(file, grammar, parsers[grammar]), seed, None)
    return drawn(found, seed, most)


def _grammar(file: CodeFile) -> str:
    return _TSX if PurePosixPath(file.name).suffix == ".tsx" else GRAMMARS[file.language]


def _of(file: CodeFile, grammar: str, parser: Any) -> Iterator[Prompt]:
    source = file.text.encode()
    root = parser.parse(source).root_node
    waiting = [] if root.has_error else [(root, 0)]
    while waiting:
        node, depth = waiting.pop()
        body = node.child_by_field_name("body")
        if body is not None and _counts(node, body):
            head = source[: body.start_byte + 1].decode()
            line = node.start_point[0] + 1
            yield Prompt(
                file.name, line, head, 0, grammar=grammar, begin=body.start_byte, outer=depth
            )
        inside = depth + (bool(node.children) and node.children[0].type == "{")
        waiting += [(child, inside) for child in node.named_children]


def _counts(node: Any, body: Any) -> bool:
    """Whether it is a function with statements in it, beginning on the line after its brace."""
    block = body.type in _BODIES and any(head in node.type for head in _HEADS)
    if not block or not body.named_children:
        return False
    first = body.named_children[0]
    return bool(first.start_point[0] > body.start_point[0])


def _closing(prompt: Prompt) -> str:
    """Return what closes the braces around the function; classes of C++ end with a semicolon."""
    return "\n" + ("};\n" if "cpp" in prompt.grammar else "}\n") * prompt.outer


def judge_parse(completions: Sequence[Completion]) -> list[Verdict]:
    """Return a verdict on each. A piece that the process does not survive does not parse."""
    child = Path(__file__).with_name("parse_child.py")
    grammars = sorted({c.prompt.grammar for c in completions})
    folders = json.dumps(_folders(["tree_sitter", *(g.partition(":")[0] for g in grammars)]))
    command = ["-I", "-W", "ignore", str(child), folders, *grammars]

    def told(c: Completion) -> dict[str, Any]:
        prompt = c.prompt
        return {
            "grammar": prompt.grammar, "prefix": prompt.prefix, "text": c.text,
            "begin": prompt.begin, "closing": _closing(prompt), "whole": c.whole,
        }  # fmt: skip

    return verdicts(completions, lambda rest: asked_of(command, map(told, rest)))
