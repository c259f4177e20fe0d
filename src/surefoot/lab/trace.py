"""Golden traces: what a recipe computes, step by step, so that a refactoring can prove itself.

A trace is one JSON file. It holds the settings with every `auto` decided, for each step the bits
of loss and gradient norm, and for the first step what every layer gave and every gradient was.
Tensors are kept as a hash, their norm and one random projection, which also tell how far two of
them are apart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from surefoot.config.fields import flatten
from surefoot.config.schema import RunConfig
from surefoot.data.batch import Data
from surefoot.engine.create import versions
from surefoot.engine.journal import Kind
from surefoot.engine.journal import read as journal
from surefoot.errors import CheckFailed, DataError, RunError
from surefoot.lab.differ import Difference, Heard, listening, pass_once
from surefoot.lab.side import Side
from surefoot.track.durable import write_atomic
from surefoot.track.folder import RunFolder
from surefoot.track.machine import describe_machine

__all__ = ["changed_since", "compare", "of_run", "read", "record", "write"]

FORMAT = 1
_EVERY = 10  # steps between looks at all weights

Fact = tuple[str, float, float]  # hash of the bytes, norm, random projection
Trace = dict[str, Any]
_Found = tuple[str, float]  # layer, relative error


def record(side: Side, count: int, watch: Callable[[int], None] = lambda step: None) -> Trace:
    """Take `count` steps of `side` and return what came of each."""
    data = _data(side)
    learners: dict[str, Any] = {
        name: {"layers": _layers(side, name, data), "steps": []} for name in _names(side)
    }
    weights = {"0": _weights(side)}
    side.begin(data, side.config.train.seed)
    for step in range(1, count + 1):
        report = side.step(False)
        if report is None:
            break
        for name, reading in report.readings.items():
            learners[name]["steps"].append([_hex(reading.loss), _hex(reading.grad_norm)])
        if step % _EVERY == 0 or step == count:
            weights[str(step)] = _weights(side)
        watch(step)
    settings = {k: v for k, v in flatten(side.settled()).items() if not k.startswith(_ASIDE)}
    return {
        "format": FORMAT, "recipe": side.recipe.location or side.recipe.name,
        "settings": json.loads(json.dumps(settings, default=str)),
        "source": side.job.source.fingerprint, "versions": versions(),
        "cpu": describe_machine()["cpu"], "learners": learners, "weights": weights,
    }  # fmt: skip


_ASIDE = ("cadence.", "keep.", "track.")  # sections that change no number


def write(trace: Trace, path: Path) -> None:
    """Write a trace to a file, whole or not at all. Raises DataError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(trace, indent=None, separators=(",", ":")) + "\n")
    except OSError as error:
        what, fix = f"cannot write the trace: {error.strerror}", "--out FILE, where you may write"
        raise DataError(what, where=str(path), fix=fix) from error


def read(path: Path) -> Trace:
    """Read a trace. Raises DataError for a file that is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fix = "surefoot trace record RECIPE --out FILE makes one"
        why = getattr(error, "strerror", None)
        what = f"cannot read the trace: {why}" if why else f"this is no trace: {error}"
        raise DataError(what, where=str(path), fix=fix) from error
    needed = {"format", "recipe", "settings", "source", "learners", "weights"}
    if not isinstance(found, dict) or not needed <= found.keys() or found["format"] != FORMAT:
        raise DataError("this is no trace of a known format", where=str(path), fix="record it anew")
    return dict(found)


def compare(
    side: Side, trace: Trace, tolerance: float, watch: Callable[[int], None] = lambda step: None
) -> int:
    """Take the steps of `trace` on `side`; return how many there are.

    Raises CheckFailed at the first number that is further from the trace's than `tolerance`; 0
    means the very bits.
    """
    data = _data(side)
    if side.job.source.fingerprint != trace["source"]:
        raise CheckFailed("the data is not that of the trace", fix="bring it back, or record anew")
    known = trace["learners"]
    if list(known) != _names(side):
        raise CheckFailed(f"learners {', '.join(_names(side))}, in the trace {', '.join(known)}")
    _weigh(0, _weights(side), trace["weights"].get("0", {}), tolerance)
    for name in (name for name in known if known[name]["layers"]):
        mine = _layers(side, name, data)
        for phase in ("forward", "backward"):
            for layer, off in _apart(mine[phase], known[name]["layers"][phase]):
                if not off <= tolerance:
                    raise _failed(Difference(1, name, phase, layer, off))
    side.begin(data, side.config.train.seed)
    count = max(len(found["steps"]) for found in known.values())
    for step in range(1, count + 1):
        report = side.step(False)
        for name, reading in report.readings.items() if report else ():
            pair = zip((reading.loss, reading.grad_norm), known[name]["steps"][step - 1])
            for what, (mine_, text) in zip(("the loss", "the gradient norm"), pair):
                off = _off(float(np.float32(mine_)), float.fromhex(text))
                if off > tolerance:
                    raise _failed(Difference(step, name, "number", what, off))
        if str(step) in trace["weights"]:
            _weigh(step, _weights(side), trace["weights"][str(step)], tolerance)
        watch(step)
    return count


def of_run(folder: RunFolder, config: RunConfig, names: Sequence[str]) -> Trace:
    """Return what the journal of a run holds, as a trace without layers.

    Raises CheckpointError where the journal cannot be read, RunError where it has no step 1.
    """
    steps: dict[str, dict[int, list[str]]] = {name: {} for name in names}
    ordered = sorted(names)
    for _, found in journal(folder.path / "journal"):
        if found is not None and found.kind is Kind.STEP:
            steps[ordered[found.learner]][found.step] = [_hex(found.loss), _hex(found.norm)]
    learners = {}
    for name, known in steps.items():
        count = next(n for n in range(1, len(known) + 2) if n not in known) - 1
        learners[name] = {"layers": None, "steps": [known[n] for n in range(1, count + 1)]}
    if not any(found["steps"] for found in learners.values()):
        raise RunError("its journal does not hold its first step", where=str(folder.path))
    return {
        "format": FORMAT, "recipe": folder.recipe_at, "settings": flatten(config),
        "source": folder.meta["source"], "versions": folder.meta.get("versions", {}),
        "cpu": folder.meta["machine"].get("cpu"), "learners": learners, "weights": {},
    }  # fmt: skip


def changed_since(trace: Trace) -> list[str]:
    """Name what differs between the trace's machine and this one; bits may then differ too."""
    here = {**versions(), "cpu": describe_machine()["cpu"]}
    known = {**trace["versions"], "cpu": trace["cpu"]}
    return [f"{k} {known[k]} -> {here[k]}" for k in here if k in known and known[k] != here[k]]


