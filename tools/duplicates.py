"""Find code that was copied: six or more equal lines in a row, at two places of src/.

Lines are compared by their tokens, so that spacing, comments and docstrings do not hide a copy.
What repeats for good reasons does not count: imports, `__all__`, the parameters of a function (an
interface has many implementations) and lines of brackets alone.

    python tools/duplicates.py [FILE_OR_FOLDER ...] [--lines 6]
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "src"
LAYOUT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
}  # fmt: skip
BRACKETS = set("()[]{},:")

Place = tuple[Path, int]  # file, line
Lines = list[tuple[int, str]]  # line, its tokens


def code(path: Path) -> Lines:
    """Return the lines of a file that count, normalised, in order."""
    text = path.read_text(encoding="utf-8")
    left_out = set(_silent(ast.parse(text)))
    tokens: dict[int, list[str]] = defaultdict(list)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in LAYOUT and token.start[0] not in left_out:
            tokens[token.start[0]].append(token.string)
    counted = ((n, found) for n, found in sorted(tokens.items()) if not set(found) <= BRACKETS)
    return [(n, " ".join(found)) for n, found in counted]


def _silent(tree: ast.Module) -> Iterator[int]:
    """Yield the lines of imports, docstrings, parameters and `__all__`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from range(node.lineno + 1, node.body[0].lineno)
        imports = isinstance(node, ast.Import | ast.ImportFrom)
        doc = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        names = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        if imports or doc or names:
            yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)


def copies(files: dict[Path, Lines], least: int) -> Iterator[tuple[int, Place, Place]]:
    """Yield (number of lines, first place, second place) of each maximal copy."""
    seen: dict[tuple[str, ...], list[tuple[Path, int]]] = defaultdict(list)
    for path, lines in files.items():
        for start in range(len(lines) - least + 1):
            window = tuple(text for _, text in lines[start : start + least])
            for other, begun in seen[window]:
                found = _extend(files[other], begun, lines, start, same=other == path)
                if found >= least:
                    yield found, (other, files[other][begun][0]), (path, lines[start][0])
            seen[window].append((path, start))


def _extend(a: Lines, i: int, b: Lines, j: int, *, same: bool) -> int:
    """Count equal lines from i and j on; 0 inside a copy that began earlier, or overlaps itself."""
    if i and j and a[i - 1][1] == b[j - 1][1]:
        return 0
    length = 0
    while i + length < len(a) and j + length < len(b) and a[i + length][1] == b[j + length][1]:
        length += 1
    return min(length, j - i) if same else length


def main(argv: Sequence[str] | None = None) -> int:
    """Print the copies and return 1 when there is one."""
    own = argparse.ArgumentParser(description="Find code that was copied.")
    own.add_argument("paths", nargs="*", type=Path, default=[ROOT])
    own.add_argument("--lines", type=int, default=6, help="fewest equal lines that count (6)")
    options = own.parse_args(argv)
    given = [[path] if path.is_file() else path.rglob("*.py") for path in options.paths]
    paths = sorted({path for group in given for path in group})
    if not paths:
        own.error(f"no Python files in {', '.join(map(str, options.paths))}")
    found = list(copies({path: code(path) for path in paths}, options.lines))
    for length, (one, first), (other, second) in found:
        print(f"{length} equal lines: {one}:{first} and {other}:{second}")
    print(f"{len(found)} copies of {options.lines} or more lines in {len(paths)} files")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
