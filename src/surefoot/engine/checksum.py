"""A number that betrays any changed bit of the state, cheap enough for every step.

Loss and gradient norm are rounded numbers: a weight that differs in its last bit may not show in
them for many steps. So the journal also holds, for each step, a sum over the very bits of a part
of the state before it. The part moves on from step to step; a small model is in it whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from surefoot.engine.learner import Learner

__all__ = ["WINDOW", "checksum"]

WINDOW = 1 << 15  # parameters looked at in one step, with their moments and their average
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


@torch.no_grad()
def checksum(learner: Learner, step: int) -> Tensor:
    """Return i64[] for the part of `learner`'s state that belongs to `step`.

    All of the state has been looked at after (parameters / WINDOW) steps. The answer is on the
    learner's device; reading it waits for that.
    """
    by_size: dict[int, list[Tensor]] = {}
    for piece in _pieces(learner, step):
        by_size.setdefault(piece.element_size(), []).append(piece)
    found = torch.zeros((), dtype=torch.int64, device=learner.device)
    for size, pieces in by_size.items():
        bits = torch.cat([p.view(_INTEGERS[size]) for p in pieces])
        found += bits.sum(dtype=torch.int64)
    return found


def _pieces(learner: Learner, step: int) -> Iterator[Tensor]:
    """Yield flat pieces of parameters, and of what the optimisers and the average hold for them."""
    total = sum(p.numel() for p in learner.parameters)
    begin = 0 if total <= WINDOW else step * WINDOW % total
    windows = [(begin, begin + WINDOW), (0, begin + WINDOW - total)]  # the second where it wraps
    start = 0
    for name, parameter in zip(learner.names, learner.parameters):
        count = parameter.numel()
        for low, high in windows if total > WINDOW else windows[:1]:
            a, b = max(low - start, 0), min(high - start, count)
            if a < b:
                for tensor in _belonging(learner, name, parameter):
                    flat = tensor.detach().reshape(-1)
                    yield flat[a:b] if tensor.shape == parameter.shape else flat
        start += count


def _belonging(learner: Learner, name: str, parameter: Tensor) -> Iterator[Tensor]:
    """Yield the parameter and its own; of another shape only numbers, like a count of updates."""
    yield parameter
    for optimiser in learner.optimisers:
        for moment in optimiser.state.get(parameter, {}).values():
            here = isinstance(moment, Tensor) and moment.device == parameter.device
            if here and moment.shape in (parameter.shape, ()):
                yield moment
    if name in learner.average:
        yield learner.average[name]
