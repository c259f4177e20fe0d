"""The help page of a recipe: the verb's options, then every setting with its value and meaning."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from textwrap import wrap

from surefoot.config.explain import shown, summary
from surefoot.config.fields import Leaf, leaves, plain, sections
from surefoot.config.flags import spelling
from surefoot.config.resolve import preview
from surefoot.config.schema import RunConfig
from surefoot.recipes import Recipe

__all__ = ["options_page", "settings_page"]

_LEFT = 31  # columns of flags
_BOLD, _CYAN, _DIM = "1", "36", "2"


class _Page:
    """Lines of help, painted when they go to a terminal that wants it."""

    def __init__(self) -> None:
        self.width = min(max(shutil.get_terminal_size((100, 24)).columns, 60), 110)
        self.colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self.lines: list[str] = []

    def paint(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.colour and text else text

    def title(self, text: str, rest: str = "") -> None:
        self.lines += [
            "",
            self.paint(text, _BOLD) + (f"  {self.paint(rest, _DIM)}" if rest else ""),
        ]

    def entry(self, flag: str, text: str, value: str = "") -> None:
        """Add a flag with its meaning beside it and its value at the end, in brackets."""
        mark = f"[{value.replace(' ', chr(160))}]" if value else ""
        room = self.width - _LEFT - 3
        body = wrap(f"{text} {mark}".strip(), room, break_on_hyphens=False) or [""]
        body = [self._dim_end(line, mark) for line in body]
        left = self.paint(flag.ljust(_LEFT), _CYAN)
        if len(flag) > _LEFT:
            self.lines += [f"  {self.paint(flag, _CYAN)}", f"  {' ' * _LEFT} {body[0]}"]
        else:
            self.lines.append(f"  {left} {body[0]}".rstrip())
        self.lines += [f"  {' ' * _LEFT} {line}" for line in body[1:]]

    def _dim_end(self, line: str, mark: str) -> str:
        if mark and line.endswith(mark):
            line = line[: -len(mark)] + self.paint(mark, _DIM)
        return line.replace(chr(160), " ")

    def options(self, own: argparse.ArgumentParser) -> None:
        """Add the options of a verb."""
        self.title("options")
        for action in own._actions:
            words = ", ".join(action.option_strings) or str(action.dest).upper()
            if action.option_strings and action.nargs != 0:
                words += f" {action.metavar or action.dest.upper()}"
            self.entry(words, action.help or "")

    def text(self) -> str:
        return "\n".join(self.lines)


def options_page(own: argparse.ArgumentParser, usage: str) -> str:
    """Return the help of a verb without settings."""
    page = _Page()
    page.lines += [own.description or "", "", f"usage: {own.prog} {usage}"]
    page.options(own)
    return page.text()


def settings_page(own: argparse.ArgumentParser, recipe: Recipe, preset: str | None = None) -> str:
    """Return the help of a verb that takes the settings of a recipe, with a preset's values.

    Raises ConfigError for an unknown preset.
    """
    schema, preset = recipe.config, preset or recipe.default_preset
    prog = own.prog.replace("RECIPE", recipe.address)
    values = preview(schema, recipe.presets, preset)
    page = _Page()
    page.lines += [f"{prog}: {recipe.summary}", "", f"usage: {prog} [options] [settings]"]
    page.options(own)
    others = [name for name in recipe.presets if name != preset]
    brackets = f"in brackets: values of preset {preset}" if preset else "in brackets: defaults"
    page.title(
        "settings", brackets + (f"; others: --help --preset {'|'.join(others)}" if others else "")
    )
    for name, section in sections(schema).items():
        inside = [leaf for leaf in leaves(schema).values() if leaf.section == name]
        if inside:
            page.title(name, summary(section).rstrip("."))
        for leaf in inside:
            value = shown(plain(values[leaf.path].value))
            page.entry(_usage(leaf, schema), leaf.doc, value)
    page.lines += [
        "",
        "In full every flag is --SECTION.NAME; in a file (-c run.yaml, .toml or .json) the name",
        "stands under its section. surefoot config explain NAME [RUN] says what a setting means,",
        "and where the value in a run came from.",
    ]
    return page.text()


def _usage(leaf: Leaf, schema: type[RunConfig]) -> str:
    flag = spelling(leaf.path, schema)
    if leaf.boolean:
        return f"--[no-]{flag[2:]}"
    return f"{flag} {_placeholder(leaf)}"


def _placeholder(leaf: Leaf) -> str:
    if leaf.listing:
        return "A,B"
    if leaf.overlay:
        return "VALUE"
    words = ["N" if int in leaf.kinds else "X" if float in leaf.kinds else ""]
    words += ["TEXT" if str in leaf.kinds and int not in leaf.kinds else ""]
    words += ["PATH" if leaf.textual and str not in leaf.kinds else ""]
    choices = "|".join([word for word in words if word] + leaf.choices)
    return choices if len(choices) <= 26 else "WAY"
