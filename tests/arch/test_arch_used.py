"""Whatever is written is used: a function that only its tests call does nothing for anybody."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src" / "surefoot").rglob("*.py"))
READERS = [  # what users read and run counts as use, tests and benchmarks do not
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.py")),
    ROOT / "README.md",
]
WORD = re.compile(r"\b[A-Za-z_]\w+\b")


def defined(tree: ast.AST) -> Iterator[str]:
    """Yield names of functions and classes that must be called by name: not those that a
    decorator hands over, nor methods of a class with a base, which may override.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if not node.decorator_list and not node.name.startswith("__"):
                yield node.name
            if isinstance(node, ast.ClassDef) and node.bases:
                continue
        yield from defined(node)


def test_nothing_stands_unused() -> None:
    texts = {path: path.read_text() for path in (*SOURCES, *READERS)}
    used = Counter(word for text in texts.values() for word in WORD.findall(text))
    unused = []
    for path in SOURCES:
        exported = Counter(re.findall(r'"(\w+)"', texts[path]))
        for name in defined(ast.parse(texts[path])):
            if used[name] - 1 - exported[name] <= 0:
                unused.append(f"{path.relative_to(ROOT)}: {name}")
    assert unused == []
