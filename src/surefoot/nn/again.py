"""Compute again for the gradient what was not kept of the forward pass.

Torch's own `checkpoint` loads torch's compiler at its first call, which takes some hundred MB and a
second: much of what it saves on a model for a processor. This gives the same bits without it. Where
the compiler works anyway, it is told so in torch's words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

__all__ = ["Circumstances", "again", "hearing"]

# Of the process and not of a thread or context: on a card autograd repeats in threads of its own.
_hears: list[Callable[[Tensor], object]] = []


@contextmanager
def hearing(hear: Callable[[Tensor], object]) -> Iterator[None]:
    """Within the block `hear` is told each tensor that `again` keeps, when it begins to."""
    _hears.append(hear)
    try:
        yield
    finally:
        _hears.remove(hear)


def again(inside: Callable[..., Tensor], *args: Any) -> Tensor:
    """Return inside(*args), of which only `args` are kept: the rest is computed again for the gradient.

    The first of `args` is a tensor. Both times the random numbers of a processor and of CUDA are the
    same, and copies of weights that autocast makes are used once and let go. Raises RuntimeError in
    the backward pass where `inside` does something else the second time.
    """
    if not torch.is_grad_enabled():
        return inside(*args)
    if torch.compiler.is_compiling():
        found: Tensor = checkpoint(inside, *args, use_reentrant=False)
        return found
    frame = _Frame(inside, args)
    with saved_tensors_hooks(frame.leave, frame.fetch), frame.then.mixed():
        return inside(*args)


class _Enough(Exception):
    """All that is wanted is there; what would come is not."""


class Circumstances:
    """The states of torch's random generators and the arithmetic, as they are when this is made."""

    def __init__(self, device: torch.device) -> None:
        kind = device.type
        self.kind = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        self.devices = [device] if kind == "cuda" else []
        self.states = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self.devices)]

    def mixed(self) -> torch.autocast:
        """Return the arithmetic, without a cache: it would keep copies of weights, and torch 2.9 finds
        some there that have no gradient."""
        kind, dtype, enabled = self.kind
        return torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)

    @contextmanager
    def back(self) -> Iterator[None]:
        """Within the block all is as it was, with gradients; the generators after it as before."""
        with torch.random.fork_rng(self.devices), torch.enable_grad(), self.mixed():
            torch.set_rng_state(self.states[0])
            for device, state in zip(self.devices, self.states[1:]):
                torch.cuda.set_rng_state(state, device)
            yield


class _Frame:
    """A call whose inside is not kept: autograd holds numbers, by which tensors are found again."""

    def __init__(self, inside: Callable[..., Tensor], args: tuple[Any, ...]) -> None:
        self.inside, self.args, self.count = inside, args, 0
        self.found: dict[int, Tensor] = {}
        self.then = Circumstances(args[0].device)
        self._tell(*args)

    def leave(self, tensor: Tensor) -> int:
        self.count += 1
        return self.count - 1

    def fetch(self, number: int) -> Tensor:
        if number not in self.found:
            self._repeat()
        return self.found.pop(number)

    def _repeat(self) -> None:
        made: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            made.append(tensor.detach())
            self._tell(made[-1])
            if len(made) == self.count:
                raise _Enough
            return made[-1]  # the tensor itself would hold on to what holds it

        args = [
            a.detach().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a
            for a in self.args
        ]
        with self.then.back():
            try:
                with saved_tensors_hooks(keep, lambda tensor: tensor):
                    self.inside(*args)
            except _Enough:
                pass
        if len(made) != self.count:
            raise RuntimeError("what is computed again for the gradient is not what it was before")
        self.found = dict(enumerate(made))

    def _tell(self, *tensors: Any) -> None:
        for hear in _hears:
            for tensor in tensors:
                if isinstance(tensor, Tensor):
                    hear(tensor)
