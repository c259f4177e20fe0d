"""Configuration files as nested dictionaries, with the line and column of every value.

YAML is read by the rules of YAML 1.2: `3e-4` is a number, and `on`, `off`, `yes` and `no` are
words. TOML and JSON are read as they are. A flat Python file of assignments (an old habit) is
parsed and never executed. What the keys mean is decided elsewhere.
"""

from __future__ import annotations

import ast
import json
import operator
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from surefoot.config.place import Document, Keys, Opaque, Place, Spot
from surefoot.config.suggest import nearest
from surefoot.errors import ConfigError, Problem

__all__ = ["parse", "read"]

_DEPTH, _NODES = 20, 10_000  # limits of nesting and size, against files that are not settings


def read(path: Path | str) -> Document:
    """Read a configuration file; a folder stands for the `config.yaml` in it.

    Raises ConfigError with one Problem for each mistake in the file's own form.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.yaml"
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError([_missing(path)]) from None
    except OSError as error:
        raise ConfigError([Problem(f"cannot read {path}: {error.strerror}", str(path))]) from None
    try:
        text = raw.decode("utf-8-sig")
        binary = "\0" in text
    except UnicodeDecodeError:
        binary = True
    if binary:
        fix = "settings are YAML, TOML or JSON in UTF-8; data is given with --path"
        raise ConfigError([Problem(f"{path} is not a text file", str(path), fix)])
    return parse(str(path), text, path.suffix.lower())


def _missing(path: Path) -> Problem:
    here = path.parent
    names = sorted(p.name for p in here.iterdir() if p.is_file()) if here.is_dir() else []
    configs = [n for n in names if Path(n).suffix.lower() in _READERS]
    near = nearest(path.name, configs)
    if near:
        fix = f"did you mean {here / near}?"
    elif not here.is_dir():
        fix = f"there is no folder {here}"
    elif configs:
        fix = f"in {here} there is {', '.join(configs[:5])}"
    else:
        fix = "without -c the recipe's preset is used; `surefoot config show RECIPE` prints it"
    return Problem(f"no file {path}", "command line", fix)


def parse(name: str, text: str, suffix: str = ".yaml") -> Document:
    """Read the text of a configuration file, whose form follows from its suffix."""
    reader = _READERS.get(suffix)
    if reader is None:
        fix = f"{name} needs one of the endings {', '.join(_READERS)}"
        raise ConfigError([Problem(f"unknown kind of file {suffix or name!r}", name, fix)])
    document = Document(name, text.replace("\r\n", "\n"), form=suffix.lstrip("."))
    try:
        reader(document)
    except (RecursionError, ValueError):  # brackets or digits by the thousand
        raise document.fail("nested too deep, or a number too long", (1, 1), _SHAPE) from None
    return document


# ---------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """PyYAML with the plain values of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {}  # without those of YAML 1.1


_PLAIN: dict[str, tuple[str, Callable[[str], Any]]] = {
    "null": (r"~|null|Null|NULL|", lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", lambda text: _integer(text)),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        lambda text: float(re.sub(r"\.(inf|nan)", r"\1", text.lower())),
    ),
}


def _integer(text: str) -> int:
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


for _tag, (_pattern, _) in _PLAIN.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), None
    )

_YAML_HELP = (
    ("\\t", "indent with spaces, not with tabs"),
    (
        "mapping values",
        "a ':' too many on this line, or wrong indentation; quote text that has ': '",
    ),
    ("expected ':'", "write `name: value`, with a space after the colon"),
    ("block end", "entries of one section need the same indentation"),
    ("block mapping", "entries of one section need the same indentation"),
    ("quoted scalar", "the closing quote is missing"),
    ("flow", "a closing bracket or a comma is missing"),
    ("single document", "one file holds one set of settings; remove the `---` line"),
    ("alias", "write the value itself"),
)


def _yaml(document: Document) -> None:
    root = _compose(document, document.text)
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        raise document.fail("expected settings like `train:`, found something else", (1, 1), _SHAPE)
    problems: list[Problem] = []
    document.data = _mapping(document, root, (), problems)
    if problems:
        raise ConfigError(problems)


_SHAPE = "write sections with settings under them, as in `train:` and below it `  seed: 1`"


def _compose(document: Document, text: str) -> yaml.Node | None:
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        said, before = str(error.problem or error.context), str(error.context)
        marks = [mark for mark in (error.problem_mark, error.context_mark) if mark]
        places = [_place(mark) for mark in marks]
        place = next((p for p in places if document.excerpt(p)), (0, 0))
        fixes = [fix for text in (said, before) for word, fix in _YAML_HELP if word in text]
        fix = fixes[0] if fixes else None
        raise document.fail(f"not valid YAML: {said}", place, fix) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = (before.count("\n") + 1, error.position - before.rfind("\n"))
        what = f"not valid YAML: character {error.character!r} is not allowed"
        raise document.fail(what, place, "remove the invisible character") from None
    finally:
        if loader is not None:
            loader.dispose()


def _place(mark: yaml.Mark) -> Place:
    return mark.line + 1, mark.column + 1


