"""What several processes gain and cost: speed, the order of sums, and what they send each other.

    python benchmarks/devices.py [--rounds 5] [--steps 20]

Speed is seconds on the wall of a step of the laptop-sized model, batch 64 in 8 micro-batches: one
process with two threads against two processes with one each, rounds alternating, medians. What is
sent is counted by the engine itself, in bytes by each rank and step; the collectives of a step are
those that torch's profiler saw. Writes benchmarks/results/devices.md.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import machine

LAPTOP, SMALL = (128, 4), (64, 2)  # width and layers, for speed and for counting
BATCH, MICRO = 64, 8
KINDS = ("gloo:", "nccl:")


def part(options: argparse.Namespace) -> None:
    """Train a little as one rank and, as rank 0, leave what was found in a file."""
    import torch

    from surefoot import Data, Job, Learner, Loss, TrainState, steps
    from surefoot.config.model import GPTConfig
    from surefoot.config.schema import Optim
    from surefoot.data.text import TextSource
    from surefoot.engine.ranks.begin import spread
    from surefoot.engine.ranks.team import leave
    from surefoot.engine.world import open_world
    from surefoot.nn.gpt import GPT
    from surefoot.nn.optim import build_optimisers

    torch.set_num_threads(options.threads)
    world = open_world("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    width, layers = SMALL if options.profile else LAPTOP
    text = torch.randint(0, 65, (1_000_000,), dtype=torch.uint8).numpy()
    config = GPTConfig(d_model=width, num_layers=layers, num_heads=4, context=64)
    model = GPT(config, 65).to(world.device)
    learner = Learner(
        model, lambda m, b: Loss(m(b.fields["x"], b.fields["y"])), build_optimisers(model, Optim()),
        micro=MICRO,
    )  # fmt: skip
    source = TextSource(text, config.context)
    spread(Job(source, {"main": learner}), world, options.how, options.reduce)
    loop = steps(TrainState({"main": learner}), Data(source, 1, BATCH), 1, world)
    for _ in range(3):
        next(loop)
    before = dict(learner.exchange.traffic.bytes) if learner.exchange else {}
    begun = time.perf_counter()
    for _ in range(options.steps):
        next(loop)
    seconds = (time.perf_counter() - begun) / options.steps
    after = learner.exchange.traffic.bytes if learner.exchange else {}
    found: dict[str, Any] = {
        "seconds": seconds,
        "sent": {kind: (n - before.get(kind, 0)) // options.steps for kind, n in after.items()},
        "weights": sum(p.numel() for p in GPT(config, 65).parameters()) * 4,
    }
    if options.profile:
        with torch.profiler.profile() as seen:
            next(loop)
        names = [e.name for e in seen.events() if e.name.startswith(KINDS)]
        found["collectives"] = dict(Counter(names))
    if world.leads:
        Path(options.part).write_text(json.dumps(found))
    leave()


def run(ranks: int, threads: int, how: str, reduce: str, steps: int, profile: bool = False) -> Any:
    """Return what rank 0 of so many processes found."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        words = [
            __file__, "--part", file.name, "--threads", str(threads), "--how", how,
            "--reduce", reduce, "--steps", str(steps), *(["--profile"] if profile else []),
        ]  # fmt: skip
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {
            "OMP_NUM_THREADS": str(threads), "WORLD_SIZE": str(ranks), "MASTER_PORT": port,
            "MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": str(ranks),
        }  # fmt: skip
        started = []
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            env = {
                **os.environ,
                **(shared if ranks > 1 else {"OMP_NUM_THREADS": str(threads)}),
                **own,
            }
            started.append(subprocess.Popen([sys.executable, *words], env=env))
        assert not any(process.wait() for process in started)
        return json.loads(Path(file.name).read_text())


def speed(rounds: int, steps: int) -> list[str]:
    """Return the table of step times."""
    rivals = {
        "1 process, 2 threads": (1, 2, "none", "ordered"),
        "2 processes, 1 thread each": (2, 1, "ddp", "ordered"),
        "2 processes, reduce=tree": (2, 1, "ddp", "tree"),
        "1 process, 2 threads, reduce=tree": (1, 2, "none", "tree"),
    }
    taken: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, rival in rivals.items():
            taken[name].append(run(*rival, steps)["seconds"])
    usual = {name: statistics.median(times) for name, times in taken.items()}
    first = next(iter(usual.values()))
    lines = ["| | ms a step | speed |", "|---|---:|---:|"]
    lines += [f"| {n} | {t * 1e3:.1f} | {first / t:.2f} x |" for n, t in usual.items()]
    shared = first / usual["2 processes, 1 thread each"]
    return [*lines, "", machine.goal("two processes against two threads", shared, 0.9)]


def sent(steps: int) -> list[str]:
    """Return the table of what a rank sends in a step, in copies of the weights."""
    lines = [
        "| ranks | parallel | reduce | gradients | whole tensors | collectives of a step |",
        "|---:|---|---|---:|---:|---|",
    ]
    for ranks in (2, 4):
        for how in ("ddp", "fsdp2", "hsdp") if ranks > 2 else ("ddp", "fsdp2"):
            for reduce in ("ordered", "tree"):
                found = run(ranks, 1, how, reduce, steps, profile=True)
                share = [
                    f"{found['sent'].get(kind, 0) / found['weights']:.2f}"
                    for kind in ("gradients", "whole tensors")
                ]
                calls = ", ".join(f"{n} {name}" for name, n in sorted(found["collectives"].items()))
                lines.append(f"| {ranks} | {how} | {reduce} | {' | '.join(share)} | {calls} |")
    return lines


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    for word in ("--part", "--how", "--reduce"):
        parser.add_argument(word, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        part(options)
        return
    page = machine.heading("Several processes", "benchmarks/devices.py", __doc__)
    page += ["## Speed", "", *speed(options.rounds, options.steps), ""]
    page += ["## What is sent", "", "In copies of the weights (fp32), by each rank.", "", *sent(2)]
    machine.write("devices", page)


if __name__ == "__main__":
    main()
