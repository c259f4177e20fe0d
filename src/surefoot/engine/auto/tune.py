"""Choose the ways of operations: as asked for, or the fastest at the sizes of this model.

Every call that a pass of the model makes is timed in each way that runs here, forward and
backward. A way takes the place of the standard one only where that clearly shortens a step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surefoot.config.schema import RunConfig
from surefoot.engine.job import Job
from surefoot.engine.own import find, is_file, pinned
from surefoot.ops import OPS, Op, Slot, slots
from surefoot.ops.check import seconds, trial

__all__ = ["begin", "choose", "free", "shown"]

_OF_OP = 0.20  # share of an operation's time that another way must save to replace the standard
_OF_STEP = 0.03  # and share of the step
_RACED = ("attention", "cross_entropy")  # on a processor they are raced with whole passes


def begin(config: RunConfig, job: Job, device: torch.device) -> tuple[dict[str, str], list[str]]:
    """Return the way of each operation that is used, and what was asked for and is not used.

    Ways are those that were asked for, else the standard ones. Raises ConfigError for a file that
    holds none.
    """
    used = {slot.op.name: slot.op for slot in _slots(job)}
    asked = {op: way for op, way in config.ops.ways().items() if way != "auto"}
    for name, way in asked.items():
        find(OPS[name], way)
    ways = {name: pinned(asked.get(name, _usual(op, device))) for name, op in used.items()}
    return ways, sorted(asked.keys() - used.keys())


def _usual(op: Op, device: torch.device) -> str:
    """Return the way that nobody needs to measure: on CUDA, the loss may not hold all logits."""
    better = {"cross_entropy": ("triton", "chunked"), "within": ("flex",)}.get(op.name, ())
    found = (way for way in better if device.type == "cuda" and not op.ways[way].why_not(device))
    return next(found, op.standard)


def free(config: RunConfig, device: torch.device) -> list[str]:
    """Return the operations that are to be measured one by one."""
    raced = _RACED if device.type == "cpu" else ("cross_entropy", "within")
    return [op for op, way in config.ops.ways().items() if way == "auto" and op not in raced]


def shown(ways: Mapping[str, str]) -> Iterator[str]:
    """Yield what a person wants to know of the chosen ways: attention, and what is not standard."""
    for name, way in ways.items():
        if name == "attention" or way != OPS[name].standard:
            file = Path(way.partition("#")[0]).name
            yield f"{name} {file if is_file(way) else way}"


@dataclass
class _Calls:
    """What a pass of a model asks of one operation: how often, and the largest of the calls."""

    op: Op
    count: int = 0
    size: int = 0
    args: tuple[Any, ...] = ()

    def take(self, args: tuple[Any, ...]) -> None:
        size = sum(a.numel() for a in args if isinstance(a, Tensor))
        self.count += 1
        if size > self.size:
            self.size, self.args = size, tuple(map(_apart, args))

    def trial(self, way: str) -> Callable[[], None]:
        """Return a function that makes the call once in this way, forward and backward."""
        return trial(self.op, self.op.ways[way].call, self.args)


def choose(
    job: Job,
    names: Collection[str],
    run: Callable[[], None],
    device: torch.device,
    ways: Mapping[str, str],
    step: float,
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the ways that are faster than those of `ways`, by operation, and what was measured.

    `run` makes one pass of all models, which takes `step` seconds. No weight is touched.
    """
    found: dict[str, str] = {}
    lines = []
    with _listening(job, names) as calls:
        run()
    first = next(iter(job.learners.values()))
    for name, asked in calls.items():
        now = ways[name]
        rivals = [w for w in asked.op.available(device) if not asked.op.ways[w].slow_start]
        with first.autocast:
            alone = seconds({now: asked.trial(now)}, device, 0.002)[now]
        if len(rivals) < 2 or alone * asked.count < 2 * _OF_STEP * step:
            continue  # nothing to gain
        with first.autocast:
            taken = seconds({way: asked.trial(way) for way in rivals}, device, 0.006)
        best = min(taken, key=lambda way: taken[way])
        saved = taken[now] - taken[best]
        if saved > _OF_OP * taken[now] and saved * asked.count > _OF_STEP * step:
            found[name] = best
        times = ", ".join(f"{way} {time * 1e3:.3f}" for way, time in taken.items())
        lines.append(f"{name} {times} (x{asked.count})")
    return found, {"ops": f"ms a call: {'; '.join(lines)}"} if lines else {}


def _slots(job: Job) -> Iterator[Slot]:
    for learner in job.learners.values():
        yield from slots((learner.model, *learner.optimisers))


@contextmanager
def _listening(job: Job, names: Collection[str]) -> Iterator[dict[str, _Calls]]:
    """Let the models tell their calls; afterwards everything is as before."""
    found: dict[str, _Calls] = {}
    changed: list[tuple[Slot, Callable[..., Any]]] = []
    for learner in job.learners.values():
        for slot in slots((learner.model,)):
            if slot.op.name in names:
                calls = found.setdefault(slot.op.name, _Calls(slot.op))
                changed.append((slot, slot.call))
                slot.put(partial(_told, calls, slot.call))
    try:
        yield found
    finally:
        for slot, call in changed:
            slot.put(call)
        for name in [name for name, calls in found.items() if not calls.count]:
            del found[name]


def _told(calls: _Calls, call: Callable[..., Any], *args: Any) -> Any:
    calls.take(args)
    return call(*args)


def _apart(value: Any) -> Any:
    """Return a tensor that is in no graph and asks for a gradient where the old one had one."""
    if not isinstance(value, Tensor):
        return value
    fresh = value.detach().clone() if isinstance(value, nn.Parameter) else value.detach()
    return fresh.requires_grad_(value.requires_grad)
