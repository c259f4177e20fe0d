"""Make a run: everything is decided, tried and written down before there is a folder."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from surefoot.config.fields import changed
from surefoot.config.files import dump
from surefoot.config.identity import fingerprint
from surefoot.config.schema import RunConfig
from surefoot.engine import faults
from surefoot.engine.adopt import fill
from surefoot.engine.auto import fit
from surefoot.engine.disk import refusals, room_for
from surefoot.engine.foresee.traffic import foreseen
from surefoot.engine.job import Job
from surefoot.engine.lost import lost
from surefoot.engine.memory import gpu
from surefoot.engine.mirror import prepare as prepare_mirror
from surefoot.engine.plan import describe, prepare
from surefoot.engine.rebuild import Buildable
from surefoot.engine.state import Payload, TrainState
from surefoot.engine.store import Store
from surefoot.engine.world import World, open_world
from surefoot.errors import OutOfResources
from surefoot.ops.compiler import compiler_version
from surefoot.track.folder import RunFolder, check_name
from surefoot.track.machine import describe_machine, git_state
from surefoot.version import __version__

__all__ = ["New", "adopt", "create", "versions"]

T = TypeVar("T")


@dataclass(frozen=True)
class New:
    """A run that was made and has not begun; `notes` tell a person what it will be."""

    folder: RunFolder
    job: Job
    world: World
    pins: fit.Pins
    notes: Sequence[str]


def _fitting(make: Callable[[], T]) -> T:
    """Return what is made.

    Raises OutOfResources where not even the weights, or one example, fit; DeviceLost.
    """
    try:
        return make()
    except Exception as error:
        if faults.device_lost(error):
            where = "before the first step, nothing was created"
            raise lost(error, where, "the same command begins") from error
        if not faults.out_of_memory(error):
            raise
        raise OutOfResources(
            f"it does not fit into memory: {str(error).splitlines()[0]}",
            where="before the first step, nothing was created",
            fix="smaller sizes, or another machine",
        ) from error


def create(
    recipe: Buildable,
    config: RunConfig,
    *,
    runs: Path,
    cache: Path | None,
    name: str | None = None,
    preset: str | None = None,
    sources: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
    origin: Callable[[Job], tuple[dict[str, Any], Payload]] | None = None,
    tell: Callable[[str], None] | None = None,
) -> New:
    """Make a new run in `runs`. Nothing is created before data, model, weights and plan are there.

    `origin` prepares the learners where they do not begin at nothing, and returns what run.json
    says of that (its `step` among it) and the first checkpoint. `tell` hears what is waited for.
    Raises SurefootError.
    """
    check_name(runs, name)
    world = open_world(config.machine.device)
    job = _fitting(lambda: recipe.build(config, world))
    limit = config.limit(len(job.source))
    horizon = config.schedule.horizon or config.schedule.decay_steps or limit
    horizons = prepare(job, config, {})
    settled = changed(config, job.settings)
    pins, plan = _fitting(lambda: fit.choose(settled, job, world, limit, cache, tell))
    if told := foreseen(recipe, settled, pins, job.source.fingerprint, world, cache):
        plan = replace(plan, moved=told[0], bandwidth=told[1])
    room_for(runs, plan.disk)
    pinned = {**pins.as_dict(), "horizon": horizon}
    git, diff = git_state(Path.cwd(), runs)
    meta = {
        "id": uuid.uuid4().hex, "preset": preset, "max_steps": limit, "seed": config.train.seed,
        "horizons": horizons,
        "identity": fingerprint(config), "pinned": pinned, "data": job.data, "segments": [],
        "source": job.source.fingerprint, "settings": job.settings,
        "location": recipe.location or recipe.name, "speaks": recipe.speak is not None,
        "plan": asdict(plan), "git": git,
        "machine": {**describe_machine(), **gpu(world.device)},
        "tags": config.track.tags, "versions": versions(pins), **(facts or {}),
    }  # fmt: skip
    resolved = {k: v for k, v in pinned.items() if k != "why"}
    whose = recipe.name, preset, recipe.location
    files = {
        "config.yaml": dump(config, dict(sources or {}), resolved, *whose),
        **({"code.diff": diff} if diff else {}),
        **_source_of(recipe.location),
        **job.files,
    }
    if config.keep.mirror is not None:
        prepare_mirror(config.keep.mirror, runs)
    born, payload = origin(job) if origin is not None else ({}, None)
    folder = RunFolder.create(runs, recipe.name, name, files, meta | born)
    if payload is not None:
        with folder.lock(), refusals(folder.path):
            Store(folder.path / "checkpoints", meta["id"]).save(
                born["step"], payload, places={}, identity=meta["identity"]
            )
    return New(folder, job, world, pins, list(describe(job, pins, plan, limit)))


def _source_of(location: str) -> dict[str, str]:
    """Return the text of a recipe that is a file of its own, to be kept with the run."""
    if not location.endswith(".py"):
        return {}
    return {"recipe.py": Path(location).read_text(encoding="utf-8", errors="replace")}


def adopt(
    recipe: Buildable,
    config: RunConfig,
    tensors: Mapping[str, Mapping[str, Tensor]],
    *,
    file: str,
    **particulars: Any,
) -> RunFolder:
    """Make a run whose learners begin, at step 0, with weights from a `file`, by learner and name.

    `particulars` are those of `create`. Raises DataError that explains what does not fit.
    """

    def begin_with(job: Job) -> tuple[dict[str, Any], Payload]:
        fill(job.learners, tensors)
        facts = {"adopted": file, "status": "stopped", "step": 0}
        return facts, TrainState(job.learners).payload()

    return create(recipe, config, origin=begin_with, **particulars).folder


def versions(pins: fit.Pins | None = None) -> dict[str, str]:
    """Return the versions that bits may depend on; with `pins` that compile, the compiler's, too."""
    return {
        "surefoot": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        **(
            {"compiler": compiler_version(pins.device)} if pins is not None and pins.compile else {}
        ),
    }
