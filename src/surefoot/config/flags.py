"""The command line and keyword arguments as values of settings; nothing is converted here.

Every setting has a long flag (`--model.d-model 64`), and a short one (`--d-model 64`) where its
name is unique. A yes-or-no setting is `--x` or `--no-x`. Underscores are as good as hyphens.
Mistakes are collected and not raised, so that they are told together with all others.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, NoReturn

from pydantic import BaseModel

from surefoot.config.fields import Given, Leaf, leaves, sections, short_names
from surefoot.config.learners import overlays
from surefoot.config.legacy import today
from surefoot.config.names import ELSEWHERE, LEFT_OUT, RENAMED
from surefoot.config.suggest import nearest, one_of, suggest_fields
from surefoot.errors import Problem

__all__ = ["Flag", "Parsed", "arguments", "flags", "parse", "parser", "spelling"]

_COMMAND_LINE = "command line"
_BOOLEANS = {"true", "false", "yes", "no", "on", "off"}


@dataclass(frozen=True)
class Flag:
    """One way to write a setting on the command line; `off` is the `--no-x` form."""

    leaf: Leaf
    off: bool = False


class Parsed(NamedTuple):
    """What a command line said: the verb's own options, settings, and mistakes."""

    options: argparse.Namespace
    values: dict[str, Given]
    problems: list[Problem]


class _MistakeError(Exception):
    pass


