"""Decide every `auto` before step 0, by rule or by a probe of half a second, and say why.

What is decided is pinned in the run and repeated by every resume, because it changes bits. A
probe runs forward and backward on real examples of the run and touches no weight.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from surefoot.config.fields import changed
from surefoot.config.schema import RunConfig, largest_divisor
from surefoot.engine.auto.ceilings import products
from surefoot.engine.auto.known import question, recall, remember
from surefoot.engine.job import Job
from surefoot.engine.named import buffers_kept
from surefoot.engine.place import apply
from surefoot.engine.world import World
from surefoot.nn.muon import Muon
from surefoot.ops import OPS
from surefoot.ops.compiler import compiler

__all__ = ["Pins", "Plan", "choose", "earlier", "usable_cores"]

_LEAVES = 8  # micro-batches that a tree has at least, so that devices can be added later
_COMPILE_COST = 40.0  # seconds of one core to compile charlm the first time here (EPYC, torch 2.13)
_BETWEEN = ("norm", "rotary", "swiglu", "squared_relu")  # operations between products
_COMPILE_GAIN = {"bf16": 0.15, "fp32": 0.05}  # share of the step that compiling saves there


@dataclass(frozen=True)
class Plan:
    """What the run will take. Bytes and seconds; `seconds` is None when it has no end."""

    memory: int
    weights: int  # of `memory`
    seconds: float | None
    disk: int
    step_seconds: float
    ceiling: float | None = None  # FLOP/s that matrix products reach at most, in its precision
    moved: int | None = None  # that the operations of a step read and write, as foreseen
    bandwidth: float | None = None  # bytes a second that the device moves at most


@dataclass(frozen=True)
class Pins:
    """Every `auto`, resolved. `why` gives the reason of each, for people."""

    device: str
    precision: str = "fp32"
    compile: bool = False
    threads: int = 1
    matmul: str = "default"
    micro_batch_size: int = 1
    prefetch_threads: int = 0
    ops: Mapping[str, str] = field(default_factory=dict)
    why: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Pins:
        """Return what `as_dict` wrote; of older runs, whose kernels stood beside the rest, too."""
        known = {f.name for f in fields(cls)}
        found = {name: value for name, value in values.items() if name in known}
        older = {name: values[name] for name in OPS if name in values}
        return cls(**{**found, "ops": {**older, **found.get("ops", {})}})

    def settle(self, config: RunConfig) -> RunConfig:
        """Return `config` with every `auto` as it is decided here."""
        machine, asked = config.machine, config.ops.ways()
        same: dict[str, Any] = {
            f"machine.{name}": getattr(self, name)
            for name in ("device", "precision", "threads", "matmul", "micro_batch_size")
            if getattr(machine, name) == "auto"
        }
        if config.train.batch_size % self.micro_batch_size:
            same.pop("machine.micro_batch_size", None)
        if machine.compile == "auto":
            same["machine.compile"] = "on" if self.compile else "off"
        same |= {f"ops.{op}": way for op, way in self.ops.items() if asked[op] == "auto"}
        return changed(config, same)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for run.json."""
        return asdict(self)


def choose(
    config: RunConfig, job: Job, world: World, steps: int | None, cache: Path | None,
    tell: Callable[[str], None] | None = None,
) -> tuple[Pins, Plan]:  # fmt: skip
    """Return the pins for `job` on `world`, applied, and the plan of `steps` steps.

    `cache` is a file of earlier answers for the same question on the same machine. `tell` hears why
    a slow model keeps a person waiting.
    """
    asked = question(config, job.source.fingerprint, job.learners, world.device, usable_cores())
    known = recall(cache, asked)
    if known is None:
        from surefoot.engine.auto.probe import Probe  # which knows what Pins are

        with buffers_kept(*job.learners.values()):
            known = Probe(config, job, world, tell).answer()
        remember(cache, asked, known)
    pins = _shared_out(config, Pins.read(known["pins"]), world)
    step = float(known["step_seconds"])
    pins = _leave_to_compiler(config, _decide_compile(config, pins, step, steps))
    for learner in job.learners.values():
        apply(learner, pins)
    return pins, replace(_plan(config, job, pins, known, steps), ceiling=_ceiling(pins, cache))