def _mapping(
    document: Document, node: yaml.MappingNode, above: Keys, problems: list[Problem]
) -> dict[str, Any]:
    """Return a YAML mapping as a dictionary, and remember where everything stands."""
    if len(above) > _DEPTH or len(document.spots) > _NODES:
        raise document.fail("nested too deep, or too large", _place(node.start_mark), _SHAPE)
    data: dict[str, Any] = {}
    for key_node, value in node.value:
        key, place = str(getattr(key_node, "value", "?")), _place(key_node.start_mark)
        if key in data:
            first = document.spots[(*above, key)].key
            what = f"{'.'.join((*above, key))}: written twice, first in line {first[0]}"
            problems.append(document.problem(what, place, f"remove line {first[0]} or {place[0]}"))
            continue
        text = value.value if isinstance(value, yaml.ScalarNode) else None
        end = value.end_mark.line + (1 if value.end_mark.column else 0)
        document.spots[(*above, key)] = Spot(place, _place(value.start_mark), text, end)
        data[key] = _value(document, value, (*above, key), problems)
    return data


def _value(document: Document, node: yaml.Node, keys: Keys, problems: list[Problem]) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(document, node, keys, problems)
    if isinstance(node, yaml.SequenceNode):
        if len(keys) > _DEPTH:
            raise document.fail("nested too deep", _place(node.start_mark), _SHAPE)
        return [_value(document, n, (*keys, str(i)), problems) for i, n in enumerate(node.value)]
    kind = node.tag.rpartition(":")[2]
    try:
        return _PLAIN[kind][1](node.value) if kind in _PLAIN else node.value
    except ValueError:
        return node.value


# ------------------------------------------------------------------------------- JSON and TOML


def _json(document: Document) -> None:
    try:
        data = json.loads(document.text)
    except json.JSONDecodeError as error:
        fix = "JSON wants double quotes, commas between entries and none after the last"
        place = (error.lineno, error.colno)
        raise document.fail(f"not valid JSON: {error.msg}", place, fix) from None
    if not isinstance(data, dict):
        raise document.fail("expected settings like {...}", (1, 1), '{"train": {"seed": 1}}')
    # JSON is YAML to the eye: the same walk finds the places (and names written twice).
    root = _compose(document, document.text.replace("\t", " "))
    problems: list[Problem] = []
    if isinstance(root, yaml.MappingNode):
        _mapping(document, root, (), problems)
    if problems:
        raise ConfigError(problems)
    document.data = data


def _toml(document: Document) -> None:
    try:
        document.data = tomllib.loads(document.text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        place = (int(found[1]), int(found[2])) if found else (len(document.text.splitlines()), 1)
        said = str(error).partition(" (at ")[0]
        fix = 'TOML wants `name = value` under `[section]`, and text in quotes: kind = "adamw"'
        raise document.fail(f"not valid TOML: {said}", place, fix) from None
    _find_toml_places(document)


_KEY = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""
_TABLE = re.compile(rf"^\s*\[\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*\]")
_ENTRY = re.compile(rf"({_KEY}(?:\s*\.\s*{_KEY})*)\s*=\s*")


def _find_toml_places(document: Document) -> None:
    """Note the line and column of keys and values, also of inline tables on one line."""
    table: Keys = ()
    for number, line in enumerate(document.text.splitlines(), 1):
        header = _TABLE.match(line)
        if header:
            table = _split_key(header[1])
            place = (number, header.start(1) + 1)
            document.spots[table] = Spot(place, place, None, number)
            continue
        outer: Keys = table
        for index, entry in enumerate(_ENTRY.finditer(line.split("#")[0])):
            keys = (*(outer if index else table), *_split_key(entry[1]))
            if index == 0 and line[: entry.start()].strip():
                break  # inside a longer value, not an entry
            value = line[entry.end() :].partition("#")[0].strip()
            spot = Spot((number, entry.start() + 1), (number, entry.end() + 1), value, number)
            if _holds(document.data, keys):
                document.spots.setdefault(keys, spot)
                outer = keys if index == 0 else outer


def _split_key(text: str) -> Keys:
    return tuple(part.strip("\"' ") for part in re.findall(_KEY, text))


def _holds(data: Any, keys: Keys) -> bool:
    for key in keys:
        if not isinstance(data, dict) or key not in data:
            return False
        data = data[key]
    return True


# ------------------------------------------------------------------------- assignments in Python

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def _python(document: Document) -> None:
    """Read `name = value` lines; everything else in the file is passed over, never executed."""
    try:
        tree = ast.parse(document.text)
    except (SyntaxError, ValueError, RecursionError) as error:
        place = (getattr(error, "lineno", 0) or 0, getattr(error, "offset", 1) or 1)
        what = f"not a file of assignments: {getattr(error, 'msg', error)}"
        raise document.fail(what, place, "write one `name = value` a line") from None
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, value = node.targets[0].id, node.value
            text = ast.get_source_segment(document.text, value)
            spot = Spot(
                (node.lineno, node.col_offset + 1),
                (value.lineno, value.col_offset + 1),
                text,
                node.end_lineno or node.lineno,
            )
            document.data[name], document.spots[(name,)] = _literal(value, text or ""), spot


def _literal(node: ast.expr, text: str) -> Any:
    """Return the value of a literal or of arithmetic between numbers, else an Opaque."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        pass
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        left, right = _literal(node.left, text), _literal(node.right, text)
        if all(isinstance(side, int | float) for side in (left, right)):
            try:
                return _ARITHMETIC[type(node.op)](left, right)
            except ArithmeticError:
                return Opaque(text)
    return Opaque(text)


_READERS: dict[str, Callable[[Document], None]] = {
    ".yaml": _yaml,
    ".yml": _yaml,
    ".toml": _toml,
    ".json": _json,
    ".py": _python,
}
