"""A schema seen as a flat list of settings: `model.d_model`, `train.seed`, and so on.

Everything that walks over settings (flags, files, help, reference, identity) walks over these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from surefoot.config.suggest import one_of
from surefoot.errors import Problem

__all__ = [
    "RESERVED",
    "Given",
    "Leaf",
    "changed",
    "dotted",
    "flatten",
    "leaves",
    "nest",
    "plain",
    "sections",
    "short_names",
]

# Options of verbs; a setting of the same name has only its long flag.
RESERVED = frozenset(
    [
        "ask",
        "config",
        "dry_run",
        "force",
        "fork",
        "help",
        "json",
        "name",
        "new",
        "out",
        "preset",
        "prompt",
        "quiet",
        "rgb",
        "runs",
        "strict",
        "temperature",
        "to",
        "tokens",
        "top_k",
        "top_p",
        "undo",
        "verbose",
        "version",
        "write",
        "yes",
    ]
)
B = TypeVar("B", bound=BaseModel)

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def _members(annotation: Any) -> list[Any]:
    """Return the alternatives of a type: `int | None` is [int, NoneType]."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [m for part in get_args(annotation) for m in _members(part)]
    return [annotation]


@dataclass(frozen=True)
class Given:
    """A value that somebody wrote, and where.

    `source` is what `config explain` says (`run.yaml:3:5`, `flag --lr`, `preset tiny`); `where` is
    what a message points at, with `excerpt` below it; `text` is how a file spells the value;
    `old` is the translation, where an old name was used.
    """

    value: Any
    source: str
    where: str = ""
    excerpt: str | None = None
    text: str | None = None
    old: str | None = None

    @property
    def typed(self) -> bool:
        """Whether a person gave it with this command or call."""
        return self.source.startswith(("flag ", "argument "))

    def problem(self, what: str, fix: str | None = None) -> Problem:
        """Return a mistake that points at this value."""
        return Problem(what, self.where or self.source, fix, self.excerpt)


@dataclass(frozen=True)
class Leaf:
    """One setting: its path (`model.d_model`), declaration and default."""

    path: str
    info: FieldInfo
    default: Any

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def section(self) -> str:
        """The path without its last part."""
        return self.path.rpartition(".")[0]

    @property
    def doc(self) -> str:
        """What the setting means, in a sentence."""
        return self.info.description or ""

    @property
    def identity(self) -> bool:
        """Whether the setting changes the numbers of a run."""
        extra = self.info.json_schema_extra
        return bool(extra.get("identity", True)) if isinstance(extra, Mapping) else True

    @property
    def kinds(self) -> list[Any]:
        """The alternatives of its type, `None` as NoneType."""
        return _members(self.info.annotation)

    @property
    def choices(self) -> list[str]:
        """The words that it accepts by name, such as `auto`."""
        literals = [k for k in self.kinds if get_origin(k) is Literal]
        return [str(value) for k in literals for value in get_args(k)]

    @property
    def optional(self) -> bool:
        """Whether `none` is a value of it."""
        return NoneType in self.kinds

    @property
    def boolean(self) -> bool:
        """Whether it is a plain yes or no."""
        return self.kinds == [bool]

    @property
    def listing(self) -> bool:
        """Whether it holds several values."""
        return any(get_origin(k) in (tuple, list, frozenset, set) for k in self.kinds)

    @property
    def overlay(self) -> bool:
        """Whether it is a mapping of other settings, by path: what one learner has of its own."""
        return any(get_origin(k) is dict for k in self.kinds)

    @property
    def growing(self) -> bool:
        """Whether a resume may add to it, though it changes the numbers."""
        extra = self.info.json_schema_extra
        return bool(extra.get("growing", False)) if isinstance(extra, Mapping) else False

    @property
    def textual(self) -> bool:
        """Whether any text is a value of it."""
        return any(k in (str, Path) for k in self.kinds)

    def expectation(self) -> str:
        """Return what it accepts, in words: `a whole number, at least 1, or none`."""
        number = [_WORDS[k] for k in self.kinds if k in (int, float)][:1]
        bounds = [
            f"{word} {getattr(rule, key):.12g}"
            for rule in self.info.metadata
            for key, word in _BOUNDS.items()
            if isinstance(getattr(rule, key, None), int | float)
        ]
        words = [f"{number[0]} {' and '.join(bounds)}".strip()] if number else []
        words += [_WORDS[k] for k in self.kinds if k in (bool, Path)]
        words += ["text"] if str in self.kinds else []
        words += ["a list like a,b"] if self.listing else []
        words += ["settings by path"] if self.overlay else []
        words += self.choices + (["none"] if self.optional else [])
        return one_of(words)

    def read(self, value: Any, text: str | None = None) -> Any:
        """Return `value` as pydantic should see it; `text` is how it was written in a file.

        Words for nothing become None where None is allowed, `a,b` a list, `1e6` a whole number.
        Raises ValueError for a true or false where a number is wanted (Python would take it), and
        for an empty path, which would mean the folder that one is in.
        """
        if isinstance(value, bool) and not self.boolean:
            raise ValueError
        if value == "" and Path in self.kinds:
            raise ValueError
        if isinstance(value, str):
            return self._read_text(value)
        if self.overlay and isinstance(value, Mapping):
            return dotted(value)
        if self.textual and int not in self.kinds and isinstance(value, int | float):
            return value if text is None else text
        return value

    def _read_text(self, text: str) -> Any:
        if self.optional and text.strip().lower() in ("none", "null", "~"):
            return None
        if self.listing:
            return [part.strip() for part in text.split(",") if part.strip()]
        if int in self.kinds and float not in self.kinds:
            return _whole(text)
        return text


