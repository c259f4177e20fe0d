"""Which settings change the numbers of a run, and which only change how we look at it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import xxhash

from surefoot.config.fields import flatten, leaves
from surefoot.config.learners import alone, overlays, own
from surefoot.config.schema import RunConfig

__all__ = ["changes", "diff", "fingerprint", "growth", "identity", "together"]

_HORIZON = "schedule.horizon"


def identity(config: RunConfig, examples: int | None = None) -> dict[str, Any]:
    """Return every setting that a resume must repeat, as path -> plain value.

    `validate_every` is one of them when early stopping depends on it. The length of a run is one
    through `schedule.horizon`, where a schedule is planned for it: then that entry holds the step
    at which the plan ends. `examples` (size of the training data) turns epochs into steps.
    """
    known = leaves(type(config))
    found = {path: value for path, value in flatten(config).items() if known[path].identity}
    for name, path in overlays(type(config)).items():
        found[path] = {p: v for p, v in own(config, name).items() if known[p].identity}
    names = overlays(type(config)) or ["main"]
    if any(alone(config, name).train.patience for name in names):
        found["cadence.validate_every"] = config.cadence.validate_every
    found[_HORIZON] = None if config.schedule.kind == "constant" else _horizon(config, examples)
    return found


def _horizon(config: RunConfig, examples: int | None) -> int | str | None:
    plan, train = config.schedule, config.train
    steps = plan.decay_steps or plan.horizon or config.limit(examples)
    if steps is None and train.epochs is not None:
        return f"{train.epochs:g} epochs"
    return steps


def fingerprint(config: RunConfig, examples: int | None = None) -> str:
    """Return 32 hex digits that are equal for two configurations with the same identity."""
    text = json.dumps(identity(config, examples), sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(text.encode())


def together(config: RunConfig) -> dict[str, Any]:
    """Return every setting that all processes of a run must have alike, as path -> plain value.

    Besides those of the identity, what decides when they save, look and stop, and who holds what.

    >>> [p for p in together(RunConfig()) if p in ("cadence.save_every", "track.report", "optim.lr")]
    ['cadence.save_every', 'optim.lr']
    """
    timed = {
        path: value
        for path, value in flatten(config).items()
        if path.startswith(("cadence.", "keep.", "train.")) or path == "machine.parallel"
    }
    return timed | identity(config)


def diff(a: RunConfig, b: RunConfig) -> list[tuple[str, Any, Any]]:
    """Return (setting, value in `a`, value in `b`) for everything that changes the numbers."""
    return _different(identity(a), identity(b))


def growth(a: RunConfig, b: RunConfig) -> dict[str, Any]:
    """Return the settings that `b` adds to, where `a` may be added to: path -> value in `b`."""
    known = leaves(type(a))
    return {
        path: new
        for path, old, new in diff(a, b)
        if path in known and known[path].growing and set(old) <= set(new)
    }


def changes(a: RunConfig, b: RunConfig) -> list[tuple[str, Any, Any]]:
    """Return (setting, value in `a`, value in `b`) for changed circumstances."""
    same_numbers = identity(a).keys() | identity(b).keys()
    return [c for c in _different(flatten(a), flatten(b)) if c[0] not in same_numbers]


def _different(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    paths = [*a, *(p for p in b if p not in a)]
    return [(p, a.get(p), b.get(p)) for p in paths if a.get(p) != b.get(p)]
