"""An old configuration file in today's form, with its comments."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from surefoot.config.fields import Given, leaves
from surefoot.config.files import scalar
from surefoot.config.legacy import is_old
from surefoot.config.names import LEFT_OUT
from surefoot.config.place import Document, Opaque, comment_of
from surefoot.config.resolve import Layer, gather
from surefoot.errors import ConfigError

__all__ = ["migrate"]

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass
class _Item:
    """One entry of the old file with the comments before and behind it."""

    line: int
    end: int
    text: str  # `name: value`, without its section
    section: str | None  # None: left out
    before: list[str] = field(default_factory=list)
    behind: str = ""


def migrate(document: Document, schema: type[BaseModel]) -> str | None:
    """Return `document` as YAML with today's names and sections, or None when it already is.

    Comments stay with the setting that they stand above or behind; what has no counterpart today
    becomes a comment with the reason. Raises ConfigError for entries that mean nothing.
    """
    layer = Layer()
    gather(document, schema, layer)
    if layer.problems:
        raise ConfigError(layer.problems)
    if document.form in ("yaml", "yml") and not layer.notes:
        return None
    items = _items(document, layer)
    header, footer = _attach_comments(document, items)
    lines = header
    order = dict.fromkeys(leaf.section for leaf in leaves(schema).values())
    for section in order:
        inside = [item for item in items if item.section == section]
        if inside:
            lines += [f"{section}:", *(line for item in inside for line in _written(item, "  "))]
    for item in items:
        if item.section is None:
            lines += _written(item, "")
    return "\n".join([*lines, *footer]) + "\n"


def _items(document: Document, layer: Layer) -> list[_Item]:
    items = [_item(document, path, given) for path, given in layer.values.items()]
    for name, value in document.data.items():
        spot = document.spot((name,))
        if is_old(name) and not any(item.line == spot.value[0] for item in items):
            reason = LEFT_OUT.get(name, "changes nothing")
            text = f"# left out: {name}: {scalar(_plain(value))} ({reason})"
            items.append(_Item(spot.key[0], spot.end or spot.key[0], text, None))
    return sorted(items, key=lambda item: item.line)


def _item(document: Document, path: str, given: Given) -> _Item:
    line = int(given.source.rsplit(":", 2)[1])
    ends = [spot.end for spot in document.spots.values() if spot.value[0] == line]
    section, _, name = path.rpartition(".")
    number = given.text is not None and _NUMBER.fullmatch(given.text)
    value = given.text if number else scalar(given.value)
    return _Item(line, max([line, *ends]) if name else line, f"{name}: {value}", section)


def _plain(value: Any) -> Any:
    return value.text if isinstance(value, Opaque) else value


def _attach_comments(document: Document, items: list[_Item]) -> tuple[list[str], list[str]]:
    """Give each item the comments above and behind it; return those of the file's top and end."""
    lines = document.text.splitlines()
    header: list[str] = []
    waiting: list[str] = []
    taken = {number: item for item in items for number in range(item.line, item.end + 1)}
    for number, line in enumerate(lines, 1):
        comment = comment_of(line)
        item = taken.get(number)
        if item is None:
            waiting += [comment] if comment else []
            if not line.strip() and not header and number < min(taken, default=0):
                header, waiting = [*waiting, ""] if waiting else [], []
            continue
        item.before, waiting = item.before + waiting, []
        item.behind = item.behind or comment
    return header, waiting


def _written(item: _Item, indent: str) -> list[str]:
    behind = f"  {item.behind}" if item.behind else ""
    return [*(f"{indent}{comment}" for comment in item.before), f"{indent}{item.text}{behind}"]
