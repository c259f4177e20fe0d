"""Score a model on data that it never trains on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from surefoot.data.batch import Batch

__all__ = ["Scores", "confusions", "loss_by_place", "next_token_scores"]


@dataclass(frozen=True)
class Scores:
    """Means over all targets: `loss` in nats, `top1` and `top5` as shares."""

    loss: float
    top1: float
    top5: float
    targets: int


def next_token_scores(model: nn.Module, batches: Iterable[Batch]) -> Scores:
    """Return the scores of a language model on batches of x and y i64[m, T]; -100 is ignored.

    Sums are kept in fp64, so that the size of a batch does not show in the mean. The rank of a
    target is the number of symbols with a higher logit; ties count in the model's favour.
    """
    nats, hits, close, targets = 0.0, 0, 0, 0
    for batch in batches:
        wanted = batch.fields["y"].flatten()  # i64[N]
        logits = model(batch.fields["x"]).flatten(0, 1).float()  # f32[N, V]
        real = wanted != -100
        nats += float(F.cross_entropy(logits, wanted, reduction="none").double().sum())
        own = logits.gather(1, wanted.clamp(min=0).unsqueeze(1))  # f32[N, 1]
        rank = (logits > own).sum(1)[real]  # i64[n]
        hits += int((rank == 0).sum())
        close += int((rank < 5).sum())
        targets += int(torch.count_nonzero(real))
    return Scores(nats / targets, hits / targets, close / targets, targets)


def loss_by_place(model: nn.Module, batches: Iterable[Batch]) -> list[float]:
    """Return the mean loss in nats at each place of the context: how much what is before helps."""
    nats, targets = torch.zeros(()), torch.zeros(())
    for batch in batches:
        wanted = batch.fields["y"]  # i64[m, T]
        logits = model(batch.fields["x"]).float()  # f32[m, T, V]
        found = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        nats = nats + found.view_as(wanted).double().sum(0).cpu()
        targets = targets + (wanted != -100).sum(0).cpu()
    return [float(value) for value in nats / targets]


def confusions(
    model: nn.Module, batches: Iterable[Batch], most: int
) -> tuple[list[int], list[list[float]]]:
    """Return the `most` frequent targets, and for each the shares of what is predicted instead.

    Row i holds the mean probability that the model gives to each of these symbols where symbol i
    comes next; what a row lacks to 1 went to symbols that are not listed.
    """
    table, counts = torch.zeros(()), torch.zeros(())
    for batch in batches:
        wanted = batch.fields["y"].flatten()  # i64[N]
        logits = model(batch.fields["x"]).flatten(0, 1).float()  # f32[N, V]
        real = wanted != -100
        given = logits.softmax(-1)[real].double()  # f64[n, V]
        one_hot = F.one_hot(wanted[real], given.size(-1)).double()  # f64[n, V]
        table = table + (one_hot.T @ given).cpu()
        counts = counts + one_hot.sum(0).cpu()
    listed = counts.argsort(descending=True, stable=True)[:most]
    listed = listed[counts[listed] > 0]
    shares = table[listed][:, listed] / counts[listed].unsqueeze(1)
    return listed.tolist(), shares.tolist()
