"""Your own loop: `python examples/own_loop.py FOLDER`. Kill it, start it again: the same bits."""

import sys
from pathlib import Path

import numpy as np
import torch

from surefoot import Batch, Data, Learner, Loss, Store, TrainState, World, steps


class Sines:  # a data set is sized, named, and addressed by number
    fingerprint, __len__ = "sines/1", lambda self: 1000

    def batch(self, index, epoch, key):
        x = (index[:, None] / 500 - 1).astype("float32")
        return Batch({"x": x, "y": np.sin(5 * x)}, weight=len(index))


torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(1, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
error = lambda m, batch: Loss((m(batch.fields["x"]) - batch.fields["y"]).square().sum())
learner = Learner(model, error, [torch.optim.AdamW(model.parameters(), 0.01)], limit=1000)
state, store = TrainState({"main": learner}), Store(Path(sys.argv[1]), run="sines")
if payload := store.newest()[1]:  # the newest checkpoint that verifies
    state.restore(payload)
for report in steps(state, Data(Sines(), 1, 32), 1, World(torch.device("cpu"))):
    if report.step % 100 == 0:
        store.save(report.step, state.payload())
        print(report.step, report.readings["main"].loss, flush=True)
