"""Surefoot trains small models and never loses its footing.

A run is a pure function of its configuration, its data and the step number: killed at any
instant it goes on by itself, bit for bit, and proves it. Names are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from surefoot.version import __version__

if TYPE_CHECKING:
    from surefoot.api import resume, train
    from surefoot.config.model import GPTConfig
    from surefoot.config.schema import RunConfig, Section, circumstance, knob
    from surefoot.data.batch import Batch, Data, Source
    from surefoot.engine import Job, Learner, Loss, Result, Store, TrainState, World, steps
    from surefoot.errors import SurefootError
    from surefoot.recipes import Recipe
    from surefoot.seeds import derive
    from surefoot.use import load

_HOMES = {
    "Batch": "data.batch",
    "Data": "data.batch",
    "GPTConfig": "config.model",
    "Job": "engine",
    "Learner": "engine",
    "Loss": "engine",
    "Recipe": "recipes",
    "Result": "engine",
    "RunConfig": "config.schema",
    "Section": "config.schema",
    "Source": "data.batch",
    "Store": "engine",
    "SurefootError": "errors",
    "TrainState": "engine",
    "World": "engine",
    "circumstance": "config.schema",
    "derive": "seeds",
    "knob": "config.schema",
    "load": "use",
    "resume": "api",
    "steps": "engine",
    "train": "api",
}

__all__ = [
    "Batch",
    "Data",
    "GPTConfig",
    "Job",
    "Learner",
    "Loss",
    "Recipe",
    "Result",
    "RunConfig",
    "Section",
    "Source",
    "Store",
    "SurefootError",
    "TrainState",
    "World",
    "__version__",
    "circumstance",
    "derive",
    "knob",
    "load",
    "resume",
    "steps",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'surefoot' has no attribute {name!r}")
    return getattr(import_module(f"surefoot.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
