"""Random arguments for comparing the ways of an operation."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["numbers", "sizes"]


def numbers(stream: torch.Generator, *shape: int) -> Tensor:
    """Return fp64 numbers from a normal distribution."""
    return torch.randn(shape, generator=stream, dtype=torch.float64)


def sizes(stream: torch.Generator, *most: int) -> list[int]:
    """Return a random size from 1 to each of `most`."""
    return [int(torch.randint(1, limit + 1, (), generator=stream)) for limit in most]
