"""Output head and loss together: hidden [N, C], weight [V, C], targets [N] -> summed nats, fp32.

N positions, C width, V words. Targets of -100 do not count. The sum, not the mean: the engine
divides by the weight of the whole batch, so micro-batches and devices add up exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from surefoot.ops.way import Op, Way

__all__ = ["CROSS_ENTROPY"]

CHUNK = 256  # positions whose logits exist at the same time


def _reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """All logits at once, softmax in fp32."""
    logits = F.linear(hidden, weight).float()
    return F.cross_entropy(logits, targets, reduction="sum")


def _chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Logits of `CHUNK` positions at a time, computed again in the backward pass."""
    total = torch.zeros((), device=hidden.device)
    for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
        total = total + checkpoint(_reference, h, weight, t, use_reentrant=False)
    return total


CROSS_ENTROPY = Op(
    "cross_entropy",
    {
        "reference": Way(_reference, tolerance=0.0),
        "chunked": Way(_chunked, tolerance=1e-5),
    },
)
