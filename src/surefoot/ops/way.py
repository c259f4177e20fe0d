"""What an operation with several implementations is: `Op`, and one implementation: `Way`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from surefoot.errors import Unsupported

__all__ = ["Op", "Way", "anywhere"]


def anywhere(device: torch.device) -> str | None:
    """Say that a way runs on every device."""
    return None


@dataclass(frozen=True)
class Way:
    """One implementation of an operation.

    `obstacle(device)` gives the reason why it cannot run there, or None. `tolerance` bounds the
    error against the reference, relative to the largest number of the result, in fp32.
    """

    call: Callable[..., Any]
    tolerance: float
    obstacle: Callable[[torch.device], str | None] = anywhere


@dataclass(frozen=True)
class Op:
    """An operation by name, with its ways; the first is the reference."""

    name: str
    ways: Mapping[str, Way]

    def available(self, device: torch.device | str) -> list[str]:
        """Return the names of the ways that run on `device`, the reference first."""
        place = torch.device(device)
        return [name for name, way in self.ways.items() if way.obstacle(place) is None]

    def pick(self, way: str, device: torch.device | str) -> Callable[..., Any]:
        """Return the callable of exactly `way`; raise Unsupported where it cannot run."""
        known = self.available(device)
        where, fix = f"ops.{self.name}", f"use {self.name}={' or '.join(known)}"
        if way not in self.ways:
            raise Unsupported(f"{self.name} has no way called {way}", where=where, fix=fix)
        reason = self.ways[way].obstacle(torch.device(device))
        if reason is not None:
            raise Unsupported(f"{way} cannot run here: {reason}", where=where, fix=fix)
        return self.ways[way].call
