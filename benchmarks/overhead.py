"""What the whole of Surefoot adds to a step, on a model that costs nothing: 8 numbers to one.

    python benchmarks/overhead.py [--steps 4000] [--rounds 5]

Both sides draw the same batches, clip at 1, apply fused AdamW and read the loss. Surefoot's side
is `surefoot.train` with its schedule, gate, journal, TensorBoard and a record of every tenth step;
time counts from step 500 to the last. What evaluations with their checkpoints take is told besides,
from the difference to runs that evaluate and save every 500 steps, as is what comes at the end.
Processor time of the process with all its threads; the report is drawn by another process, which
takes some tenths of a second at an evaluation. Writes benchmarks/results/overhead.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import machine
import numpy as np
import torch
from torch import nn

import surefoot
from surefoot import Batch, Job, Loss, Recipe, RunConfig, World
from surefoot.data.batch import Data
from surefoot.engine.learner import Learner
from surefoot.nn.optim import build_optimisers

SKIP = EVERY = 500


class Table:
    """A thousand rows of a linear function."""

    fingerprint = "table"

    def __init__(self) -> None:
        self.x = np.random.default_rng(0).standard_normal((1000, 8)).astype("float32")
        self.y = self.x.sum(1, keepdims=True)

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index: Any, epoch: Any, key: int) -> Batch:
        """Return rows `index`."""
        return Batch({"x": self.x[index], "y": self.y[index]}, len(index))


def squared(model: nn.Module, batch: Batch) -> Loss:
    """Squared error, summed."""
    return Loss(((model(batch.fields["x"]) - batch.fields["y"]) ** 2).sum())


def build(config: RunConfig, world: World) -> Job:
    """Return one linear model and its table."""
    table = Table()
    model = nn.Linear(8, 1)
    torch.nn.init.zeros_(model.weight)
    rows = Batch({"x": torch.from_numpy(table.x), "y": torch.from_numpy(table.y)}, 1000)
    return Job(
        source=table,
        learners={"main": Learner(model, squared, build_optimisers(model, config.optim))},
        evals={"table": lambda m: {"val_loss": float(squared(m, rows).sum) / 1000}},
    )


def ours(count: int, every: int) -> tuple[float, float]:
    """Return processor seconds a step of `surefoot.train`, and those from the last step on.

    It evaluates and saves every `every` steps.
    """
    stamps: list[float] = []
    update = Learner.update

    def stamped(learner: Learner) -> float:
        if learner.step in (SKIP, count - 1):
            stamps.append(time.process_time())
        return update(learner)

    Learner.update = stamped  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            recipe = Recipe("linear", "8 numbers to one", RunConfig, build)
            surefoot.train(
                recipe, runs=folder, quiet=True, batch_size=16, max_steps=count,
                threads=1, validate_every=every, **{"optim.kind": "adamw"},
            )  # fmt: skip
            begun, ended = stamps
            return (ended - begun) / (count - 1 - SKIP), time.process_time() - ended
    finally:
        Learner.update = update  # type: ignore[method-assign]


def bare(count: int) -> float:
    """Return processor seconds a step of a loop written by hand."""
    data, world = Data(Table(), 1, 16), World(torch.device("cpu"))
    model = nn.Linear(8, 1)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    begun = 0.0
    for step in range(count):
        if step == SKIP:
            begun = time.process_time()
        batch = world.to(data.source.batch(*data.address(step), 0))
        loss = squared(model, batch).sum / batch.weight
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        loss.item()
    return (time.process_time() - begun) / (count - SKIP)


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    page = machine.heading("What Surefoot adds to a step", "benchmarks/overhead.py", __doc__)
    rounds = [
        (*ours(asked.steps, asked.steps), ours(asked.steps, EVERY)[0], bare(asked.steps))
        for _ in range(asked.rounds)
    ]
    mine, end, often, theirs = (statistics.median(side) * 1e3 for side in zip(*rounds, strict=True))
    page += ["| | ms a step |", "|---|---|", f"| Surefoot, all the time | {mine:.3f} |"]
    page += [f"| bare loop | {theirs:.3f} |", f"| difference | {mine - theirs:+.3f} |"]
    page += ["", f"An evaluation with its checkpoint: {(often - mine) * EVERY:.0f} ms more."]
    page += [f"After the last step: {end:.0f} ms, for the last of both and the pictures.", ""]
    page.append(machine.goal("more than a bare loop", mine - theirs, 0.03, least=False, unit="ms"))
    machine.write("overhead", page)


if __name__ == "__main__":
    main()
