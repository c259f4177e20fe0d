"""From pressing Enter to the first step: `surefoot train charlm --preset tiny`, probes cached.

    python benchmarks/startup.py [--rounds 7] [--gpt TEXT --gpt-rounds 3]

Each start is a process; it reports when its first update was applied. Beside it, what a process
needs to import torch alone. With --gpt also `surefoot train gpt --path TEXT` (the preset laptop, all
2,000 steps planned), its tokens, probes and compiled code cached, as `auto` decides and with
`--compile off`. Medians, seconds on the wall and of processor time. Writes
benchmarks/results/startup.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import machine

FIRST_STEP = """
import json, os, sys, time
from surefoot import cli
from surefoot.engine.learner import Learner
update = Learner.update
def told(learner):
    rate = update(learner)
    print("AT", time.time(), time.process_time() + sum(os.times()[2:4]), flush=True)
    if "gpt" in words:
        os._exit(0)
    return rate
Learner.update = told
words = json.loads(sys.argv[2])
raise SystemExit(cli.main(["train", *words, "--new", "--quiet", "--runs", sys.argv[1]]))
"""
CHARLM = ["charlm", "--preset", "tiny", "--max-steps", "1"]
TORCH = "import time, torch; print('AT', time.time(), time.process_time())"


def measure(program: str, folder: str, words: list[str]) -> tuple[float, float]:
    """Return seconds on the wall and of processor time until a program says AT."""
    begun = time.time()
    command = [sys.executable, "-c", program, folder, json.dumps(words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line = next(x for x in done.stdout.splitlines() if x.startswith("AT "))
    _, at, spent = line.split()
    return float(at) - begun, float(spent)


def rounds(
    sides: dict[str, tuple[str, list[str]]], count: int, warm: int
) -> dict[str, tuple[float, float]]:
    """Return median seconds of each side, in turn; its last `warm` sides are run once before."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        for program, words in list(sides.values())[-warm:]:
            measure(program, folder, words)  # fills the caches
        for _ in range(count):
            for name, (program, words) in sides.items():
                found[name].append(measure(program, folder, words))
    return {
        name: (statistics.median(x[0] for x in times), statistics.median(x[1] for x in times))
        for name, times in found.items()
    }


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gpt", metavar="TEXT", help="also gpt on this text")
    parser.add_argument("--gpt-rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    page = machine.heading("Start-up", "benchmarks/startup.py", __doc__)
    page += ["| | seconds on the wall | processor seconds |", "|---|---|---|"]
    charlm = "surefoot train, to the first step"
    found = rounds({"import torch": (TORCH, []), charlm: (FIRST_STEP, CHARLM)}, options.rounds, 1)
    goals = [machine.goal("processor time to the first step", found[charlm][1], 1.5, least=False, unit="s")]  # fmt: skip
    if options.gpt:
        words = ["gpt", "--path", options.gpt]
        plain, auto = "surefoot train gpt --compile off", "surefoot train gpt"
        sides = {plain: (FIRST_STEP, [*words, "--compile", "off"]), auto: (FIRST_STEP, words)}
        found |= rounds(sides, options.gpt_rounds, 2)
        goals += [
            machine.goal(f"processor time to the first step of {name}", found[name][1], 6, least=False, unit="s")
            for name in sides
        ]  # fmt: skip
    page += [f"| {name} | {wall:.2f} | {spent:.2f} |" for name, (wall, spent) in found.items()]
    machine.write("startup", [*page, "", *goals])


if __name__ == "__main__":
    main()
