"""Lines that are broken between words where the terminal ends, also while they are being written."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from itertools import chain

__all__ = ["folded", "hanging", "room"]


def room() -> int:
    """Return the columns of the terminal; where there is none, so many that nothing is broken."""
    return shutil.get_terminal_size((200, 24)).columns if sys.stdout.isatty() else 10_000


def hanging(line: str, indent: int) -> str:
    """Return `line` as it fits the terminal, what is carried over indented."""
    return textwrap.fill(
        line, room(), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )


def folded(pieces: Iterable[str], width: int) -> Iterator[str]:
    """Yield a text that comes in pieces, in lines of up to `width` columns.

    A word is held back until it is whole, or as wide as a line. A blank that has no room is left out.
    """
    from rich.cells import cell_len

    column, word = 0, ""
    for letter in chain(chain.from_iterable(pieces), ("",)):  # the last one is the end
        if letter and not letter.isspace() and cell_len(word + letter) <= width:
            word += letter
            continue
        if column and column + cell_len(word) > width:
            yield "\n"
            column = 0
        yield word
        column += cell_len(word)
        word = "" if letter.isspace() else letter
        if letter == "\n":
            yield letter
            column = 0
        elif letter.isspace() and column < width:
            yield letter
            column += 1
