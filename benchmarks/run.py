"""`make bench`: the engine against a hand-written loop, interleaved in one process.

Both sides train the same model on the same windows of the same text with the same precision and
the same optimiser kernel; rounds alternate, and the ratio of medians counts. Nothing is asserted:
figures are printed and written to benchmarks/results.md with the machine and its load.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

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

ROUNDS = 5
HERE = Path(__file__).resolve().parent
CPU = World(torch.device("cpu"))


class Table:
    """A small regression problem, on which only the loop itself costs anything."""

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


def nats(model: nn.Module, batch: Batch) -> Loss:
    """Cross-entropy, summed."""
    return Loss(model(batch.fields["x"], batch.fields["y"]))


def surefoot_loop(
    model: nn.Module, optimisers: Any, data: Data, loss: Any, count: int, precision: str
) -> float:
    """Return seconds a step of the engine, with its clipping, gate and re-keying."""
    learner = Learner(model, loss, optimisers, limit=count)
    learner.set_precision(precision)
    begun = time.perf_counter()
    for _ in steps(TrainState({"main": learner}), data, 1, CPU):
        pass
    return (time.perf_counter() - begun) / count


def bare_loop(
    model: nn.Module, optimiser: Any, data: Data, loss: Any, count: int, precision: str
) -> float:
    """Return seconds a step of what one writes by hand, with clipping."""
    bf16 = torch.autocast("cpu", dtype=torch.bfloat16)
    begun = time.perf_counter()
    for step in range(count):
        batch = CPU.to(data.source.batch(*data.address(step), 0))
        with bf16 if precision == "bf16" else nullcontext():
            value = loss(model, batch).sum / batch.weight
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        value.item()
    return (time.perf_counter() - begun) / count


def compare(title: str, ours: Callable[[], float], bare: Callable[[], float]) -> str:
    """Alternate both, and return a row of the table."""
    ours(), bare()  # warm up
    pairs = [(ours(), bare()) for _ in range(ROUNDS)]
    mine, theirs = (statistics.median(side) * 1e3 for side in zip(*pairs, strict=True))
    row = f"| {title} | {mine:.3f} | {theirs:.3f} | {theirs / mine:.2f} |"
    print(row, flush=True)
    return row


def trivial() -> str:
    """Return the row of the 8 -> 1 linear model."""
    data = Data(Table(), 1, 16)

    def ours() -> float:
        model = nn.Linear(8, 1)
        groups = build_optimisers(model, Optim(kind="adamw"))
        return surefoot_loop(model, groups, data, squared, 600, "fp32")

    def bare() -> float:
        model = nn.Linear(8, 1)
        optimiser = torch.optim.AdamW(model.parameters(), fused=True)
        return bare_loop(model, optimiser, data, squared, 600, "fp32")

    return compare("linear 8 to 1, 600 steps", ours, bare)


def language(precision: str, layout: str) -> str:
    """Return the row of the laptop-sized character model."""
    tokens = np.random.default_rng(0).integers(0, 65, 1_000_000).astype("uint8")
    data = Data(TextSource(tokens, 64), 1, 12)
    sizes = GPTConfig.model_validate({"layout": layout})

    def ours() -> float:
        model = GPT(sizes, 65)
        groups = build_optimisers(model, Optim(kind="adamw"))
        return surefoot_loop(model, groups, data, nats, 15, precision)

    def bare() -> float:
        model = GPT(sizes, 65)
        optimiser = torch.optim.AdamW(model.parameters(), fused=True)
        return bare_loop(model, optimiser, data, nats, 15, precision)

    return compare(f"charlm laptop size, {layout}, {precision}", ours, bare)


def main() -> None:
    """Measure, print and write the table."""
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    rows = [trivial()]
    rows += [language(p, layout) for layout in ("modern", "gpt2") for p in ("fp32", "bf16")]
    machine = f"{os.cpu_count()} cores ({platform.processor() or platform.machine()})"
    text = [
        "# Benchmarks",
        "",
        f"`make bench` on {time.strftime('%Y-%m-%d')}: {machine}, 1 thread, torch "
        f"{torch.__version__}, Python {platform.python_version()}, load average at the start "
        f"{load:.1f}. Medians of {ROUNDS} alternating rounds, milliseconds a step.",
        "",
        "| what | Surefoot | bare loop, same model | speed over bare |",
        "|---|---|---|---|",
        *rows,
        "",
        "Other trainers are not measured here yet, and neither are the journal, the record and",
        "checkpoints, which the conductor adds to the loop. A load average above the number of",
        "cores means that other programs took part; then only the ratio says something.",
        "",
    ]
    (HERE / "results.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
