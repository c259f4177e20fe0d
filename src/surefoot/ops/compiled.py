"""The way `compile`: the reference through torch's compiler, made at its first call."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from surefoot.ops.way import Way

__all__ = ["by_shape", "compiled", "compiler"]

_SHAPES = 1024  # that one function may meet in a process; torch's own limit is 8


def compiler(device: str) -> str | None:
    """Return the compiler that torch needs for `device`, or None where there is none."""
    if device.startswith("cuda"):
        return "triton" if importlib.util.find_spec("triton") else None
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")


def by_shape(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` compiled, for each shape by itself and for however many.

    Code for any shape would be made at the second one that a process meets, and after a few more
    torch would run `function` as it is: the bits would depend on what ran before.
    """
    settings: Any = importlib.import_module("torch._dynamo.config")
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(settings, name, max(_SHAPES, getattr(settings, name)))
    return torch.compile(function, dynamic=False)


def compiled(reference: Callable[..., Any], tolerance: float) -> Way:
    """Return the way that compiles `reference`; importing torch's compiler waits for a call."""

    @lru_cache(maxsize=1)
    def made() -> Callable[..., Any]:
        return by_shape(reference)

    def call(*args: Any) -> Any:
        return made()(*args)

    return Way(call, tolerance, ("cpu", "cuda"), obstacle=_obstacle, slow_start=True)


def _obstacle(device: torch.device) -> str | None:
    what = "Triton" if device.type == "cuda" else "C++ compiler"
    return None if compiler(device.type) else f"there is no {what}"
