"""The checker's complaints as sentences: one Problem for each setting, in plain words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from surefoot.config.fields import Given, Leaf, leaves, nest
from surefoot.config.suggest import one_of, suggest_value
from surefoot.errors import Problem

__all__ = ["explain_errors"]


def explain_errors(
    error: ValidationError,
    merged: Mapping[str, Given],
    schema: type[BaseModel],
    values: Mapping[str, Any],
) -> list[Problem]:
    """Return what is wrong, each setting once, and rules between settings after single ones.

    Rules are only looked at by pydantic when all values are good by themselves, so they are tried
    again with the defaults in place of bad values; complaints that touch one of those are dropped.
    """
    known = leaves(schema)
    bad: dict[str, list[ErrorDetails]] = {}
    found: list[Problem] = []
    for detail in error.errors(include_url=False):
        path = _path(detail["loc"], known)
        if path is None:
            found += _broken_rules(detail, merged, known, set())
        else:
            bad.setdefault(path, []).append(detail)
    found = [_bad_value(known[p], merged[p], details) for p, details in bad.items()] + found
    if bad:
        trial = dict(values) | {path: known[path].default for path in bad}
        try:
            schema.model_validate(nest(trial))
        except ValidationError as second:
            for detail in second.errors(include_url=False):
                if not detail["loc"]:
                    found += _broken_rules(detail, merged, known, set(bad))
    return found


def _path(loc: tuple[int | str, ...], known: Mapping[str, Leaf]) -> str | None:
    """Return the setting that a complaint is about; None when it is about several."""
    for end in range(len(loc), 0, -1):
        path = ".".join(str(part) for part in loc[:end])
        if path in known:
            return path
    return None


def _bad_value(leaf: Leaf, given: Given, details: list[ErrorDetails]) -> Problem:
    unknown = [d for d in details if leaf.listing and d["type"] == "literal_error"]
    if unknown:
        return _unknown_words(leaf, given, unknown)
    said = next((_own_words(d) for d in details if _own_words(d)), None)
    expected = said or f"expected {leaf.expectation()}"
    what = f"{leaf.path}: {expected}, got {_shown(given.value)}"
    meant = suggest_value(given.value, leaf.choices or _offered(said or ""))
    if meant is None and {int, float} & set(leaf.kinds):
        meant = _number(given.value, whole=float not in leaf.kinds)
    if meant is not None:
        return given.problem(what, f"did you mean {meant}?")
    bound = _bound(leaf, given.value)
    return given.problem(what, f"{bound}the default is {_shown(leaf.default)}. {leaf.doc}".strip())


def _unknown_words(leaf: Leaf, given: Given, details: list[ErrorDetails]) -> Problem:
    """Name the words of a list that do not exist, and those that do."""
    words = [str(d["input"]) for d in details]
    offered = re.findall(r"'([^']+)'", details[0]["ctx"]["expected"])
    what = f"{leaf.path}: there is no {one_of([repr(word) for word in words])}"
    meant = suggest_value(words[0], offered)
    return given.problem(
        what, f"did you mean {meant}?" if meant else f"one of {', '.join(offered)}"
    )


def _own_words(detail: ErrorDetails) -> str | None:
    """Return the text of a validator of ours."""
    if detail["type"] != "value_error":
        return None
    return str(detail.get("ctx", {}).get("error", detail["msg"]))


def _offered(text: str) -> list[str]:
    """Return the words that a validator offers: `expected a, b or c`, `expected a time like a`."""
    words = text.partition(" like ")[2] or text.removeprefix("expected ")
    return [w for w in words.replace(",", " ").replace(" or ", " ").split() if len(w) > 1]


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _number(value: Any, whole: bool) -> str | None:
    """Return the number that `1,000`, `10k`, `2M`, `1e-3.` or a fraction was meant to be."""
    text = str(value).strip().lower().replace(",", "").replace(" ", "").replace("^", "e")
    scale = {"k": 1_000, "m": 1_000_000}.get(text[-1:], 1)
    try:
        number = float(text.rstrip("km")) * scale
    except ValueError:
        return None
    if not abs(number) < 2**53 or isinstance(value, bool):  # nan, or nobody's meaning
        return None
    meant = str(round(number)) if whole or number.is_integer() else str(number)
    return meant if meant != str(value).strip() and float(meant) != value else None


def _bound(leaf: Leaf, value: Any) -> str:
    """Return help for a number outside of its range."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return ""
    for rule in leaf.info.metadata:
        least, most = getattr(rule, "ge", None), getattr(rule, "le", None)
        if least is not None and number < least:
            return f"the least is {least:.12g}; "
        if most is not None and number > most:
            return f"the most is {most:.12g}; "
    return ""


def _broken_rules(
    detail: ErrorDetails, merged: Mapping[str, Given], known: Mapping[str, Leaf], bad: set[str]
) -> list[Problem]:
    """Return the rules between settings that `RunConfig.conflicts` found broken."""
    text = _own_words(detail) or detail["msg"]
    found: list[Problem] = []
    for rule in text.split("\x1e"):
        path, _, said = rule.rpartition("\x1f")
        names = {p.rpartition(".")[2] for p in bad}
        if path in bad or any(name in said for name in names):
            continue
        given = merged.get(path)
        if given is None:
            found.append(Problem(said, "configuration", None))
            continue
        found.append(_rule(known[path], given, said, merged))
    return found


def _rule(leaf: Leaf, given: Given, said: str, merged: Mapping[str, Given]) -> Problem:
    """Point at the setting itself if somebody wrote it, else at one that belongs to it."""
    written = {p: g for p, g in merged.items() if g.where and not g.source.startswith("preset ")}
    named = [g for p, g in written.items() if p.rpartition(".")[2] in said]
    beside = [g for p, g in written.items() if p.startswith(f"{leaf.section}.")]
    told = written.get(leaf.path) or next(iter([*named, *beside]), given)
    better = re.search(r"; (\S+) would$", said)
    value = given.value if isinstance(given.value, str) else _shown(given.value)
    fix = f"{leaf.path} is {value} (from {given.source}). {leaf.doc}"
    if better:
        fix = f"did you mean {better[1]}?"
    return told.problem(f"{leaf.path}: {said}", fix)
