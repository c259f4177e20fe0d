"""The whole of a step at the tiny sizes of `colours` against a loop written by hand.

    python benchmarks/colours_loop.py [--rounds 7] [--steps 200]

Both sides have the same models, weights, batches and optimisers, clip at 1 and read the loss of every
step; Surefoot's side is `surefoot.engine.steps`, with keys, checksum and gate. They take turns in one
process, one thread; processor time, medians of the rounds. Both keep the memory that they free, as
every run of Surefoot does and a loop by hand does not: page faults would add up to a fifth to either.
The last table has microseconds a step of what Surefoot does besides, measured by itself. Writes
benchmarks/results/colours_loop.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import machine
import torch
from colours import CPU, RECIPE

from surefoot import api
from surefoot.config import flags
from surefoot.data.batch import Data
from surefoot.engine import Learner, TrainState, steps
from surefoot.engine.checksum import checksum
from surefoot.engine.heap import keep_freed_memory
from surefoot.engine.plan import prepare
from surefoot.engine.random import rekey
from surefoot.seeds import derive

CASES = ("rgb", "names", "both", "vectors")
GOAL = 0.95


def parts_of(reads: str) -> tuple[Learner, Data]:
    """Return a fresh learner of the preset `laptop`, and its data."""
    preset = "original" if reads == "vectors" else "laptop"
    given, _ = flags.arguments({"reads": reads}, RECIPE.config)
    config = api.settle(RECIPE, preset, (), given).config
    job = RECIPE.build(config, CPU)
    prepare(job, config, {})
    return job.learners["main"], Data(job.source, config.train.seed, config.train.batch_size)


def ours(reads: str, count: int) -> float:
    """Return processor seconds a step of the engine."""
    learner, data = parts_of(reads)
    learner.limit = count
    begun = time.process_time()
    for _ in steps(TrainState({"main": learner}), data, 1, CPU):
        pass
    return (time.process_time() - begun) / count


def bare(reads: str, count: int) -> float:
    """Return processor seconds a step of what one writes by hand."""
    learner, data = parts_of(reads)
    model, loss, optimisers = learner.model, learner.loss, learner.optimisers
    parameters = list(model.parameters())
    begun = time.process_time()
    for step in range(count):
        batch = CPU.to(data.batch(step))
        value = loss(model, batch).sum / batch.weight
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        for parameter in parameters:
            parameter.grad = None
        value.item()
    return (time.process_time() - begun) / count


def spent(call: Callable[[], Any]) -> float:
    """Return the microseconds of a call: the best of many short rounds."""
    found = []
    for _ in range(100):
        begun = time.perf_counter()
        for _ in range(20):
            call()
        found.append((time.perf_counter() - begun) / 20)
    return 1e6 * min(found)


def besides(reads: str) -> list[tuple[str, float]]:
    """Return what Surefoot does in a step beside the forward, backward and update."""
    learner, data = parts_of(reads)
    for _, _ in zip(range(3), steps(TrainState({"main": learner}), data, 1, CPU), strict=False):
        pass
    fresh = iter(range(1, 10**9))
    return [
        ("point the generators at a key", spent(lambda: rekey(1234567, CPU.device))),
        ("derive the key", spent(lambda: derive(1, "forward", next(fresh), 0))),
        ("sum over the bits of the state", spent(lambda: int(checksum(learner, next(fresh))))),
        ("name the examples of the step", spent(lambda: data.digest(next(fresh) % 100))),
        ("the schedule", spent(lambda: learner.rate)),
    ]


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=200)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    page = machine.heading(
        "A step of colours against a bare loop", "benchmarks/colours_loop.py", __doc__
    )
    page += ["| reads | Surefoot, ms a step | bare loop | speed over bare |", "|---|---|---|---|"]
    ratios = []
    for reads in CASES:
        sides = (ours, bare)
        found = [[side(reads, asked.steps) for side in sides] for _ in range(asked.rounds)]
        mine, theirs = (statistics.median(side) * 1e3 for side in zip(*found, strict=True))
        ratios.append(theirs / mine)
        page.append(f"| {reads} | {mine:.3f} | {theirs:.3f} | {ratios[-1]:.3f} |")
        print(page[-1], flush=True)
    page += ["", machine.goal("least speed over a bare loop", min(ratios), GOAL), ""]
    page += ["| besides, `--reads rgb` | microseconds a step |", "|---|---:|"]
    page += [f"| {name} | {taken:.1f} |" for name, taken in besides("rgb")]
    machine.write("colours_loop", page)


if __name__ == "__main__":
    main()
