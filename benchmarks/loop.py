"""The engine's loop against a hand-written one: the same model, windows, precision and kernels.

    python benchmarks/loop.py [--rounds 5]

Both sides run in one process, round after round; processor time on one thread, and the ratio of
medians counts. Surefoot's side is `surefoot.engine.steps`, with keys, checksum, gate and clipping;
the other side clips too. Writes benchmarks/results/loop.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext
from typing import Any

import machine
import numpy as np
import torch
from torch import nn

from surefoot.config.model import GPTConfig
from surefoot.config.schema import Optim
from surefoot.data.batch import Batch, Data
from surefoot.data.text import TextSource
from surefoot.engine import Learner, Loss, TrainState, World, steps
from surefoot.nn.gpt import GPT
from surefoot.nn.optim import build_optimisers

CPU = World(torch.device("cpu"))
LAPTOP: dict[str, Any] = {"d_model": 128, "num_layers": 4, "num_heads": 4, "context": 64}
FULL: dict[str, Any] = {"d_model": 384, "num_layers": 6, "num_heads": 6, "context": 256}
CASES = [  # name, shape, layout, precision, steps a round
    ("laptop, classic, fp32", LAPTOP, "gpt2", "fp32", 20),
    ("laptop, classic, bf16", LAPTOP, "gpt2", "bf16", 20),
    ("laptop, modern, bf16", LAPTOP, "modern", "bf16", 20),
    ("full, modern, bf16", FULL, "modern", "bf16", 3),
]


def nats(model: nn.Module, batch: Batch) -> Loss:
    """Cross-entropy, summed."""
    return Loss(model(batch.fields["x"], batch.fields["y"]))


def ours(model: GPT, data: Data, count: int, precision: str) -> float:
    """Return processor seconds a step of the engine."""
    learner = Learner(model, nats, build_optimisers(model, Optim(kind="adamw")), limit=count)
    learner.set_precision(precision)
    begun = time.process_time()
    for _ in steps(TrainState({"main": learner}), data, 1, CPU):
        pass
    return (time.process_time() - begun) / count


def bare(model: GPT, data: Data, count: int, precision: str) -> float:
    """Return processor seconds a step of what one writes by hand."""
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    bf16 = torch.autocast("cpu", dtype=torch.bfloat16)
    begun = time.process_time()
    for step in range(count):
        batch = CPU.to(data.source.batch(*data.address(step), 0))
        with bf16 if precision == "bf16" else nullcontext():
            value = nats(model, batch).sum / batch.weight
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        value.item()
    return (time.process_time() - begun) / count


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    page = machine.heading("The loop against a bare loop", "benchmarks/loop.py", __doc__)
    page += ["| size | Surefoot, ms a step | bare loop | speed over bare |", "|---|---|---|---|"]
    tokens = np.random.default_rng(0).integers(0, 65, 1_000_000).astype("uint8")
    ratio = 0.0
    for name, shape, layout, precision, count in CASES:
        data = Data(TextSource(tokens, shape["context"]), 1, 12)
        config = GPTConfig.model_validate({"layout": layout, **shape})
        sides = (ours, bare)
        found = [[f(GPT(config, 65), data, count, precision) for f in sides] for _ in range(rounds)]
        mine, theirs = (statistics.median(side) * 1e3 for side in zip(*found, strict=True))
        ratio = theirs / mine
        page.append(f"| {name} | {mine:.2f} | {theirs:.2f} | {ratio:.3f} |")
        print(page[-1], flush=True)
    page += ["", machine.goal("speed over a bare loop at the full size", ratio, 0.99)]
    machine.write("loop", page)


if __name__ == "__main__":
    main()
