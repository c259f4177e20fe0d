"""Settings that differ between the learners of a run.

A recipe with several learners declares one mapping for each in its section `learners`: what it
has of its own, by path. `alone` applies it, and whoever builds or judges a learner reads nothing
but `alone(config, name)`: so a learner beside others has what it would have by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from surefoot.config.fields import changed, leaves

__all__ = ["alone", "broken", "overlays", "own"]

C = TypeVar("C", bound=BaseModel)

_SHARED = ("data", "machine", "ops", "cadence", "keep", "track", "learners")
_OWN_TRAIN = ("ema", "max_steps", "min_delta", "patience", "restore_best")


@cache
def overlays(schema: type[BaseModel]) -> dict[str, str]:
    """Return the learners that may have settings of their own: name -> path of the mapping."""
    return {leaf.name: path for path, leaf in leaves(schema).items() if leaf.overlay}


def own(config: BaseModel, name: str) -> dict[str, Any]:
    """Return what a learner has of its own: path -> value; nothing for an unknown name."""
    path = overlays(type(config)).get(name)
    if path is None:
        return {}
    section, _, field = path.rpartition(".")
    return dict(getattr(getattr(config, section), field))


def alone(config: C, name: str) -> C:
    """Return the configuration of one learner, with which it would train alone to the same bits.

    Raises pydantic's ValidationError where it does not fit together; `broken` says it in words.
    """
    found = own(config, name)
    if not found:
        return config
    values: dict[str, Any] = {path: {} for path in overlays(type(config)).values()}
    if "train.max_steps" in found:
        values["train.epochs"] = None
    return changed(config, values | found)


def broken(config: BaseModel) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with settings of single learners, as (path of the mapping, words)."""
    known = leaves(type(config))
    for name, path in overlays(type(config)).items():
        found = own(config, name)
        unknown = [p for p in found if p not in known]
        shared = [p for p in found if p in known and not _separable(p)]
        yield from ((path, f"{p} is no setting") for p in unknown)
        yield from ((path, f"{p} is shared by all learners") for p in shared)
        if unknown or shared or not found:
            continue
        try:
            alone(config, name)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                where = ".".join(str(part) for part in detail["loc"])
                words = str(detail.get("ctx", {}).get("error", detail["msg"]))
                for rule in words.split("\x1e"):
                    field, _, text = rule.rpartition("\x1f")
                    yield path, f"{field or where}: {text}"


def _separable(path: str) -> bool:
    section, _, name = path.partition(".")
    return name in _OWN_TRAIN if section == "train" else section not in _SHARED
