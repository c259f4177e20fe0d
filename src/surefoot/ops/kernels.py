"""Whether Triton's kernels can run here, and where they are.

On a processor they run only through Triton's interpreter (TRITON_INTERPRET=1): every number as on
a GPU, thousands of times slower, for tests.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch

from surefoot.ops.way import Way

__all__ = ["load", "way"]


_loaded: dict[str, Any] = {}


def way(call: Callable[..., Any], tolerance: float) -> Way:
    """Return a way whose `call` uses Triton."""
    return Way(call, tolerance, ("cpu", "cuda"), obstacle=_obstacle)


def load(module: str = "triton_kernels") -> Any:
    """Return a module of kernels; importing it imports Triton."""
    if module not in _loaded:  # torch's compiler follows a look into a dictionary, not an import
        _loaded[module] = importlib.import_module(f"surefoot.ops.{module}")
    return _loaded[module]


def _obstacle(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "a processor has only Triton's interpreter, for tests: TRITON_INTERPRET=1"
    return None
