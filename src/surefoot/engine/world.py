"""Where a run computes: the device, and how arithmetic is done there.

`World` is what a recipe is given to build on. It decides nothing; `fit` decides and `place`
applies the decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from surefoot.data.batch import Batch
from surefoot.errors import Unsupported

__all__ = ["World", "open_world"]


@dataclass(frozen=True)
class World:
    """One device, and the hand that moves batches to it."""

    device: torch.device

    def to(self, batch: Batch) -> Batch:
        """Return `batch` with its arrays as tensors on this device."""
        return Batch({k: self._move(v) for k, v in batch.fields.items()}, batch.weight)

    def _move(self, value: Any) -> torch.Tensor:
        tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(value)
        if self.device.type == "cpu":
            return tensor
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


def open_world(device: str = "auto") -> World:
    """Return the world on `device`: `auto` is the first CUDA device, else MPS, else the CPU.

    Raises Unsupported when a device asked for by name is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu"
    if device.startswith("cuda"):
        _require_cuda(device)
    if device == "mps" and not _has_mps():
        raise Unsupported(
            "this machine has no MPS device", where="machine.device", fix="--device cpu"
        )
    return World(torch.device(device))


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _require_cuda(device: str) -> None:
    count = torch.cuda.device_count()
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        what = f"there is no CUDA device {index} (torch {torch.__version__} sees {count})"
        raise Unsupported(what, where="machine.device", fix="--device cpu, or surefoot doctor")
