"""Score a model on data that it never trains on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.data.batch import Batch
from surefoot.ops.way import exact

__all__ = [
    "NextTokens",
    "Scores",
    "confusions",
    "loss_by_place",
    "next_token_scores",
    "next_token_sums",
]

_AT_ONCE = 1 << 22  # logits that are looked at in fp32 at the same time
Row = tuple[float, int, int, int]  # of a batch: nats, hits, among the first five, targets


@dataclass(frozen=True)
class Scores:
    """Means over all targets: `loss` in nats, `top1` and `top5` as shares."""

    loss: float
    top1: float
    top5: float
    targets: int


@dataclass(frozen=True)
class NextTokens:
    """An evaluation of a language model that several processes share: each takes some batches.

    `batches` yields x and y i64[m, T] anew at each call, `to` brings a batch to the device, `tell`
    makes metrics of the scores. The sums of single batches are added in the order of the batches,
    so the numbers do not depend on how many share them.
    """

    batches: Callable[[], Iterable[Batch]]
    to: Callable[[Batch], Batch]
    tell: Callable[[Scores], Mapping[str, float]]

    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        return self.result(self.rows(model, 0, 1))

    def rows(self, model: nn.Module, first: int, step: int) -> list[Row]:
        """Return the sums of every `step`-th batch from `first` on."""
        mine = islice(self.batches(), first, None, step)
        return [next_token_sums(model, self.to(batch)) for batch in mine]

    def result(self, rows: Sequence[Row]) -> Mapping[str, float]:
        """Return the metrics of all batches, given the sums of each."""
        return self.tell(_scores(rows))


def next_token_scores(model: nn.Module, batches: Iterable[Batch]) -> Scores:
    """Return the scores of a language model on batches of x and y i64[m, T]; -100 is ignored.

    Sums are kept in fp64, so that the size of a batch does not show in the mean. The rank of a
    target is the number of symbols with a higher logit; ties count in the model's favour.
    """
    return _scores([next_token_sums(model, batch) for batch in batches])


def next_token_sums(model: nn.Module, batch: Batch) -> Row:
    """Return nats, targets that are the likeliest or among five, and how many there are."""
    wanted = batch.fields["y"].flatten()  # i64[N]
    logits = model(batch.fields["x"]).flatten(0, 1)  # [N, V]
    rows = max(1, _AT_ONCE // logits.size(1))
    losses, ranks = map(torch.cat, zip(*map(_of_rows, logits.split(rows), wanted.split(rows))))
    real = wanted != -100
    nats, rank = float(exact(losses).sum()), ranks[real]
    return nats, int((rank == 0).sum()), int((rank < 5).sum()), int(torch.count_nonzero(real))


def _of_rows(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nats of each row of logits [n, V], f32[n], and its target's rank, i64[n]."""
    logits = logits.float()
    own = logits.gather(1, wanted.clamp(min=0).unsqueeze(1))  # f32[n, 1]
    return F.cross_entropy(logits, wanted, reduction="none"), (logits > own).sum(1)


def _scores(rows: Sequence[Row]) -> Scores:
    nats, hits, close, targets = 0.0, 0, 0, 0
    for row in rows:
        nats, hits, close, targets = nats + row[0], hits + row[1], close + row[2], targets + row[3]
    return Scores(nats / targets, hits / targets, close / targets, targets)


def loss_by_place(model: nn.Module, batches: Iterable[Batch]) -> list[float]:
    """Return the mean loss in nats at each place of the context: how much what is before helps."""
    nats, targets = torch.zeros(()), torch.zeros(())
    for batch in batches:
        wanted = batch.fields["y"]  # i64[m, T]
        logits = model(batch.fields["x"]).float()  # f32[m, T, V]
        found = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        nats = nats + exact(found.view_as(wanted)).sum(0).cpu()
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
        given = exact(logits.softmax(-1)[real])  # f64[n, V]
        one_hot = exact(F.one_hot(wanted[real], given.size(-1)))  # f64[n, V]
        table = table + (one_hot.T @ given).cpu()
        counts = counts + one_hot.sum(0).cpu()
    listed = counts.argsort(descending=True, stable=True)[:most]
    listed = listed[counts[listed] > 0]
    shares = table[listed][:, listed] / counts[listed].unsqueeze(1)
    return listed.tolist(), shares.tolist()
