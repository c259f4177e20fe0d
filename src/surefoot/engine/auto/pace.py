"""What it costs to start an operation: real steps of a model too small to compute anything.

Python, torch and the loop take their time for each operation, however small. Here it is what remains
of such steps when the work itself is taken off.
"""

from __future__ import annotations

import time
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from surefoot.config.model import GPTConfig
from surefoot.config.schema import Optim
from surefoot.data.batch import Batch, Data
from surefoot.engine.auto.ledger import Ledger
from surefoot.engine.learner import Learner, Loss
from surefoot.engine.loop import steps
from surefoot.engine.state import TrainState
from surefoot.engine.world import World
from surefoot.nn.gpt import GPT
from surefoot.nn.optim import build_optimisers

__all__ = ["operations_and_seconds"]

_WIDTH, _CONTEXT, _BATCH = 16, 8, 2
_WARM, _STEPS = 5, 25


class _Rows:
    """Rows of one and the same token."""

    fingerprint = "rows"

    def __len__(self) -> int:
        return 64

    def batch(self, index: NDArray[np.int64], epoch: NDArray[np.int64], key: int) -> Batch:
        rows = np.zeros((len(index), _CONTEXT), np.int64)
        return Batch({"x": rows, "y": rows}, rows.size)


def operations_and_seconds(device: torch.device) -> tuple[int, float]:
    """Return how many operations a step of the small model has, and the median of its seconds."""
    sizes = GPTConfig(d_model=_WIDTH, num_layers=2, num_heads=2, context=_CONTEXT)
    with torch.random.fork_rng(devices=[]):
        model = GPT(sizes, 32).to(device)
    learner = Learner(model, _loss, build_optimisers(model, Optim()))
    state, world = TrainState({"main": learner}), World(device)
    going = steps(state, Data(_Rows(), 0, _BATCH), 0, world)
    list(islice(going, _WARM))
    with Ledger() as seen:
        next(going)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    taken = []
    for _ in range(_STEPS):
        begun = clock()
        next(going)
        taken.append(clock() - begun)
    return len(seen.works), sorted(taken)[_STEPS // 2]


def _loss(model: nn.Module, batch: Batch) -> Loss:
    return Loss(model(batch.fields["x"], batch.fields["y"]))
