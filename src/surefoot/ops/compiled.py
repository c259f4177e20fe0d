"""The way `compile`: the reference through torch's compiler, made at its first call."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from surefoot.ops.compiler import compiler, keep_code
from surefoot.ops.way import Way

__all__ = ["by_shape", "compiled"]


def by_shape(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` compiled, for each shape by itself and for however many.

    Code for any shape would be made at the second one that a process meets, so that bits depended
    on what ran before.
    """
    keep_code()
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
