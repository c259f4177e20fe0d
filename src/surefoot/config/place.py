"""Where things stand in a file, so that a message can point at them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from surefoot.errors import ConfigError, Problem

__all__ = ["Document", "Keys", "Opaque", "Place", "Spot", "comment_of"]

Keys = tuple[str, ...]
Place = tuple[int, int]  # line and column, counted from 1; (0, 0) is unknown


@dataclass(frozen=True)
class Spot:
    """Where a key and its value stand, and how the value was written."""

    key: Place = (0, 0)
    value: Place = (0, 0)
    text: str | None = None
    end: int = 0  # last line of the value


@dataclass(frozen=True)
class Opaque:
    """An expression of a Python file that is not a plain value."""

    text: str


@dataclass
class Document:
    """One file: its values as nested dictionaries, and where each stands."""

    name: str
    text: str
    data: dict[str, Any] = field(default_factory=dict)
    spots: dict[Keys, Spot] = field(default_factory=dict)
    form: str = "yaml"

    def spot(self, keys: Keys) -> Spot:
        """Return where `keys` stand, or where the nearest thing around them does."""
        while keys and keys not in self.spots:
            keys = keys[:-1]
        return self.spots.get(keys, Spot())

    def where(self, place: Place) -> str:
        """Return `file:line:column`."""
        return f"{self.name}:{place[0]}:{place[1]}" if place[0] else self.name

    def excerpt(self, place: Place) -> str | None:
        """Return the line of `place` with a caret under its column."""
        lines = self.text.splitlines()
        if not 0 < place[0] <= len(lines):
            return None
        line, column = lines[place[0] - 1].replace("\t", " "), place[1]
        if column > 90:
            line, column = "..." + line[column - 41 :], 44
        line = line if len(line) <= 110 else line[:107] + "..."
        number = str(place[0])
        return f"    {number} | {line}\n    {' ' * len(number)} | {' ' * (column - 1)}^"

    def problem(self, what: str, place: Place, fix: str | None = None) -> Problem:
        """Return a mistake that points at `place`."""
        return Problem(what, self.where(place), fix, self.excerpt(place))

    def fail(self, what: str, place: Place = (0, 0), fix: str | None = None) -> ConfigError:
        """Return the error for a file that cannot be read at all."""
        return ConfigError([self.problem(what, place, fix)])


def comment_of(line: str) -> str:
    """Return the comment at the end of a line of YAML, TOML or Python, with its `#`, or nothing.

    >>> comment_of('name: "a # b"  # why')
    '# why'
    """
    quote, escaped = "", False
    for index, char in enumerate(line):
        if quote:
            closing = char == quote and not escaped
            escaped = char == "\\" and quote == '"' and not escaped
            quote = "" if closing else quote
        elif char in "\"'":
            quote = char
        elif char == "#" and (index == 0 or line[index - 1].isspace() or line[index - 1] in ",]}"):
            return line[index:].rstrip()
    return ""
