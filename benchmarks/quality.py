"""Loss for tokens and for time: the modern default against the classic recipe, tuned.

    python benchmarks/quality.py [--text TINYSHAKESPEARE] [--seeds 2]

The classic recipe (GPT-2 layout, AdamW, cosine, nanoGPT's settings for a laptop: 4 layers, 4
heads, 128 wide, 12 windows of 64 characters, 2,000 steps) is tried at four learning rates with one
seed; the best is run again with the others. The modern default is run with the same tokens and
with fewer, each a run of its own with its own schedule. Every run is a process on one thread;
seconds are its processor time. Writes benchmarks/results/quality.md.
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
from pathlib import Path
from typing import Any

import machine

RATES = (1e-3, 2e-3, 4e-3, 8e-3)
STEPS = 2000
SHARES = (1.0, 0.4, 0.3)  # of the tokens of the classic run
TOKENS = 12 * 64


def child(preset: str, text: str, seed: int, steps: int, settings: dict[str, Any]) -> None:
    """Train once and print what came out."""
    import surefoot

    with tempfile.TemporaryDirectory() as folder:
        before = time.process_time()
        result = surefoot.train(
            "charlm", preset=preset, path=text or None, runs=folder, quiet=True, seed=seed, threads=1,
            max_steps=steps, **settings,
        )  # fmt: skip
        rows = (Path(result.folder) / "metrics.jsonl").read_text().splitlines()
        losses = [json.loads(x).get("val_loss") for x in rows]
        best = min(x for x in losses if x is not None)
        print("RESULT " + json.dumps([best, time.process_time() - before]))


def run(preset: str, text: str, seed: int, steps: int, **settings: Any) -> tuple[float, float]:
    """Return (best validation loss in nats, processor seconds) of one run."""
    asked = [preset, text, str(seed), str(steps), json.dumps(settings)]
    command = [sys.executable, __file__, "--child", *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    if not lines:
        raise SystemExit(done.stderr)
    loss, seconds = json.loads(lines[0][7:])
    print(
        f"{preset} seed {seed} steps {steps} {settings}: {loss:.4f} in {seconds:.0f} s", flush=True
    )
    return loss, seconds


def row(name: str, steps: int, found: list[tuple[float, float]]) -> str:
    """Return a row of the table: the mean over seeds, and each."""
    losses = [loss for loss, _ in found]
    each = " ".join(f"{x:.4f}" for x in losses)
    seconds = statistics.median(s for _, s in found)
    tokens = f"{steps * TOKENS / 1e6:.2f} M"
    return f"| {name} | {tokens} | {statistics.mean(losses):.4f} | {each} | {seconds:.0f} |"


def judge(
    classic: list[tuple[float, float]], modern: dict[float, list[tuple[float, float]]]
) -> list[str]:
    """Return which goals are reached, on means over seeds."""

    def loss(found: list[tuple[float, float]]) -> float:
        return statistics.mean(x for x, _ in found)

    time_of_classic = statistics.median(s for _, s in classic)
    enough = [share for share, found in modern.items() if loss(found) <= loss(classic)]
    in_time = [
        loss(f) for f in modern.values() if statistics.median(s for _, s in f) <= time_of_classic
    ]
    share = min(enough, default=float("inf"))
    return [
        machine.goal("share of the classic run's tokens to its loss", share, 0.4, least=False, unit=""),
        machine.goal("loss in the classic run's time", min(in_time), 1.88, least=False, unit="nats"),
    ]  # fmt: skip


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", default="", help="tinyshakespeare, or any text")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        preset, text, seed, steps, settings = asked.child
        child(preset, text, int(seed), int(steps), json.loads(settings))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    page = machine.heading("Loss for tokens and for time", "benchmarks/quality.py", __doc__)
    page += ["| | tokens | validation loss, mean | seeds | processor s |", "|---|---|---|---|---|"]
    swept = {lr: run("classic", asked.text, 1, STEPS, lr=lr, min_lr=lr / 10) for lr in RATES}
    best = min(swept, key=lambda lr: swept[lr][0])
    for lr, found in swept.items():
        if lr != best:
            page.append(row(f"classic, lr {lr:g}", STEPS, [found]))
    seeds = range(2, asked.seeds + 1)
    again = [run("classic", asked.text, s, STEPS, lr=best, min_lr=best / 10) for s in seeds]
    classic = [swept[best], *again]
    page.append(row(f"**classic, lr {best:g}, the best**", STEPS, classic))
    modern = {
        x: [run("laptop", asked.text, s, round(STEPS * x)) for s in (1, *seeds)] for x in SHARES
    }
    for share, found in modern.items():
        page.append(row(f"**modern, {share:.0%} of the tokens**", round(STEPS * share), found))
    machine.write("quality", [*page, "", *judge(classic, modern)])


if __name__ == "__main__":
    main()
