"""What an operation with several implementations is: `Op`, and one implementation: `Way`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surefoot.errors import ConfigError, Problem, Unsupported

__all__ = [
    "Case",
    "Op",
    "Way",
    "anywhere",
    "compiling_for_cpu",
    "differentiated",
    "exact",
    "exact_place",
    "of_type",
    "wide",
]

DEVICES = ("cpu", "cuda", "mps")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

Case = Sequence[Any]
"""Arguments of one call: floating-point tensors are fp64, and those that get a gradient say so."""


def anywhere(device: torch.device) -> str | None:
    """Say that nothing else stands in the way."""
    return None


def wide(x: Tensor) -> Tensor:
    """Return `x` in fp32, or in fp64 where it is that."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def exact_place(device: torch.device) -> torch.device:
    """Return where numbers of `device` can be fp64: MPS has no such type, and the processor does."""
    return torch.device("cpu") if device.type == "mps" else device


def exact(x: Tensor) -> Tensor:
    """Return `x` in fp64, at home where its device has no such type."""
    return x.to(exact_place(x.device)).double()


def of_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `x` in `dtype`; itself where it has that type.

    A result of `autograd.Function` that went through a `to` without work loses its gradient, which is
    zeros then, in the compiler of torch 2.11.
    """
    return x if x.dtype == dtype else x.to(dtype)


def compiling_for_cpu(x: Tensor) -> bool:
    """Whether torch's compiler is making code for a processor of what is done to `x`."""
    if x.device.type != "cpu" or not torch.compiler.is_compiling():
        return False
    # `is_exporting()` is true here for the compiler of torch 2.9, so the flag behind it is read
    return not torch.compiler._is_exporting_flag


def differentiated(call: Callable[..., Tensor], case: Case) -> list[Tensor]:
    """Return what `call` gives for `case`, and the gradients of a fixed random sum of it."""
    asked = [x for x in case if isinstance(x, Tensor) and x.requires_grad]
    out = call(*case)
    stream = torch.Generator().manual_seed(out.numel())
    weights = torch.randn(out.shape, generator=stream, dtype=torch.float64)
    (out * weights.to(out)).sum().backward()
    found = [out.detach(), *(x.grad for x in asked if x.grad is not None)]
    for x in asked:
        x.grad = None
    return found


@dataclass(frozen=True)
class Way:
    """One implementation of an operation.

    `tolerance` bounds the error against the reference, relative to the largest number of the
    result, for input in fp32. `obstacle(device)` gives a reason why it cannot run there besides
    its `devices`, or None. A `slow_start` takes seconds to make its kernel, so `auto` leaves it.
    """

    call: Callable[..., Any]
    tolerance: float
    devices: Sequence[str] = DEVICES
    dtypes: Sequence[torch.dtype] = DTYPES
    obstacle: Callable[[torch.device], str | None] = anywhere
    slow_start: bool = False

    def why_not(self, device: torch.device) -> str | None:
        """Return the reason why it cannot run on `device`, or None."""
        if device.type not in self.devices:
            return f"it is for {' and '.join(self.devices)}, not for {device.type}"
        return self.obstacle(device)


@dataclass(frozen=True)
class Op:
    """An operation by name, with its ways; the first is the reference, which is the specification.

    `standard` names the way that runs where nobody decides. `draw(stream, large)` makes arguments
    of random shapes for a comparison, or of a usual size for a measurement. `outcome(call, case)`
    runs one call and returns every tensor that must be equal.
    """

    name: str
    ways: Mapping[str, Way]
    standard: str = "reference"
    draw: Callable[[torch.Generator, bool], Case] | None = None
    outcome: Callable[[Callable[..., Any], Case], list[Tensor]] = differentiated

    @property
    def call(self) -> Callable[..., Any]:
        """The standard way's callable."""
        return self.ways[self.standard].call

    def available(self, device: torch.device | str) -> list[str]:
        """Return the names of the ways that run on `device`, the reference first."""
        place = torch.device(device)
        return [name for name, way in self.ways.items() if way.why_not(place) is None]

    def pick(self, way: str, device: torch.device | str) -> Callable[..., Any]:
        """Return the callable of exactly `way`.

        Raises ConfigError for one that does not exist and Unsupported for one that cannot run.
        """
        known = self.available(device)
        where, fix = f"ops.{self.name}", f"use {self.name}={' or '.join(known)}"
        if way not in self.ways:
            reasons = {n: w.why_not(torch.device(device)) for n, w in self.ways.items()}
            fix += "".join(f"; {n} cannot run here: {why}" for n, why in reasons.items() if why)
            raise ConfigError([Problem(f"{self.name} has no way called {way}", where, fix)])
        reason = self.ways[way].why_not(torch.device(device))
        if reason is not None:
            raise Unsupported(f"{way} cannot run here: {reason}", where=where, fix=fix)
        return self.ways[way].call
