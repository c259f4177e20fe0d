"""A run's own `config.yaml`: every setting with its source, what each `auto` became, and back.

The file is complete on purpose: a run must not change when a default of tomorrow does. It can be
given with `-c` like any other; `resolved` is then left aside and decided anew for the machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from surefoot.config.documents import parse
from surefoot.config.fields import flatten
from surefoot.config.place import comment_of
from surefoot.config.resolve import FORMAT, Layer, check, gather, starting_values
from surefoot.config.schema import RunConfig
from surefoot.errors import ConfigError, Problem

__all__ = ["StoredConfig", "dump", "heading", "load_run_config", "scalar", "settings"]

_COLUMN = 34  # where comments begin
_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./+-]*( [A-Za-z0-9_./+-]+)*")
_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", ".inf", ".nan"}


class StoredConfig(NamedTuple):
    """What a run's `config.yaml` says."""

    config: Any
    sources: dict[str, str]
    pinned: dict[str, Any]
    recipe: str
    preset: str | None


def scalar(value: Any) -> str:
    """Return a value as YAML of versions 1.1 and 1.2 alike.

    >>> scalar(None), scalar(True), scalar(1e-5), scalar("bf16"), scalar("on"), scalar(("a", "b c"))
    ('null', 'true', '1.0e-05', 'bf16', '"on"', '[a, b c]')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(str(k))}: {scalar(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(scalar(v) for v in value) + "]"
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return '"' + "".join(_escape(c) for c in text) + '"'


def _number(value: float) -> str:
    if not math.isfinite(value):
        return ".nan" if value != value else ".inf" if value > 0 else "-.inf"
    text = repr(value)
    head, e, power = text.partition("e")
    return f"{head if '.' in head else head + '.0'}{e}{power}"


def _escape(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if char.isprintable() and char not in "\u2028\u2029\ufeff":
        return char
    code = ord(char)
    return (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )


def dump(
    config: RunConfig,
    sources: Mapping[str, str],
    resolved: Mapping[str, Any],
    recipe: str,
    preset: str | None,
    file: str = "",
) -> str:
    """Return the text of a run's `config.yaml`.

    `sources` become comments; `resolved` maps names (`threads`, `precision`) to what each `auto`
    became; `file` is where a recipe of one's own lies.
    """
    lines = [
        "# The configuration of this run: requested values, and where each came from.",
        "# `surefoot train -c config.yaml` starts another run with the same.",
        *heading(recipe, preset, file),
    ]
    lines += settings(flatten(config), sources)
    lines += ["resolved:  # what each auto became; a resume repeats these"]
    lines += [f"  {scalar(key)}: {scalar(value)}" for key, value in resolved.items()]
    if not resolved:
        lines[-1] = "resolved: {}"
    return "\n".join(lines) + "\n"


def heading(recipe: str, preset: str | None, file: str = "") -> list[str]:
    """Return the lines of YAML that say whose settings these are."""
    lines = ["surefoot:", f"  format: {FORMAT}", f"  recipe: {scalar(recipe)}"]
    if file:
        lines.append(f"  file: {scalar(file)}")
    return [*lines, f"  preset: {scalar(preset)}"]


def settings(flat: Mapping[str, Any], sources: Mapping[str, str]) -> list[str]:
    """Return lines of YAML for path -> value, with the source of each as a comment."""
    lines: list[str] = []
    opened: list[str] = []
    for path, value in flat.items():
        *parents, name = path.split(".")
        for depth, part in enumerate(parents):
            if opened[: depth + 1] != parents[: depth + 1]:
                lines.append(f"{'  ' * depth}{part}:")
                opened = parents[: depth + 1]
        opened = parents
        entry = f"{'  ' * len(parents)}{name}: {scalar(value)}"
        source = _comment(sources.get(path, ""))
        lines.append(f"{entry.ljust(_COLUMN - 1)} # {source}" if source else entry)
    return lines


def _comment(text: str) -> str:
    """Return text that stays on one line and that every YAML reader takes in a comment."""
    return "".join(c if c.isprintable() and c != "\ufeff" else "?" for c in text).strip()


def load_run_config(text: str, schema: type[RunConfig], name: str = "config.yaml") -> StoredConfig:
    """Read the text of a run's `config.yaml`.

    Settings that the file does not know, because they are newer, get their defaults and the source
    `default`. Raises ConfigError for anything that `dump` does not write, and for a file without
    the `surefoot:` header.
    """
    document, layer = parse(name, text, ".yaml"), Layer()
    gather(document, schema, layer)
    recipe = layer.header.get("recipe")
    if not isinstance(recipe, str):
        fix = f"start a run with it instead: surefoot train RECIPE -c {name}"
        layer.problems.append(Problem(f"{name} is not the configuration of a run", name, fix))
    if layer.problems:
        raise ConfigError(layer.problems)
    merged = starting_values(schema) | layer.values
    config = check(schema, merged).config
    said = _sources(document.text, {path: given.source for path, given in layer.values.items()})
    sources = {path: said.get(path, "default") for path in merged}
    return StoredConfig(config, sources, layer.pinned, str(recipe), layer.header.get("preset"))


def _sources(text: str, places: Mapping[str, str]) -> dict[str, str]:
    """Return what the comment behind each value says; `places` are `name:line:column`."""
    lines = text.splitlines()
    found: dict[str, str] = {}
    for path, place in places.items():
        line, column = (int(part) for part in place.rsplit(":", 2)[1:])
        found[path] = comment_of(lines[line - 1][column - 1 :])[1:].strip() or place
    return found