class _Nothing(BaseModel):
    """The schema of verbs that take no settings."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _MistakeError(message)


def parser(prog: str, description: str = "") -> argparse.ArgumentParser:
    """Return a parser for the options of a verb; settings are not registered with it.

    It has `-h/--help` as a plain switch (`options.help`): the caller prints the page, because the
    page depends on the recipe and the preset.
    """
    made = _Parser(prog=prog, description=description, allow_abbrev=False, add_help=False)
    made.add_argument("-h", "--help", action="store_true", help="Show this page.")
    return made


@cache
def flags(schema: type[BaseModel]) -> dict[str, Flag]:
    """Return every flag of a schema, `--model.d-model` and `--d-model` alike, in hyphens."""
    short = {path: name for name, path in short_names(schema).items()}
    table: dict[str, Flag] = {}
    for path, leaf in leaves(schema).items():
        for name in (path, short.get(path)):
            if name is None or leaf.overlay:
                continue
            table[f"--{_hyphens(name)}"] = Flag(leaf)
            if leaf.boolean:
                head, dot, last = name.rpartition(".")
                table[f"--{_hyphens(f'{head}{dot}no_{last}')}"] = Flag(leaf, off=True)
                table[f"--no-{_hyphens(name)}"] = Flag(leaf, off=True)
    return table


def spelling(path: str, schema: type[BaseModel]) -> str:
    """Return the shortest flag of a setting: `--d-model`, but `--optim.kind`."""
    if leaves(schema)[path].overlay:
        return f"--{_hyphens(path)}.SETTING"
    name = path.rpartition(".")[2]
    return f"--{_hyphens(name if short_names(schema).get(name) == path else path)}"


def _hyphens(name: str) -> str:
    return name.replace("_", "-")


def parse(
    own: argparse.ArgumentParser, argv: Sequence[str], schema: type[BaseModel] | None = None
) -> Parsed:
    """Split a command line into the verb's own options and settings of `schema`.

    `own` comes from `parser` with the verb's options added. Returns `(options, values, problems)`,
    where `values` maps the path of a setting to what was written; the last of several wins. A verb
    without settings gives no schema.
    """
    reading = _Reading(own, schema or _Nothing)
    reading.walk(list(argv))
    options = _own_options(own, reading)
    return Parsed(options, reading.values, reading.problems)


class _Reading:
    """One pass over the words of a command line."""

    def __init__(self, own: argparse.ArgumentParser, schema: type[BaseModel]) -> None:
        self.schema, self.table = schema, flags(schema)
        self.takes = {s: _takes(a) for a in own._actions for s in a.option_strings}
        self.rest: list[str] = []
        self.values: dict[str, Given] = {}
        self.problems: list[Problem] = []

    def walk(self, words: list[str]) -> None:
        while words:
            word = words.pop(0)
            name, equals, inline = word.partition("=")
            if word == "--":
                self.rest += [word, *words]
                return
            if name in self.takes:
                self.rest.append(word)
                self._pass_on(self.takes[name] if not equals else 0, words)
            elif not word.startswith("--"):
                self.rest.append(word)
            else:
                self._setting(name, inline if equals else None, words)

    def _pass_on(self, count: int, words: list[str]) -> None:
        for _ in range(min(count, len(words))):
            if _is_flag(words[0]):
                return
            self.rest.append(words.pop(0))

    def _setting(self, name: str, inline: str | None, words: list[str]) -> None:
        flag = self.table.get(_hyphens(name))
        old = None
        if flag is None and self._own(name, inline, words):
            return
        if flag is None:
            flag, old = self._old(name)
        if flag is None:
            if inline is None and words and not _is_flag(words[0]):
                inline = words.pop(0)
            self._unknown(name, inline)
        elif flag.leaf.boolean:
            if inline is None and words and words[0].lower() in _BOOLEANS:
                inline = words.pop(0)
            self._boolean(name, flag, inline)
        elif inline is None and (not words or _is_flag(words[0])):
            what = f"{name} needs a value: {flag.leaf.expectation()}"
            fix = f"for example {name} {_shown(flag.leaf)}"
            self.problems.append(Problem(what, _COMMAND_LINE, fix))
        else:
            text = words.pop(0) if inline is None else inline
            self._note(name, flag.leaf, text, old)

    def _own(self, name: str, inline: str | None, words: list[str]) -> bool:
        """Take `--learners.NAME.SECTION.SETTING`, a setting of one learner."""
        word = name[2:].replace("-", "_")
        path = next((p for p in overlays(self.schema).values() if word.startswith(f"{p}.")), None)
        name_inside = word.removeprefix(f"{path}.")
        known, short = leaves(self.schema), short_names(self.schema)
        inner = known.get(short.get(name_inside, name_inside))
        if path is None or inner is None:
            return False
        if inline is None and words and not _is_flag(words[0]):
            inline = words.pop(0)
        before = self.values.get(path)
        value = {**(before.value if before else {}), inner.path: inline or "true"}
        where = f"{before.where} " if before else f"{_COMMAND_LINE}: "
        self.values[path] = Given(value, f"flag {name}", f"{where}{name} {inline or ''}".rstrip())
        return True

    def _old(self, name: str) -> tuple[Flag | None, str | None]:
        word = name[2:].replace("-", "_")
        path = RENAMED.get(word, "")
        flag = self.table.get(f"--{_hyphens(path)}") if path else None
        return flag, (word if flag else None)

    def _note(self, name: str, leaf: Leaf, text: str, old: str | None) -> None:
        value = today(old, text) if old else text
        arrow = f"{name} -> {spelling(leaf.path, self.schema)}" if old else None
        where = f"{_COMMAND_LINE}: {name} {text}"
        self.values[leaf.path] = Given(value, f"flag {name}", where, old=arrow)

    def _boolean(self, name: str, flag: Flag, inline: str | None) -> None:
        if inline is not None and flag.off:
            what, fix = f"{name} takes no value", f"write {name} alone"
            self.problems.append(Problem(what, _COMMAND_LINE, fix))
            return
        text = inline if inline is not None else "false" if flag.off else "true"
        where = f"{_COMMAND_LINE}: {name}" + (f" {inline}" if inline is not None else "")
        self.values[flag.leaf.path] = Given(text, f"flag {name}", where)

    def _unknown(self, name: str, value: str | None) -> None:
        fix = _meant(name, value, self.schema, list(self.takes))
        self.problems.append(Problem(f"unknown flag {name}", _COMMAND_LINE, fix))


def _meant(name: str, value: str | None, schema: type[BaseModel], own: list[str]) -> str:
    """Return the help for an unknown flag."""
    word, known = name[2:].replace("-", "_"), leaves(schema)
    if word in LEFT_OUT:
        return f"this old flag has no counterpart: {LEFT_OUT[word]}"
    if word in ELSEWHERE:
        return ELSEWHERE[word]
    if word.startswith("no_"):
        near = suggest_fields(word[3:], known)
        if near and "off" in known[near[0]].choices:
            return f"did you mean {spelling(near[0], schema)} off?"
        if near and known[near[0]].optional and not known[near[0]].boolean:
            return f"did you mean {spelling(near[0], schema)} none?"
    if near_learner := _learner_meant(word, schema):
        return f"did you mean {near_learner}?"
    option = nearest(name, [word for word in own if word.startswith("--")])
    same = [p for p in known if p.endswith(f".{word}")]
    if len(same) > 1:
        fits = [p for p in same if value in known[p].choices] or same
        return f"did you mean {one_of([spelling(p, schema) for p in fits])}?"
    found = suggest_fields(word, known, word.rpartition(".")[0])
    if option and (not found or nearest(name, [option, spelling(found[0], schema)]) == option):
        return f"did you mean {option}?"
    if found:
        return f"did you mean {one_of([spelling(p, schema) for p in found])}?"
    return "--help lists every flag"


def _learner_meant(word: str, schema: type[BaseModel]) -> str | None:
    """Return the flag that `learners.simpel.max_steps`, of a misspelt learner, was meant to be."""
    section, _, rest = word.partition(".")
    learner, _, setting = rest.partition(".")
    names = {n: p for n, p in overlays(schema).items() if p.rpartition(".")[0] == section}
    known, short = leaves(schema), short_names(schema)
    fits = setting in known or setting in short
    found = [setting] if fits else suggest_fields(setting, known) if setting else []
    near = nearest(learner, names)
    return f"--{_hyphens(f'{names[near]}.{found[0]}')}" if near and found else None


def _takes(action: argparse.Action) -> int:
    if action.nargs is None:
        return 1
    return action.nargs if isinstance(action.nargs, int) else 1000


def _is_flag(word: str) -> bool:
    """Return whether a word starts a new flag; -1 and -3e-4 are numbers."""
    return word.startswith("-") and len(word) > 1 and not word[1:2].isdigit() and word[1:2] != "."


def _shown(leaf: Leaf) -> str:
    if leaf.default not in (None, ()) and not isinstance(leaf.default, list | dict):
        return str(leaf.default)
    return leaf.choices[0] if leaf.choices else "..." if leaf.textual else "1"


def _own_options(own: argparse.ArgumentParser, reading: _Reading) -> argparse.Namespace:
    try:
        options, extra = own.parse_known_args(reading.rest)
    except _MistakeError as mistake:
        help_asked = {"-h", "--help"} & set(reading.rest)
        if not help_asked:
            fix = "--help lists every flag"
            reading.problems.append(Problem(str(mistake), _COMMAND_LINE, fix))
        defaults = {a.dest: a.default for a in own._actions if a.dest != argparse.SUPPRESS}
        return argparse.Namespace(**(defaults | {"help": bool(help_asked)}))
    for word in extra:
        if word != "--":
            fix = _word_meant(word, reading.schema)
            reading.problems.append(Problem(f"unexpected word {word!r}", _COMMAND_LINE, fix))
    return options


def _word_meant(word: str, schema: type[BaseModel]) -> str:
    name, equals, value = word.lstrip("-").partition("=")
    found = suggest_fields(name, leaves(schema))
    if found:
        return f"did you mean {spelling(found[0], schema)}{f' {value}' if equals else ''}?"
    return "settings are written as --name value; --help lists them"


def arguments(
    given: Mapping[str, Any], schema: type[BaseModel], recipe: str = "RECIPE"
) -> tuple[dict[str, Given], list[Problem]]:
    """Return keyword arguments of Python as `(values, problems)`, like `parse`.

    A name is a setting's last part where that is unique (`d_model=64`), its path
    (`**{"model.d_model": 64}`), or a section with a dictionary (`model={"d_model": 64}`).
    """
    values: dict[str, Given] = {}
    problems: list[Problem] = []
    known, short, groups = leaves(schema), short_names(schema), sections(schema)
    for name, value in given.items():
        path = short.get(name) or RENAMED.get(name, name)
        if path in known:
            old = f"{name} -> {path}" if name in RENAMED else None
            value = today(name, value) if old else value
            where = f"argument {name}={value!r}"
            values[path] = Given(value, f"argument {name}", where, old=old)
        elif name in groups and isinstance(value, Mapping | BaseModel):
            fields = value if isinstance(value, Mapping) else value.model_dump(exclude_unset=True)
            inner, wrong = arguments({f"{name}.{k}": v for k, v in fields.items()}, schema, recipe)
            values, problems = values | inner, problems + wrong
        else:
            found = suggest_fields(name, known, name.rpartition(".")[0])
            names = [p.rpartition(".")[2] for p in found]
            shown = [n if short.get(n) == p else p for n, p in zip(names, found)]
            fix = f"did you mean {one_of(shown)}?" if shown else f"surefoot config docs {recipe}"
            told = Problem(f"unknown setting {name}", f"argument {name}", ELSEWHERE.get(name, fix))
            problems.append(told)
    return values, problems
