"""`surefoot compare A B [C...]`: what differs first, then who is better, and by how much noise."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from surefoot.cli.folded import room
from surefoot.cli.options import parser, print_json
from surefoot.errors import RunError
from surefoot.track.compare import Comparison, compare
from surefoot.track.folder import find, runs_dir
from surefoot.track.text import clean
from surefoot.track.versus import document, results, write

__all__ = ["run"]

GAP = "   "
WIDEST = 40  # columns of one value in a table
Row = tuple[str, Sequence[str], Sequence[int]]  # label, cells, places of the best


def run(verb: str, argv: list[str]) -> int:
    """Run the verb and return its exit code."""
    own = parser("compare", "Compare runs: what differs, and what came of it.")
    own.add_argument("run", nargs="+", help="names, numbers, prefixes or `last`; two or more")
    own.add_argument("--all", action="store_true", help="also the settings that are equal")
    own.add_argument("--out", metavar="DIR", help="where page and picture go (RUNS/compare)")
    options = own.parse_args(argv)
    runs = runs_dir(options.runs)
    found = [find(runs, name) for name in options.run]
    try:
        made = compare(found)
    except OSError as error:  # deleted meanwhile
        what = f"cannot read a run: {error.strerror}"
        raise RunError(what, where=str(error.filename or runs), fix="surefoot runs") from error
    written = _write(made, Path(options.out or runs / "compare"), options.json and not options.out)
    if options.json:
        print_json({**document(made), **({"page": str(written[0])} if written else {})})
        return 0
    for line in _screen(made, options.all):
        print(line)
    if written:
        print(f"\nlook   {written[0]}\n       {written[1]}")
    return 0


def _write(made: Comparison, folder: Path, skip: bool) -> tuple[Path, Path] | None:
    if skip:
        return None
    try:
        return write(made, folder)
    except OSError as error:
        print(f"note: no page was written to {folder}: {error.strerror}", file=sys.stderr)
        return None


def _screen(made: Comparison, everything: bool) -> Iterator[str]:
    names = list(dict.fromkeys(column.run.name for column in made.columns))
    yield "what differs"
    rows: list[Row] = []
    for group, found in groupby(made.differences, key=lambda difference: difference.group):
        for difference in found:
            label = (
                f"{group}: {difference.name}" if group not in ("", "settings") else difference.name
            )
            cells = ["-" if value is None else clean(value) for value in difference.values]
            rows.append((label, cells, ()))
    yield from _table(names, rows) if rows else ["  nothing"]
    if everything:
        yield "\nequal settings"
        yield from (clean(f"  {key} {value}") for key, value in made.equal.items())
    else:
        yield f"equal: {len(made.equal)} settings (--all shows them)"
    yield "\nresults"
    lines = results(made)
    yield from _table(
        [group.name for group in made.groups],
        [(clean(x.label), [*map(clean, x.cells)], x.best) for x in lines],
    )
    if made.notes:
        yield ""
        yield from map(clean, made.notes)


def _table(heads: Sequence[str], rows: Sequence[Row]) -> Iterator[str]:
    """Yield a table, or one line a value where the terminal is too narrow for it."""
    heads = [clean(head) for head in heads]
    first = max(len(label) for label, _, _ in rows)
    shown = [[_short(cell) for cell in cells] for _, cells, _ in rows]
    widths = [
        max(len(head), *(len(cells[place]) + 1 for cells in shown))
        for place, head in enumerate(heads)
    ]
    if 2 + first + sum(len(GAP) + width for width in widths) > room():
        width = max(map(len, heads))
        for label, cells, best in rows:
            yield f"  {label}"
            for place, (head, cell) in enumerate(zip(heads, cells, strict=True)):
                yield f"    {head:<{width}}  {_starred(cell, place in best)}"
        return
    cells = GAP.join(head.ljust(width) for head, width in zip(heads, widths, strict=True))
    yield f"  {'':<{first}}{GAP}{cells}".rstrip()
    for (label, _, best), texts in zip(rows, shown, strict=True):
        line = GAP.join(
            _starred(text, place in best, width)
            for place, (text, width) in enumerate(zip(texts, widths, strict=True))
        )
        yield f"  {label:<{first}}{GAP}{line}".rstrip()


def _short(text: str) -> str:
    return text if len(text) <= WIDEST else f"{text[: WIDEST // 2 - 1]}…{text[-WIDEST // 2 :]}"


def _starred(text: str, best: bool, width: int = 0) -> str:
    body = f"{text}*" if best else text
    painted = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return f"\x1b[32m{body:<{width}}\x1b[0m" if best and painted else f"{body:<{width}}"
