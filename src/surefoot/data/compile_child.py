"""Say of pieces of Python whether they compile. Runs as a process of its own; executes none.

Started by compile_rate.py with this file's path, without site packages, in a process that may use
one gigabyte and some seconds. Reads a line of JSON for each piece, writes one for each verdict.
"""

from __future__ import annotations

import io
import json
import resource
import sys
import tokenize
from contextlib import suppress
from typing import Any, NamedTuple

__all__ = ["READY", "Line", "compiles", "judge", "limit", "lines_of", "main", "whole_lines"]

READY = "ready"
_LIMITS = {resource.RLIMIT_AS: 1 << 30, resource.RLIMIT_CPU: 10, resource.RLIMIT_CORE: 0}
_HANDLERS = ("except", "finally")
_FORBIDDEN = ("exec", "open", "import", "os.", "socket.", "subprocess.", "ctypes.")


def limit() -> None:
    """Take away what judging needs none of."""
    for what, most in _LIMITS.items():
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with suppress(ValueError):  # macOS knows no limit of memory: that of time remains
            resource.setrlimit(what, (most, most))
    compile("x = 1", "<warm>", "exec")  # whatever compiling imports comes before the hook

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_FORBIDDEN):
            raise PermissionError(event)

    sys.addaudithook(refuse)


def compiles(source: str) -> bool:
    """Whether Python takes `source`; nothing of it runs."""
    try:
        compile(source, "<piece>", "exec", dont_inherit=True)
    except Exception:  # SyntaxError, ValueError, RecursionError, MemoryError, OverflowError
        return False
    return True


def lines_of(source: str, first: int) -> tuple[list[Line], Line | None, bool]:
    """Return the whole logical lines from row `first` on.

    The second answer is the line that the end of the text cuts off, the third whether something
    cannot be read that more text would not mend.
    """
    found: list[Line] = []
    start: tokenize.TokenInfo | None = None
    end = ""
    skipped = (tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    last = source.count("\n") + 1
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.NEWLINE:
                if not token.string:  # the end of the text, and not of the line
                    break
                if start is not None and start.start[0] >= first:
                    found.append(_line(start, token.start[0], end))
                start = None
            elif token.type not in skipped:
                start, end = start or token, token.string
    except tokenize.TokenError as error:
        row = error.args[1][0] if len(error.args) > 1 else 0
        return found, _half(start, first), "EOF" not in str(error) and row < last
    except SyntaxError as error:  # such as a dedent to nowhere
        return found, None, (error.lineno or 0) < last
    return found, _half(start, first), False


class Line(NamedTuple):
    """A logical line: where it begins, its last row, its first word, whether it opens a block."""

    column: int
    last: int
    word: str
    opens: bool


def _line(start: tokenize.TokenInfo, last: int, end: str) -> Line:
    return Line(start.start[1], last, start.string, end == ":")


def _half(start: tokenize.TokenInfo | None, first: int) -> Line | None:
    return _line(start, first, "") if start is not None and start.start[0] >= first else None


def whole_lines(lines: list[Line], column: int, next_at: int | None) -> list[Line]:
    """Return `lines` without the statement, or the clause of it, that may go on after them.

    Statements begin at `column`; so does the next line, cut off itself, where `next_at` says so.
    A try is kept from its first handler on.
    """
    heads, handled = [0], True
    for i, line in enumerate(lines):
        if line.column == column:
            if handled or line.word not in _HANDLERS:
                heads.append(i)
            handled = line.word != "try" and (handled or line.word in _HANDLERS)
    if next_at == column and handled:
        head = len(lines)
    else:
        head = heads[-1]
        if lines and head == len(lines) - 1 and not lines[head].opens:
            head += 1
    while head and lines[head - 1].word == "@":
        head -= 1
    return lines[:head]


def judge(prefix: str, text: str, column: int, whole: bool) -> dict[str, bool]:
    """Judge a completion of a function body that begins at `column`.

    `whole` says that the model ended by itself. `cut` is the verdict on what stands before the
    end of the function, or where there is none, before the last statement, which may be half.
    """
    source = prefix + text + ("\n" if whole else "")
    rows = source.split("\n")
    inside, half, broken = lines_of(source, prefix.count("\n") + 2)
    over = next((i for i, line in enumerate(inside) if line.column < column), None)
    if over is None and half is not None and half.column < column:
        over = len(inside)
    if over is not None:
        inside = inside[:over]
    elif not whole:
        inside = whole_lines(inside, column, half.column if half is not None else None)
    usable = bool(inside) and (over is not None or not broken)
    kept = "\n".join(rows[: inside[-1].last]) + "\n" if usable else ""
    return {
        "as_is": compiles(source),
        "cut": bool(kept) and compiles(kept),
        "ended": whole or over is not None,
        "empty": not text.strip(),
    }


def main() -> None:
    """Say that all is ready, then judge what comes in, until nothing does."""
    limit()
    sys.stdout.write(READY + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        told = json.loads(line)
        try:
            verdict = judge(told["prefix"], told["text"], told["column"], told["whole"])
        except Exception:  # of the judge itself, in a piece made to break it
            verdict = {"as_is": False, "cut": False, "ended": False, "empty": False}
        sys.stdout.write(json.dumps(verdict) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