def _hex(value: float) -> str:
    return float(np.float32(value)).hex()


def _failed(found: Difference) -> CheckFailed:
    return CheckFailed(f"not the trace's: {found}")


def _weigh(step: int, mine: Mapping[str, Any], known: Mapping[str, Any], tolerance: float) -> None:
    for name, facts in known.items():
        for layer, off in _apart(mine.get(name, {}), facts):
            if not off <= tolerance:
                raise _failed(Difference(step, name, "weight", layer, off))


def _apart(mine: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[_Found]:
    """Yield (layer, relative error) in the order of the trace; one that is gone is infinitely far."""
    for layer, fact in known.items():
        yield layer, _distance(mine[layer], fact) if layer in mine else math.inf
    for layer in mine.keys() - known.keys():
        yield layer, math.inf


def _distance(a: Fact, b: Fact) -> float:
    if a[0] == b[0]:
        return 0.0
    size = max(abs(b[1]), 1e-30)
    off = max(abs(a[1] - b[1]), abs(a[2] - b[2])) / size
    return off if off > 0 else 1e-16  # other bits, and all that is kept of them agrees


def _off(a: float, b: float) -> float:
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    return abs(a - b) / max(abs(b), 1e-30) if math.isfinite(a) and math.isfinite(b) else math.inf


def _names(side: Side) -> list[str]:
    return list(side.job.learners)


def _data(side: Side) -> Data:
    return Data(
        side.job.source,
        side.config.train.seed,
        side.config.train.batch_size,
        side.config.train.batch_warmup,
    )


def _layers(side: Side, name: str, data: Data) -> dict[str, dict[str, Fact]]:
    """Return what the layers and gradients of the first piece of the first batch are."""
    learner, seed = side.job.learners[name], side.config.train.seed
    batch = data.batch(0, 0, min(learner.micro or data.size(0), data.size(0)))
    with listening(learner) as outputs:
        gradients = pass_once(learner, side.world, batch, 0, seed)
    learner.zero()
    return {"forward": _named(outputs), "backward": _named(gradients)}


def _named(heard: Heard) -> dict[str, Fact]:
    """Return facts by layer; the n-th time that a layer was heard has `#n` behind its name."""
    found: dict[str, Fact] = {}
    for path, tensor in heard:
        times = sum(known.partition("#")[0] == path for known in found)
        found[f"{path}#{times + 1}" if times else path] = _fact(tensor)
    return found


def _weights(side: Side) -> dict[str, dict[str, Fact]]:
    return {
        name: {n: _fact(p.detach()) for n, p in zip(learner.names, learner.parameters)}
        for name, learner in side.job.learners.items()
    }


def _fact(tensor: Tensor) -> Fact:
    flat = tensor.detach().cpu().contiguous().flatten()
    bits = flat.view(torch.uint8) if flat.numel() else flat.to(torch.uint8)
    exact = flat.double()
    places = torch.arange(flat.numel())
    signs = 1 - 2 * ((places * 0x9E3779B1 >> 15) & 1)
    return (
        xxhash.xxh3_64_hexdigest(bits.numpy().tobytes()),
        float(exact.norm()),
        float((exact * signs).sum()),
    )
