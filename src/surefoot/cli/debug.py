"""What `--debug-step N` prints: one step of a run from the inside."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot.config.identity import fingerprint
from surefoot.config.schema import RunConfig
from surefoot.errors import RunError
from surefoot.recipes import Recipe
from surefoot.track.durable import write_atomic
from surefoot.track.folder import RunFolder, find, list_runs
from surefoot.track.text import clean, number

if TYPE_CHECKING:
    from surefoot.lab.debug import Inside, Replay, Spread

__all__ = ["newest", "show_step"]

EXAMPLES = 12  # printed; the file has all of them


def newest(runs: Path, recipe: Recipe, config: RunConfig, name: str | None) -> RunFolder:
    """Return the newest run with these settings, or of this `name`. Raises RunError without one."""
    if name is not None:
        return find(runs, name)
    wanted = fingerprint(config)
    for folder in reversed(list_runs(runs)):
        if folder.meta.get("identity") == wanted and folder.meta.get("recipe") == recipe.name:
            return folder
    fix = "surefoot runs; then: surefoot resume RUN --debug-step N"
    raise RunError("no run has these settings", where=str(runs), fix=fix)


def show_step(folder: RunFolder, step: int, as_json: bool) -> int:
    """Replay a step, print what is inside it, and keep it in `debug/`."""
    from surefoot import api

    found = api.debug(folder.path, step)
    place = folder.path / "debug"
    place.mkdir(exist_ok=True)
    path = place / f"step-{step:09d}.txt"
    write_atomic(path, "\n".join(clean(line) for line in _lines(folder, found, None)) + "\n")
    if as_json:
        print(json.dumps({**_finite(found.as_dict()), "file": str(path)}))
        return 0
    for line in _lines(folder, found, EXAMPLES):
        print(clean(line))
    print(f"\nfile  {path}")
    return 0


def _lines(folder: RunFolder, found: Replay, most: int | None) -> Iterator[str]:
    whence = f"the checkpoint of step {found.begun}" if found.begun else "the beginning"
    yield f"step {found.step} of {folder.name}, replayed from {whence}"
    if found.proven:
        yield f"{found.proven} steps on the way are bit for bit what the journal holds"
    for finding in found.findings:
        yield f"found  {finding}"
    for name, inside in found.learners.items():
        yield ""
        if len(found.learners) > 1:
            yield f"learner {name}"
        yield from _learner(inside, most)


def _learner(inside: Inside, most: int | None) -> Iterator[str]:
    done = "applied" if inside.applied else "not applied"
    whole = not math.isnan(inside.lr)  # else the backward pass broke off
    yield (
        "the step broke off in its backward pass"
        if not whole
        else (
            f"loss {number(inside.loss)}  gradient norm {number(inside.grad_norm)}  "
            f"lr {number(inside.lr)}  update {done}"
        )
    )
    yield ""
    yield _row("activation", "shape", "mean", "std", "low", "high", "zeros", "bad")
    for path, spread in inside.activations.items():
        yield _row(path, _shape(spread), *_numbers(spread), f"{spread.zeros:.0%}", str(spread.bad))
    if inside.gradients:
        yield ""
        yield _row("weight", "shape", "grad std", "low", "high", "norm", "moved", "bad")
    for path, spread in inside.gradients.items():
        norm, moved = inside.weights.get(path, (math.nan, math.nan))
        values = [number(v) for v in (spread.std, spread.low, spread.high, norm, moved)]
        yield _row(path, _shape(spread), *values, str(spread.bad))
    yield ""
    count = len(inside.examples)
    few = {0: "no example was measured by itself", 1: "the example"}
    yield few.get(count, f"{count} examples, the highest loss first")
    for place, loss, text in inside.examples[:most]:
        yield f"  #{place:<4} {number(loss):>8}  {text}"
    if most is not None and count > most:
        yield f"  and {count - most} more in the file"


def _row(name: str, shape: str, *cells: str) -> str:
    short = name if len(name) <= 34 else f"…{name[-33:]}"
    return f"  {short:<34} {shape:>14}" + "".join(f"{cell:>10}" for cell in cells)


def _shape(spread: Spread) -> str:
    return "×".join(map(str, spread.shape)) or "1"


def _numbers(spread: Spread) -> list[str]:
    return [number(value) for value in (spread.mean, spread.std, spread.low, spread.high)]


def _finite(value: Any) -> Any:
    """Return plain JSON: numbers that JSON lacks become texts, as in the record."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value if not isinstance(value, Path) else str(value)
