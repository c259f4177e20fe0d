"""Bring batches to a CUDA device before anybody waits for them: pinned, on a stream of their own.

Wrapped in a `Prefetch`, its threads make the batch, copy it and wait for the copy; who trains finds
tensors that are there.
"""

from __future__ import annotations

from typing import Any

import torch

from surefoot.data.batch import Batch
from surefoot.engine.loop import Batches

__all__ = ["Carried"]


class Carried:
    """`data`, whose batches are tensors on `device` (`World.to` then only takes them over)."""

    def __init__(self, data: Batches, device: torch.device) -> None:
        self._data, self._device = data, device
        self._stream = torch.cuda.Stream(device)
        self.size = data.size

    @property
    def batch_size(self) -> int:
        """Examples per step."""
        return self._data.batch_size

    def batch(self, step: int, start: int = 0, size: int | None = None) -> Batch:
        """Return the same batch, on the device."""
        made = self._data.batch(step, start, size)
        with torch.cuda.stream(self._stream):
            fields = {name: self._carry(value) for name, value in made.fields.items()}
        self._stream.synchronize()  # in the thread that works ahead: whoever trains goes on
        return Batch(fields, made.weight)

    def _carry(self, value: Any) -> torch.Tensor:
        tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(value)
        return tensor.pin_memory().to(self._device, non_blocking=True)
