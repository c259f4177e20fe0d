"""How far an update moves the weights, relative to their size, by group of layers.

A ratio near 1e-3 is usual; far more shakes the weights, far less leaves them where they were.
Off unless `track.update_ratio` asks for it: then a learner's `update` is wrapped, else nothing is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from surefoot.engine.learner import Learner

__all__ = ["group_of", "ratios", "watch_updates"]


def watch_updates(learner: Learner, every: int) -> dict[str, float]:
    """Return a dict that after each `every`-th update holds its ratios; empty after the others."""
    found: dict[str, float] = {}
    update = learner.update

    def measured() -> float:
        found.clear()
        if (learner.step + 1) % every:
            return update()
        before = [p.detach().clone() for p in learner.parameters]
        rate = update()
        found.update(ratios(learner.names, before, learner.parameters))
        return rate

    learner.update = measured  # type: ignore[method-assign]
    return found


def ratios(
    names: Sequence[str], before: Sequence[Tensor], after: Sequence[Tensor]
) -> Iterator[tuple[str, float]]:
    """Yield (`update_ratio/GROUP`, |after - before| / |before|) over the weights of each group."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(group_of(name), []).append(place)
    for group, members in places.items():
        moved = torch.stack([(after[i].detach() - before[i]).norm() for i in members]).norm()
        size = torch.stack([before[i].norm() for i in members]).norm()
        yield f"update_ratio/{group}", float(moved / size.clamp(min=1e-12))


def group_of(name: str) -> str:
    """Return the group of layers that a parameter belongs to.

    >>> group_of("blocks.3.attention.q.weight"), group_of("embedding.weight"), group_of("weight")
    ('blocks.3', 'embedding', 'weight')
    """
    match = re.match(r"(?:_orig_mod\.)?([^.]+(?:\.\d+)?)", name)
    return match[1] if match else name