def _whole(text: str) -> Any:
    """Return `1e6` and `20_000` as numbers, and anything else as it is."""
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() and abs(number) < 2**53 else text


def _section_of(info: FieldInfo) -> type[BaseModel] | None:
    found = [
        k for k in _members(info.annotation) if isinstance(k, type) and issubclass(k, BaseModel)
    ]
    return found[0] if found else None


def _ordered(schema: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of a class, its own before those it inherits: `model`, `data`, `train`."""
    inherited = {name for base in schema.__bases__ for name in getattr(base, "model_fields", ())}
    fields = schema.model_fields
    own = [name for name in fields if name not in inherited]
    return {name: fields[name] for name in [*own, *(n for n in fields if n in inherited)]}


@cache
def sections(schema: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return every section of a schema by path, outer before inner, its own before inherited."""
    found: dict[str, type[BaseModel]] = {}
    for name, info in _ordered(schema).items():
        inner = _section_of(info)
        if inner is not None:
            found[name] = inner
            found |= {f"{name}.{path}": section for path, section in sections(inner).items()}
    return found


@cache
def leaves(schema: type[BaseModel]) -> dict[str, Leaf]:
    """Return every setting of a schema by path, in the order of `sections`."""
    return _leaves(schema, "", None)


def _leaves(schema: type[BaseModel], prefix: str, values: BaseModel | None) -> dict[str, Leaf]:
    found: dict[str, Leaf] = {}
    for name, info in _ordered(schema).items():
        value = info.get_default(call_default_factory=True) if values is None else None
        value = getattr(values, name) if values is not None else value
        inner = _section_of(info)
        if inner is None:
            found[prefix + name] = Leaf(prefix + name, info, value)
        else:
            given = value if isinstance(value, BaseModel) else None
            found |= _leaves(inner, f"{prefix}{name}.", given)
    return found


@cache
def short_names(schema: type[BaseModel]) -> dict[str, str]:
    """Return the settings that may be called by their last part alone: name -> path.

    A name must be unique in the schema, and be no section and no option of a verb.
    """
    count = Counter(leaf.name for leaf in leaves(schema).values())
    taken = RESERVED | {part for path in sections(schema) for part in path.split(".")}
    return {
        leaf.name: path
        for path, leaf in leaves(schema).items()
        if count[leaf.name] == 1 and leaf.name not in taken and not leaf.overlay
    }


def plain(value: Any) -> Any:
    """Return a setting's value as JSON and YAML know it: tuples as lists, paths as text."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list | set | frozenset):
        return [plain(v) for v in value]
    return value


def flatten(config: BaseModel) -> dict[str, Any]:
    """Return every setting of a configuration as path -> plain value."""
    flat: dict[str, Any] = {}
    for path in leaves(type(config)):
        value: Any = config
        for part in path.split("."):
            value = getattr(value, part, None)
        flat[path] = plain(value)
    return flat


def changed(config: B, values: Mapping[str, Any]) -> B:
    """Return `config` with other `values`, by path. Raises pydantic's ValidationError."""
    if not values:
        return config
    return type(config).model_validate(nest({**flatten(config), **values}))


def dotted(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dictionaries as path -> value, the inverse of `nest`.

    >>> dotted({"train": {"seed": 1}, "model.d_model": 64})
    {'train.seed': 1, 'model.d_model': 64}
    """
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": v for inner, v in dotted(value).items()}
        else:
            flat[name] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return path -> value as nested dictionaries.

    >>> nest({"train.seed": 1, "model.d_model": 64})
    {'train': {'seed': 1}, 'model': {'d_model': 64}}
    """
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        branch = tree
        for part in parents:
            branch = branch.setdefault(part, {})
        branch[name] = value
    return tree
