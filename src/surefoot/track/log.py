"""`log.txt`: what a run said, with times; bounded, because a run may talk for weeks.

`Record.note` is the one way to say something. It writes here, shows it where a person looks, and
passes it to Python's logger `surefoot`, for programs that collect what their parts log. This
package adds no handler to that logger and changes nobody's.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from surefoot.track.text import clean

__all__ = ["Entry", "Log", "parse_entry", "read_log"]

LIMIT = 1_000_000  # bytes of one file
OLD = 3  # files kept besides: log.1.txt (newest) to log.3.txt
INDENT = " " * 8  # of the further lines of an entry
_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (info|warning) +(\d+)  (.*)")
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING}
_logger = logging.getLogger("surefoot")
_logger.addHandler(logging.NullHandler())  # else Python would print warnings by itself


@dataclass(frozen=True)
class Entry:
    """One thing said: local time, level, the process (segment) that said it, text."""

    time: str
    level: str
    segment: int
    text: str


class Log:
    """Appends lines `2026-11-21 03:40:05 warning  2  text`; a disk that refuses is no error.

    A warning said again is written the second, fourth, eighth time, and so on, with its count.
    """

    def __init__(self, path: Path, segment: int = 0, limit: int = LIMIT) -> None:
        self.path, self._segment, self._limit = path, segment, limit
        self._file = path.open("ab", buffering=0)
        self._said: dict[str, int] = {}  # warnings, and how often

    def write(self, text: str, level: str) -> bool:
        """Append a text; return whether it is new, and not a warning said before."""
        times = 1
        if level == "warning":
            times = self._said[text] = self._said.get(text, 0) + 1
            if times & (times - 1):
                return False
        again = f" (said {times} times)" if times > 1 else ""
        _logger.log(_LEVELS[level], "%s%s", text, again)
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        body = clean(text + again).replace("\n", "\n" + INDENT)
        with contextlib.suppress(OSError):
            line = f"{stamp} {level:<8} {self._segment}  {body}\n"
            self._file.write(line.encode("utf-8", "replace"))
            if self._file.tell() > self._limit:
                self._rotate()
        return times == 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _rotate(self) -> None:
        for number in range(OLD, 0, -1):
            older = self.path.with_name(f"log.{number}.txt")
            newer = self.path.with_name(f"log.{number - 1}.txt") if number > 1 else self.path
            if newer.exists():
                newer.replace(older)
        self._file.close()
        self._file = self.path.open("ab", buffering=0)


def parse_entry(line: str) -> Entry | None:
    """Return the entry that a line begins; None: it goes on with the one before, or is torn.

    >>> parse_entry("2026-11-21 03:40:05 info     2  going on\\n")
    Entry(time='2026-11-21 03:40:05', level='info', segment=2, text='going on')
    """
    match = _LINE.fullmatch(line.rstrip("\n"))
    return Entry(match[1], match[2], int(match[3]), match[4]) if match else None


def read_log(path: Path) -> Iterator[Entry]:
    """Yield the entries of a `log.txt` and its older files, oldest first; torn lines are left out."""
    entry: Entry | None = None
    for number in range(OLD, -1, -1):
        file = path.with_name(f"log.{number}.txt") if number else path
        with (
            contextlib.suppress(FileNotFoundError),
            file.open(encoding="utf-8", errors="replace") as f,
        ):
            for line in f:
                if found := parse_entry(line):
                    if entry is not None:
                        yield entry
                    entry = found
                elif entry is not None and line.startswith(INDENT):
                    text = f"{entry.text}\n{line[len(INDENT) :].rstrip()}"
                    entry = Entry(entry.time, entry.level, entry.segment, text)
    if entry is not None:
        yield entry
