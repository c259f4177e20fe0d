"""A checksum of the state that any changed bit shows in, cheap enough for every step.

Loss and gradient norm are rounded numbers: a weight that differs in its last bit may not show in
them for many steps. So the journal also holds, for each step, a sum over the very bits of a part
of the state before it. The part moves on from step to step; a small model is in it whole.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from surefoot.engine.learner import Learner

__all__ = ["WINDOW", "bits", "checksum", "weights_sum"]

WINDOW = 1 << 15  # parameters looked at in one step, with their moments and their average
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


@torch.no_grad()
def checksum(learner: Learner, step: int) -> Tensor:
    """Return i64[] for the part of `learner`'s state that belongs to `step`.

    All of the state has been looked at after (parameters / WINDOW) steps. The answer is on the
    learner's device; reading it waits for that.
    """
    total = sum(count for _, _, count in _slices(learner))
    views = _whole(learner) if total <= WINDOW else _part(learner, step * WINDOW % total, total)
    by_size: dict[int, list[Tensor]] = {}
    for view in views:
        by_size.setdefault(view.element_size(), []).append(view)
    found = [torch.cat(v).sum(dtype=torch.int64) for v in by_size.values()]
    if not found:  # of a model that is split, this process may hold none of the part
        return torch.zeros((), dtype=torch.int64, device=learner.device)
    return found[0] if len(found) == 1 else torch.stack(found).sum()


def _slices(learner: Learner) -> list[tuple[int, int, int]]:
    """Return, for each parameter, which of its numbers are here: first, end, how many in all."""
    if learner.split:
        known, own = learner.exchange.slices, zip(learner.names, learner.parameters, strict=True)
        return [known[n].flat if n in known else _all(p, learner) for n, p in own]
    counts = map(Tensor.numel, learner.parameters)
    return [(0, count, count) for count in counts]


@torch.no_grad()
def weights_sum(model: nn.Module) -> int:
    """Return a sum over the very bits of a model's parameters; it waits for the device."""
    found = [bits(p.detach()).sum(dtype=torch.int64) for p in model.parameters()]
    return int(torch.stack(found).sum()) if found else 0


def _whole(learner: Learner) -> list[Tensor]:
    """Return all of the state as flat bits; views of tensors that are still the same are kept."""
    if learner.split:
        own = zip(learner.names, learner.parameters)
        return [bits(t) for n, p in own for t in _belonging(learner, n, p) if _here(learner, n, t)]
    held = _held(learner)
    known, views = learner.looked_at
    if len(known) != len(held) or not all(map(operator.is_, known, held)):
        named = zip(learner.names, learner.parameters)
        tensors = [t for name, p in named for t in _belonging(learner, name, p)]
        views = [bits(t) for t in tensors]
        if all(t.is_contiguous() for t in tensors):  # else some are copies
            learner.looked_at = (held, views)
    return views


def _held(learner: Learner) -> list[Tensor]:
    """Return all tensors of the state without a look at them, which would cost more than the sum."""
    held: list[Tensor] = list(learner.parameters)
    for optimiser in learner.optimisers:
        for moments in optimiser.state.values():
            held += [m for m in moments.values() if isinstance(m, Tensor)]
    held += learner.average.values()
    return held


def _part(learner: Learner, begin: int, total: int) -> list[Tensor]:
    """Return the bits of WINDOW parameters from `begin` on, around the end, with their own."""
    windows = [(begin, begin + WINDOW), (0, begin + WINDOW - total)]  # the second where it wraps
    found: list[Tensor] = []
    start = 0
    own = zip(learner.names, learner.parameters, _slices(learner), strict=True)
    for name, parameter, (first, last, count) in own:
        for low, high in windows:
            a, b = max(low - start, 0), min(high - start, count)
            if a < b:
                for tensor in _belonging(learner, name, parameter):
                    flat = bits(tensor)
                    if tensor.shape == parameter.shape:
                        flat = flat[max(a - first, 0) : max(min(b, last) - first, 0)]
                    elif first > 0:  # a number for all rows belongs to the first
                        continue
                    found.append(flat)
        start += count
    return found


def _here(learner: Learner, name: str, tensor: Tensor) -> bool:
    """Whether a tensor of a split learner counts here; what all have, only the first counts."""
    part = learner.exchange.slices.get(name)
    if part is None:  # whole everywhere: the first counts
        return bool(learner.exchange.inner[0] == 0)
    return tensor.dim() > 0 or part.low == 0


def _all(parameter: Tensor, learner: Learner) -> tuple[int, int, int]:
    """Return the slice of a parameter that every process holds whole: all for the first, else none."""
    count = parameter.numel()
    return (0, count, count) if learner.exchange.inner[0] == 0 else (count, count, count)


def bits(tensor: Tensor) -> Tensor:
    """Return the bits of each number as a flat integer tensor, a view where memory allows."""
    return tensor.detach().reshape(-1).view(_INTEGERS[tensor.element_size()])


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
