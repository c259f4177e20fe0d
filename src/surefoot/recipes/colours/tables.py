"""What the models read of a list of colours, on their device once and for all, and the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.data.batch import Batch
from surefoot.data.colours import Colours, grams, symbols, vectors
from surefoot.engine import Loss
from surefoot.recipes.colours.models import Seen
from surefoot.recipes.colours.settings import Weights

__all__ = ["Tables", "loss", "name_nats", "vector_loss"]


@dataclass(frozen=True)
class Tables:
    """By place in the list: rgb f32[n, 3], pieces i32[n, K], symbols i64[n, T], vectors f32[n, W].

    What the model does not read is None.
    """

    rgb: Tensor
    symbols: Tensor
    grams: Tensor | None = None
    vectors: Tensor | None = None

    @staticmethod
    def of(colours: Colours, size: Any, device: torch.device) -> Tables:
        """Return the tables that a model of `size` reads."""

        def there(array: Any) -> Tensor:
            return torch.from_numpy(array).to(device)

        written = symbols(colours.folded)
        read = size.reads in ("names", "both")
        return Tables(
            there(colours.rgb), there(written),
            there(grams(colours.folded, size.gram_kinds)) if read else None,
            there(vectors(written, size.vector_width)) if size.reads == "vectors" else None,
        )  # fmt: skip

    def see(self, model: nn.Module, row: Tensor) -> Seen:
        """Return what a ColourModel makes of the names and colours at places `row` i64[B]."""
        pieces = None if self.grams is None else self.grams[row]
        found: Seen = model(self.rgb[row], pieces)
        return found


def name_nats(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return f32[B]: mean nats a symbol of names i64[B, T], the end after each counted as one."""
    there = wanted != 0
    counted = torch.cat((torch.ones_like(there[:, :1]), there[:, :-1]), 1) | there
    nats = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
    return (nats.view_as(wanted) * counted).sum(1) / counted.sum(1)


def loss(model: nn.Module, batch: Batch, *, tables: Tables, weights: Weights) -> Loss:
    """Return the sum over examples of what every way through the bottleneck costs."""
    row = batch.fields["row"]
    seen, parts = tables.see(model, row), {}
    total: Any = 0.0
    for way, found in seen._asdict().items():
        weight = getattr(weights, way)
        if found is None or not weight:
            continue
        if way.endswith("rgb"):
            cost = (found - tables.rgb[row]).square().sum(1)
        else:
            cost = name_nats(found, tables.symbols[row])
        parts[way] = cost.sum()
        total = total + weight * parts[way]
    return Loss(total, parts)


def vector_loss(model: nn.Module, batch: Batch, *, tables: Tables) -> Loss:
    """Return the squared error of each vector, a mean over its numbers, summed over examples."""
    assert tables.vectors is not None
    wanted = tables.vectors[batch.fields["row"]]
    return Loss((model(wanted) - wanted).square().mean(1).sum())
