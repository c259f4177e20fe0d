"""A loss that knows that a sequence is right only as a whole.

B sequences, T tokens, V words.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SequenceAccuracyLoss", "SequenceLoss"]


class SequenceLoss(NamedTuple):
    """`loss` f32[], a sum over tokens; `right` f32[B]: 1 where every token was the likeliest."""

    loss: Tensor
    right: Tensor
    hits: Tensor
    """f32[]: tokens that were the likeliest."""


class SequenceAccuracyLoss(nn.Module):
    """Cross-entropy of the tokens, plus `weight` x (1 - probability of the whole sequence).

    Both are sums over the tokens that count: a sequence of n tokens has the second term n times,
    so that divided by the number of tokens the first is the mean over tokens and the second, where
    all are equally long, the mean over sequences. Targets of -100 do not count. The second term is
    the expected share of wrong answers of a model that samples; with weight 0, the default, the
    loss is the plain cross-entropy.
    """

    def __init__(self, weight: float = 0.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, logits: Tensor, targets: Tensor) -> SequenceLoss:
        """Take logits [B, T, V] and targets i64[B, T]."""
        logits = logits.float()
        nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        nats = nats.view(targets.shape)  # [B, T], 0 where a target does not count
        counts = targets != -100
        loss = nats.sum()
        if self.weight:
            wrong = -torch.expm1(-nats.sum(1))  # 1 - product of probabilities
            loss = loss + self.weight * (counts.sum(1) * wrong).sum()
        with torch.no_grad():
            hit = (logits.argmax(-1) == targets) & counts
            right = (hit | ~counts).all(1)
        return SequenceLoss(loss, right.float(), hit.sum().float())

    def extra_repr(self) -> str:
        return f"weight={self.weight}"
