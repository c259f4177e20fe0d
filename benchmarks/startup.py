"""From pressing Enter to the first step: `surefoot train charlm --preset tiny`, probes cached.

    python benchmarks/startup.py [--rounds 7]

Each start is a process; it reports when its first update was applied. Beside it, what a process
needs to import torch alone. Medians, seconds on the wall and of processor time. Writes
benchmarks/results/startup.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

import machine

FIRST_STEP = """
import sys, time
from surefoot import cli
from surefoot.engine.learner import Learner
update = Learner.update
def told(learner):
    rate = update(learner)
    print("AT", time.time(), time.process_time(), flush=True)
    return rate
Learner.update = told
words = ["train", "charlm", "--preset", "tiny", "--max-steps", "1", "--new", "--quiet", "--runs"]
raise SystemExit(cli.main([*words, sys.argv[1]]))
"""
TORCH = "import time, torch; print('AT', time.time(), time.process_time())"


def measure(program: str, folder: str) -> tuple[float, float]:
    """Return seconds on the wall and of processor time until a program says AT."""
    begun = time.time()
    command = [sys.executable, "-c", program, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line = next(x for x in done.stdout.splitlines() if x.startswith("AT "))
    _, at, spent = line.split()
    return float(at) - begun, float(spent)


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    os.environ["OMP_NUM_THREADS"] = "1"
    page = machine.heading("Start-up", "benchmarks/startup.py", __doc__)
    page += ["| | seconds on the wall | processor seconds |", "|---|---|---|"]
    found: dict[str, list[tuple[float, float]]] = {}
    sides = {"import torch": TORCH, "surefoot train, to the first step": FIRST_STEP}
    with tempfile.TemporaryDirectory() as folder:
        measure(FIRST_STEP, folder)  # fills the caches
        for _ in range(rounds):
            for name, program in sides.items():
                found.setdefault(name, []).append(measure(program, folder))
    for name, times in found.items():
        wall, spent = (statistics.median(side) for side in zip(*times, strict=True))
        page.append(f"| {name} | {wall:.2f} | {spent:.2f} |")
    goal = machine.goal("processor time to the first step", spent, 1.5, least=False, unit="s")
    machine.write("startup", [*page, "", goal])


if __name__ == "__main__":
    main()
