"""Hold the house small: lines of code per room against a budget, and no long file or function.

A line of code is one that holds a token which is not a comment or a docstring, so explaining
costs nothing. A budget is raised only together with a decision record in docs/adr.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "src" / "surefoot"
BUDGET = {
    "(top)": 810,
    "config": 2330,
    "data": 4550,
    "track": 4480,
    "ops": 1580,
    "nn": 2150,
    "engine": 4030,
    "engine/kit": 450,
    "engine/watch": 1045,
    "engine/auto": 1040,
    "engine/foresee": 920,
    "engine/ranks": 1790,
    "lab": 1270,
    "formats": 530,
    "recipes": 3190,
    "sweep": 1500,
    "cli": 4720,
}
FILE, FUNCTION = 400, 60  # lines of text of a file, lines of a function
SKIPPED = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


def code_lines(path: Path) -> int:
    """Count lines that hold code."""
    text = path.read_text(encoding="utf-8")
    docs: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                docs.update(range(value.lineno, (value.end_lineno or value.lineno) + 1))
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SKIPPED and token.type != tokenize.ENDMARKER:
            found.update(range(token.start[0], token.end[0] + 1))
    return len(found - docs)


def long_functions(path: Path) -> list[str]:
    """Name functions longer than the limit."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {length} lines (at most {FUNCTION})"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION
    ]


def room_of(path: Path) -> str:
    """Return the room of a file: a folder of the package, or one of its folders with a budget of its own."""
    parts = path.relative_to(ROOT).parts[:-1]
    inner = "/".join(parts[:2])
    return inner if inner in BUDGET else parts[0] if parts else "(top)"


def main() -> int:
    """Print the table and return 1 when something is over its budget."""
    used = dict.fromkeys(BUDGET, 0)
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        room = room_of(path)
        used[room] = used.get(room, 0) + code_lines(path)
        length = len(path.read_text(encoding="utf-8").splitlines())
        if length > FILE:
            wrong.append(f"{path.relative_to(ROOT)} has {length} lines (at most {FILE})")
        wrong += long_functions(path)
    for room, count in used.items():
        limit = BUDGET.get(room, 0)
        print(f"{room:<14}{count:>6} of {limit:>5} lines of code")
        if count > limit:
            wrong.append(f"{room} is over its budget of {limit} lines")
    print(f"{'all':<14}{sum(used.values()):>6} of {sum(BUDGET.values()):>5}")
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
