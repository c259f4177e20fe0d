"""Point every generator at a key. Nothing before the call matters to what is drawn after it.

The engine re-keys Python's, NumPy's and torch's global generators before each forward pass, so a
recipe that draws from them is still exact, and before evaluation and sampling, which therefore
leave nothing behind.
"""

from __future__ import annotations

import random

import numpy as np
import torch

from surefoot.seeds import derive

__all__ = ["example_keys", "rekey"]

_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def rekey(key: int, device: torch.device | None = None) -> None:
    """Seed the global generators of Python, NumPy and torch (CPU and `device`) with `key`."""
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    torch.default_generator.manual_seed(key)
    if device is not None and device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(key)
    elif device is not None and device.type == "mps":
        torch.mps.manual_seed(key)


def example_keys(seed: int, step: int, start: int, size: int) -> torch.Tensor:
    """Return i64[size]: one key for each example `start...` of `step`, for dropout masks.

    The key of an example depends on its place in the global batch and on nothing else, so no
    split into micro-batches changes a mask. SplitMix64 finaliser (Steele et al., 2014).
    """
    place = np.arange(start, start + size, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = np.uint64(derive(seed, "dropout", step)) + (place + np.uint64(1)) * _MIX[0]
        z = (z ^ (z >> np.uint64(30))) * _MIX[1]
        z = (z ^ (z >> np.uint64(27))) * _MIX[2]
        z = z ^ (z >> np.uint64(31))
    return torch.from_numpy((z >> np.uint64(1)).astype(np.int64))
