"""Let a model answer questions by itself, and say how sure a share of right answers is."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from surefoot.ops.way import exact, exact_place

__all__ = ["Answers", "free_running", "wilson"]


class Answers(Protocol):
    """A model that reads a question and then says its answer, as those of `nn.latent` do."""

    def begin(self, question: Tensor) -> Any: ...
    def follow(self, token: Tensor, answering: Any) -> Tensor: ...


def free_running(
    model: Answers, question: Tensor, length: int, *, start: int, end: int
) -> tuple[Tensor, Tensor]:
    """Let a model answer questions i64[B, S] by itself, always with the likeliest token.

    Returns up to `length` tokens i64[B, length], `end` after the first `end`, and the probability
    f64[B] that the model gave to the whole of what it said. Keys and values are kept, so each
    token is read once.
    """
    token = torch.full((len(question),), start, dtype=torch.int64, device=question.device)
    said = torch.full((len(question), length), end, dtype=torch.int64, device=question.device)
    nats = torch.zeros(len(question), dtype=torch.float64, device=exact_place(question.device))
    live = torch.ones(len(question), dtype=torch.bool, device=question.device)
    answering = model.begin(question)
    for place in range(length):
        best, token = model.follow(token, answering).float().log_softmax(-1).max(-1)
        said[:, place] = token = torch.where(live, token, end)
        nats += exact(torch.where(live, best, 0.0))
        live &= token != end
    return said, nats.exp()


def wilson(hits: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the interval of a share that was seen as `hits` of `trials`, by default of 95 %.

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927): sound
    also near 0 and 1, where the interval of the textbooks has no width.

    >>> [round(x, 4) for x in wilson(95, 100)]
    [0.8882, 0.9785]
    >>> wilson(0, 0)
    (0.0, 1.0)
    """
    if trials == 0:
        return 0.0, 1.0
    share, spread = hits / trials, z * z / trials
    middle = share + spread / 2
    half = math.sqrt(spread * share * (1 - share) + spread * spread / 4)
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))
