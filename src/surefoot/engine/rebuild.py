"""Put the parts of a run together, as they were when it began."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from surefoot.config.fields import changed
from surefoot.config.schema import RunConfig
from surefoot.engine.auto.fit import Pins
from surefoot.engine.job import Job
from surefoot.engine.place import apply
from surefoot.engine.plan import prepare
from surefoot.engine.world import World, open_world
from surefoot.errors import RunError
from surefoot.track.folder import RunFolder

__all__ = ["Buildable", "as_trained", "mended", "rebuild", "repeated"]

Horizons = Mapping[str, int | None]  # steps that the schedule of each learner is planned for


class Buildable(Protocol):
    """What is needed of a recipe here; recipes live upstairs."""

    @property
    def name(self) -> str: ...
    @property
    def location(self) -> str: ...
    @property
    def build(self) -> Callable[[Any, World], Job]: ...
    @property
    def speak(self) -> Callable[..., Any] | None: ...


def rebuild(
    recipe: Buildable, folder: RunFolder, config: RunConfig
) -> tuple[Job, World, Pins, Horizons]:
    """Return the parts of an existing run, with its pins applied, and its horizons.

    Weights are those of step 0.

    Raises RunError when the data changed, Unsupported when this machine cannot do what was pinned.
    """
    pinned = folder.meta["pinned"]
    world = open_world(pinned["device"])
    job = recipe.build(repeated(config, folder.meta), world)
    if job.source.fingerprint != folder.meta["source"]:
        raise RunError(
            f"{_other(job, folder)} changed since this run began, so it cannot go on exactly",
            where=str(folder.path), fix="bring the old data back, or start anew with --new",
        )  # fmt: skip
    known = folder.meta.get("horizons") or dict.fromkeys(job.learners, pinned["horizon"])
    horizons = prepare(job, config, known)
    return job, world, as_trained(job, folder, world), horizons


def _other(job: Job, folder: RunFolder) -> str:
    """Name what is not as it was when the run began: the data, or perhaps their tokenizer."""
    before = (folder.meta.get("data") or {}).get("tokenizer")
    return "the data" if before == job.data.get("tokenizer") else "the data or their tokenizer"


def as_trained(job: Job, folder: RunFolder, world: World) -> Pins:
    """Let the learners of `job` compute as the run decided, if `world` is such a device; return how."""
    pins = Pins.read(folder.meta["pinned"])
    here = replace(pins, device=str(world.device))
    if torch.device(pins.device).type == world.device.type:
        for learner in job.learners.values():
            apply(learner, here)
    return here


def repeated(config: RunConfig, meta: Mapping[str, Any]) -> RunConfig:
    """Return `config` with what was substituted when the run in `meta` began."""
    return changed(config, meta.get("settings", {}))


def mended(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Write files of the run anew that are missing or no longer what its data give; name them."""
    told = []
    for name, text in files.items():
        path = folder / name
        there = path.exists()
        if not there or path.read_bytes() != text.encode():
            path.write_bytes(text.encode())
            told.append(f"{name} was {'changed' if there else 'missing'} and is written anew")
    return told