def _ceiling(pins: Pins, cache: Path | None) -> float | None:
    """Return the FLOP/s that the device reaches at most with the threads it is given."""
    if cache is None:
        return None
    device = torch.device(pins.device)
    fp32, half = products(cache.with_name("ceilings.json"), device)
    rate = fp32 if pins.precision == "fp32" else half
    return rate * (pins.threads if device.type == "cpu" else 1)


def _shared_out(config: RunConfig, pins: Pins, world: World) -> Pins:
    """Make micro-batches small enough for every process to have one; in a tree, for eight."""
    batch, asked = config.train.batch_size, config.machine.micro_batch_size
    least = max(world.size, _LEAVES) if config.machine.reduce == "tree" else world.size
    if isinstance(asked, int) or batch // pins.micro_batch_size >= least:
        return pins
    micro = largest_divisor(batch, max(1, batch // least))
    return _with(pins, "micro_batch_size", micro, f"{batch // micro} for the processes to share")


def _plan(
    config: RunConfig, job: Job, pins: Pins, known: Mapping[str, Any], steps: int | None
) -> Plan:
    learners = job.learners.values()
    weights = sum(p.numel() * 4 for x in learners for p in x.parameters)
    frozen = sum(p.nbytes for x in learners for p in x.model.parameters() if not p.requires_grad)
    moments = 1.5 if any(isinstance(o, Muon) for x in learners for o in x.optimisers) else 2
    state = int(weights * (1 + moments))
    kept = config.keep.last + 1 + config.keep.best / (1 + moments)
    memory = int(frozen + state + weights + known["activation_bytes"] * pins.micro_batch_size)
    step = float(known["step_seconds"]) * (1 - _gain(pins) if pins.compile else 1)
    return Plan(memory, weights, None if steps is None else steps * step, int(state * kept), step)


def _decide_compile(config: RunConfig, pins: Pins, step: float, steps: int | None) -> Pins:
    asked = config.machine.compile
    if asked == "off":
        return _with(pins, "compile", False, "asked for")
    if asked == "on":
        return _with(pins, "compile", True, "asked for")
    if compiler(pins.device) is None:
        what = "Triton" if pins.device.startswith("cuda") else "C++ compiler"
        return _with(pins, "compile", False, f"no {what} here")
    if pins.device == "mps":
        return _with(pins, "compile", False, "not on MPS")
    total = step * steps if steps is not None else float("inf")
    saved = total * _gain(pins)
    pays = saved > 1.5 * _COMPILE_COST
    reason = f"would save about {min(saved, 1e6):.0f} s of {min(total, 1e6):.0f} s"
    if saved < 1:
        reason = "would save less than a second"
    return _with(pins, "compile", pays, f"{reason}, costs about {_COMPILE_COST:.0f} s")


def _gain(pins: Pins) -> float:
    """Return the share of a step that compiling usually saves."""
    return _COMPILE_GAIN.get(pins.precision, 0.0) if pins.device == "cpu" else 0.4


def _leave_to_compiler(config: RunConfig, pins: Pins) -> Pins:
    """Let torch's compiler fuse what stands between products, where nobody named a way.

    On a processor its code is as fast as with ways that know their gradients, and made sooner.
    """
    if not pins.compile:
        return pins
    asked = config.ops.ways()
    plain = {op: "reference" for op in pins.ops if op in _BETWEEN and asked[op] == "auto"}
    return replace(pins, ops={**pins.ops, **plain})


def earlier(
    config: RunConfig, source: str, learners: Iterable[str], device: torch.device, cache: Path
) -> tuple[Pins, float] | None:
    """Return the pins and the seconds a step that were measured here before, if they were.

    `source` is the fingerprint of the data.
    """
    found = recall(cache, question(config, source, learners, device, usable_cores()))
    return None if found is None else (Pins.read(found["pins"]), float(found["step_seconds"]))


def _with(pins: Pins, name: str, value: Any, why: str) -> Pins:
    return replace(pins, **{name: value, "why": {**pins.why, name: why}})


def usable_cores() -> int:
    """Return the cores this process may use, at most the physical ones and $OMP_NUM_THREADS."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        allowed = os.cpu_count() or 1
    told = os.environ.get("OMP_NUM_THREADS", "")
    limit = int(told) if told.isdecimal() else allowed
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of a group on this machine
    allowed = max(1, allowed // beside)
    return max(1, min(allowed, limit, psutil.cpu_count(logical=False) or allowed))
