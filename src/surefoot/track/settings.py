"""The settings in a run's `config.yaml` as rows of a table: field, value, source."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Setting", "read_settings", "value_of"]

_LINE = re.compile(
    r"^(?P<indent> *)(?P<key>[\w-]+):"
    r'(?: +(?P<value>"(?:[^"\\]|\\.)*"|[^#\s].*?))?'
    r"(?:\s+#\s?(?P<source>.*))?$"
)
_ASIDE = ("surefoot", "resolved")  # sections about the file and the machine, not the run


@dataclass(frozen=True)
class Setting:
    """One line of the table; `quiet`: a default that nobody asked for."""

    field: str
    value: str
    source: str

    @property
    def quiet(self) -> bool:
        """Whether the table may leave it out at first."""
        return self.source in ("", "default")


def read_settings(text: str) -> list[Setting]:
    """Return the leaves of a `config.yaml` as this project writes it; comments name the source.

    >>> read_settings("train:\\n  seed: 1  # flag --seed\\n")
    [Setting(field='train.seed', value='1', source='flag --seed')]
    """
    found: list[Setting] = []
    path: list[tuple[int, str]] = []  # (indent, key) of the sections around a line
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        indent = len(match["indent"])
        path = [level for level in path if level[0] < indent]
        if match["value"]:
            name = ".".join([*(key for _, key in path), match["key"]])
            found.append(Setting(name, match["value"], match["source"] or ""))
        else:
            path.append((indent, match["key"]))
    return [setting for setting in found if setting.field.partition(".")[0] not in _ASIDE]


def value_of(settings: list[Setting], field: str) -> str | None:
    """Return the text of one setting, or None."""
    return next((setting.value for setting in settings if setting.field == field), None)
