"""Defaults < preset < files < flags: one merge, one check, and where each value came from.

All mistakes of all layers are collected and raised together; nothing is started before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from surefoot.config import legacy
from surefoot.config.documents import read
from surefoot.config.fields import (
    Given,
    Leaf,
    changed,
    dotted,
    flatten,
    leaves,
    nest,
    sections,
    short_names,
)
from surefoot.config.learners import alone, overlays, own
from surefoot.config.mistakes import explain_errors
from surefoot.config.names import RENAMED
from surefoot.config.place import Document
from surefoot.config.schema import RunConfig
from surefoot.config.suggest import nearest, one_of, suggest_fields
from surefoot.errors import ConfigError, Problem

__all__ = [
    "FORMAT",
    "Layer",
    "Resolved",
    "amend",
    "check",
    "gather",
    "preview",
    "resolve",
    "starting_values",
    "written",
]

FORMAT = 1  # of a run's config.yaml
_HEADER, _PINNED = "surefoot", "resolved"
_KNOWN = ("format", "recipe", "file", "preset")  # keys of the header


@dataclass(frozen=True)
class Resolved:
    """A checked configuration, the source of every value, and notes for the reader."""

    config: Any
    sources: dict[str, str]
    notes: list[str] = field(default_factory=list)
    preset: str | None = None


@dataclass
class Layer:
    """What one file, preset or command line says."""

    values: dict[str, Given] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    header: dict[str, Any] = field(default_factory=dict)
    pinned: dict[str, Any] = field(default_factory=dict)


def resolve(
    recipe: str,
    schema: type[RunConfig],
    presets: Mapping[str, Mapping[str, Any]],
    preset: str | None = None,
    files: Iterable[Path | str] = (),
    flags: Mapping[str, Given] | None = None,
    *,
    default_preset: str | None = None,
    problems: Sequence[Problem] = (),
) -> Resolved:
    """Merge and check everything that was said about a run of `recipe`.

    `flags` and `problems` come from `flags.parse` or `flags.arguments`. A preset named by a file
    counts when none is given here. Raises ConfigError with all mistakes at once.
    """
    wrong = list(problems)
    read_layers = [_read_layer(path, schema, recipe) for path in files]
    named = [layer.header["preset"] for layer in read_layers if layer.header.get("preset")]
    chosen = preset or (named[-1] if named else default_preset)
    layers = [_preset_layer(chosen, presets, schema), *read_layers, Layer(dict(flags or {}))]
    for layer in layers:
        wrong += layer.problems
    notes = [note for layer in layers for note in layer.notes]
    notes += [note for note in [legacy.flag_note(layers[-1].values)] if note]
    if preset and layers[0].values and _covered(layers[0].values, read_layers):
        notes.append(f"preset {preset} changes nothing: the file gives every setting of it")
    merged, ranks = _merge(schema, layers, wrong)
    notes += _fit_warmup(merged, ranks)
    return check(schema, merged, wrong, notes, chosen)


def amend(
    config: RunConfig,
    sources: Mapping[str, str],
    flags: Mapping[str, Given],
    problems: Sequence[Problem] = (),
) -> Resolved:
    """Return a stored configuration with some settings given anew, as a resume does."""
    wrong = list(problems)
    base = {
        path: Given(value, sources.get(path, "default")) for path, value in flatten(config).items()
    }
    merged, _ = _merge(type(config), [Layer(base), Layer(dict(flags))], wrong)
    notes = [note for note in [legacy.flag_note(flags)] if note]
    return check(type(config), merged, wrong, notes)


def preview(
    schema: type[RunConfig], presets: Mapping[str, Mapping[str, Any]], preset: str | None
) -> dict[str, Given]:
    """Return every setting as a preset alone leaves it, unchecked. Raises ConfigError."""
    layer = _preset_layer(preset, presets, schema)
    if layer.problems:
        raise ConfigError(layer.problems)
    return starting_values(schema) | layer.values


def check(
    schema: type[RunConfig],
    merged: Mapping[str, Given],
    problems: Sequence[Problem] = (),
    notes: Sequence[str] = (),
    preset: str | None = None,
) -> Resolved:
    """Check merged values once; raise ConfigError with `problems` and all that is found here."""
    known, wrong = leaves(schema), list(problems)
    values, unreadable = _read_values(known, merged)
    wrong += unreadable
    config: RunConfig | None = None
    try:
        config = schema.model_validate(nest(values))
    except ValidationError as error:
        wrong += explain_errors(error, merged, schema, values)
    if wrong or config is None:
        raise ConfigError(wrong)
    config = _canonical(config)
    return Resolved(config, {p: g.source for p, g in merged.items()}, list(notes), preset)


def _canonical(config: RunConfig) -> RunConfig:
    """Return `config` with the settings of single learners as values and not as they were typed."""
    values = {}
    for name, path in overlays(type(config)).items():
        typed = flatten(alone(config, name))
        values[path] = {p: typed[p] for p in own(config, name)}
    return changed(config, values)


def _read_values(
    known: Mapping[str, Leaf], merged: Mapping[str, Given]
) -> tuple[dict[str, Any], list[Problem]]:
    values: dict[str, Any] = {}
    wrong: list[Problem] = []
    for path, given in merged.items():
        try:
            values[path] = known[path].read(given.value, given.text)
        except ValueError:
            word = str(given.value).lower()
            choice = {"true": "on", "false": "off"}.get(word)
            fix = choice if choice in known[path].choices else str(known[path].default).lower()
            what = f"{path}: expected {known[path].expectation()}, got {word or 'nothing'}"
            wrong.append(given.problem(what, f"write {path.rpartition('.')[2]}: {fix}"))
            values[path] = known[path].default
    return values, wrong


# --------------------------------------------------------------------------------------- layers


def _preset_layer(
    name: str | None, presets: Mapping[str, Mapping[str, Any]], schema: type[BaseModel]
) -> Layer:
    layer = Layer()
    if name is None:
        return layer
    if name not in presets:
        near = nearest(name, presets)
        known = one_of(list(presets), "and")
        fix = f"did you mean {near}? " if near else ""
        what = f"unknown preset {name}"
        layer.problems.append(Problem(what, "command line", f"{fix}there are {known}"))
        return layer
    gather(Document(f"preset {name}", "", dict(presets[name])), schema, layer)
    layer.values = {
        path: replace(given, source=f"preset {name}", where=f"preset {name}")
        for path, given in layer.values.items()
    }
    return layer


def _read_layer(path: Path | str, schema: type[BaseModel], recipe: str) -> Layer:
    layer = Layer()
    try:
        document = read(path)
    except ConfigError as error:
        layer.problems += error.problems
        return layer
    gather(document, schema, layer)
    owner = layer.header.get("recipe")
    if owner is not None and owner != recipe:
        what = f"{document.name} belongs to recipe {owner}, not {recipe}"
        own = layer.header.get("file", owner)
        fix = f"surefoot train {own} -c {document.name}, or remove its `surefoot:` section"
        layer.problems = [document.problem(what, document.spot((_HEADER, "recipe")).value, fix)]
    if not document.data and not layer.problems:
        layer.notes.append(f"{document.name} says nothing")
    return layer


def gather(document: Document, schema: type[BaseModel], layer: Layer) -> None:
    """Sort the entries of `document` into values of settings, notes and problems of `layer`."""
    data = dict(document.data)
    if _HEADER in data:
        _take_header(document, data, layer)
    flat = bool(data) and not any(isinstance(value, dict) for value in data.values())
    old = legacy.translate(document, leaves(schema), short_names(schema) if flat else {})
    layer.values |= old.values
    layer.problems += old.problems
    layer.notes += [note for note in [old.note(document)] if note]
    for name, value in data.items():
        if name not in old.taken:
            _entry(document, (name,), value, schema, layer)


def _take_header(document: Document, data: dict[str, Any], layer: Layer) -> None:
    header, pinned = data.pop(_HEADER), data.pop(_PINNED, None)
    spot = document.spot((_HEADER,))
    if not isinstance(header, dict):
        what = f"{_HEADER}: expected format, recipe and preset below it"
        layer.problems.append(document.problem(what, spot.key, f"remove `{_HEADER}:`"))
        return
    for key in header.keys() - set(_KNOWN):
        near = nearest(key, _KNOWN)
        fix = f"did you mean {_HEADER}.{near}?" if near else "remove it"
        place = document.spot((_HEADER, key)).key
        layer.problems.append(document.problem(f"{_HEADER}.{key}: unknown key", place, fix))
    if header.get("format", FORMAT) != FORMAT:
        place = document.spot((_HEADER, "format")).value
        what = f"format {header['format']} of configurations is not known here (only {FORMAT})"
        layer.problems.append(document.problem(what, place, "update surefoot"))
    layer.header = header
    layer.pinned = pinned if isinstance(pinned, dict) else {}


def _entry(
    document: Document, keys: tuple[str, ...], value: Any, schema: type[BaseModel], layer: Layer
) -> None:
    """Take one entry, a setting or a section with entries below it."""
    path, known, groups = ".".join(keys), leaves(schema), sections(schema)
    spot = document.spot(keys)
    if path in known:
        where = document.where(spot.value)
        given = Given(value, where, where, document.excerpt(spot.value), spot.text)
        if isinstance(value, dict) and not known[path].overlay:
            what = f"{path}: expected {known[path].expectation()}, found a section"
            layer.problems.append(given.problem(what, f"write {keys[-1]}: {known[path].default}"))
        elif path in layer.values:
            what = f"{path}: written twice, also at {layer.values[path].source}"
            layer.problems.append(document.problem(what, spot.key, "keep one of the two"))
        else:
            layer.values[path] = given
    elif path not in groups:
        layer.problems.append(_unknown(document, keys, value, schema))
    elif isinstance(value, dict):
        for key, inner in value.items():
            _entry(document, (*keys, key), inner, schema, layer)
    elif value is not None:
        first = next(p for p in known if p.startswith(f"{path}."))
        fix = f"write {keys[-1]}: and below it, indented, {first.rpartition('.')[2]}: ..."
        what = f"{path}: is a section, not a setting"
        layer.problems.append(document.problem(what, spot.value, fix))


def _unknown(
    document: Document, keys: tuple[str, ...], value: Any, schema: type[BaseModel]
) -> Problem:
    path, place = ".".join(keys), document.spot(keys).key
    known, section = leaves(schema), ".".join(keys[:-1])
    if isinstance(value, dict) and not section:
        near = nearest(path, sections(schema)) or _owner(value, known)
        fix = f"did you mean {near}?" if near else f"sections: {', '.join(sections(schema))}"
        return document.problem(f"{path}: unknown section", place, fix)
    old = RENAMED.get(keys[-1])
    found = [old] if old in known else suggest_fields(path, known, section)
    if not section and found and found[0] != path:
        if found[0].rpartition(".")[2] == keys[-1]:
            ways = [f"{p} (under '{p.rpartition('.')[0]}:')" for p in found if "." in p]
            fix = f"{path!r} belongs in a section: write {one_of(ways)}"
        else:
            fix = f"did you mean {one_of(found)}?"
        return document.problem(f"{path}: unknown section or key", place, fix)
    if found:
        return document.problem(f"{path}: unknown key", place, f"did you mean {one_of(found)}?")
    names = [p.rpartition(".")[2] for p in known if p.rpartition(".")[0] == section]
    fix = (
        f"{section} has {', '.join(names)}" if names else f"sections: {', '.join(sections(schema))}"
    )
    return document.problem(f"{path}: unknown key", place, fix)


def _owner(value: Mapping[str, Any], known: Mapping[str, Leaf]) -> str | None:
    """Return the section that holds most of the names under an unknown one."""
    owners = [p.rpartition(".")[0] for p in known for key in value if p.endswith(f".{key}")]
    return max(owners, key=owners.count) if owners else None


def written(files: Iterable[Path | str], schema: type[BaseModel]) -> set[str]:
    """Return the settings to which files give a value. Raises ConfigError where one is unreadable."""
    layer = Layer()
    for file in files:
        gather(read(file), schema, layer)
    return {path for path, given in layer.values.items() if given.value is not None}


# ---------------------------------------------------------------------------------------- merge


def starting_values(schema: type[BaseModel]) -> dict[str, Given]:
    """Return the default of every setting."""
    return {path: Given(leaf.default, "default") for path, leaf in leaves(schema).items()}


def _merge(
    schema: type[BaseModel], layers: Sequence[Layer], problems: list[Problem]
) -> tuple[dict[str, Given], dict[str, int]]:
    """Return the value of every setting from the highest layer that gives it, and that layer."""
    known, merged = leaves(schema), starting_values(schema)
    ranks = dict.fromkeys(known, -1)
    for rank, layer in enumerate(layers):
        merged |= {p: _over(merged[p], given, known[p]) for p, given in layer.values.items()}
        ranks |= dict.fromkeys(layer.values, rank)
    if "train.epochs" in known and "train.max_steps" in known:
        _choose_length(merged, ranks, problems)
    return merged, ranks


def _over(lower: Given, higher: Given, leaf: Leaf) -> Given:
    """Return what counts of two layers: the higher, or for a mapping both together."""
    both = (lower.value, higher.value)
    if not (leaf.overlay and all(isinstance(value, dict) for value in both)):
        return higher
    return replace(higher, value=dotted(lower.value) | dotted(higher.value))


def _choose_length(
    merged: dict[str, Given], ranks: Mapping[str, int], problems: list[Problem]
) -> None:
    """`epochs` and `max_steps` are two ways to say one thing: the higher layer's way counts."""
    epochs, steps = merged["train.epochs"], merged["train.max_steps"]
    given_epochs = str(epochs.value).lower() not in ("none", "null")
    if ranks["train.epochs"] > ranks["train.max_steps"]:
        if given_epochs and steps.value is not None:
            merged["train.max_steps"] = replace(epochs, value=None, text=None)
    elif ranks["train.max_steps"] > ranks["train.epochs"]:
        if given_epochs:
            merged["train.epochs"] = replace(steps, value=None, text=None)
    elif given_epochs and str(steps.value).lower() not in ("none", "null"):
        what = "train.epochs and train.max_steps both say how long to train"
        problems.append(
            epochs.problem(what, f"give one of the two; the other is at {steps.source}")
        )
        merged["train.epochs"] = replace(epochs, value=None, text=None)


def _fit_warmup(merged: dict[str, Given], ranks: Mapping[str, int]) -> list[str]:
    """Shorten a warmup that nobody asked for when somebody asked for a shorter run."""
    path = "schedule.warmup_steps"
    ends = ("schedule.decay_steps", "schedule.horizon", "train.max_steps")
    if any(p not in merged for p in (path, *ends)) or merged["schedule.kind"].value == "onecycle":
        return []
    try:
        end, reason = next((int(merged[p].value), p) for p in ends if merged[p].value is not None)
        warmup = int(merged[path].value)
    except (ValueError, TypeError, StopIteration):
        return []
    if warmup < end or ranks[reason] <= ranks[path] or end < 1:
        return []
    source = f"fitted to {reason} ({merged[reason].source})"
    note = f"{path} is {end // 10} and not {warmup} ({merged[path].source}): {reason} is {end}"
    merged[path] = Given(end // 10, source)
    return [note]


def _covered(values: Mapping[str, Given], layers: Sequence[Layer]) -> bool:
    return all(any(path in layer.values for layer in layers) for path in values)
