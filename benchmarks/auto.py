"""Everything on auto against the best of a small grid by hand: is what was chosen fast?

    python benchmarks/auto.py [--recipes charlm multiply colours] [--seconds 4]

The grid is precision x threads x examples at once; each setting trains for some seconds in a process
of its own, auto first and last. A ratio of at most 1.05 is the goal. Wants a quiet machine; prints one table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

GOAL = 1.05


def child(recipe: str, preset: str, settings: str, seconds: str) -> None:
    """Train with these settings and print the seconds of a step."""
    from surefoot import api, recipes
    from surefoot.config import flags
    from surefoot.engine import open_world
    from surefoot.engine.bench import speed_of

    found = recipes.find(recipe)
    given, problems = flags.arguments(json.loads(settings), found.config)
    assert not problems, problems
    config = api.settle(found, preset, [], given).config
    with tempfile.TemporaryDirectory() as folder:  # nothing is known from before
        speed = speed_of(
            found, config, open_world("auto"), float(seconds), Path(folder) / "fit.json"
        )
    print("RESULT " + json.dumps({"step": speed.step, "pins": speed.pins.as_dict()}))


def ask(recipe: str, preset: str, settings: dict[str, Any], seconds: float) -> dict[str, Any]:
    command = [
        sys.executable,
        __file__,
        "--child",
        recipe,
        preset,
        json.dumps(settings),
        str(seconds),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            found: dict[str, Any] = json.loads(line[7:])
            return found
    raise SystemExit(f"{recipe} {settings}: {done.stderr[-400:]}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=["charlm", "multiply", "colours"])
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(*asked.child)
        return
    import os

    from surefoot import recipes

    print(f"{'recipe':<12}{'auto ms':>9}{'best ms':>9}{'ratio':>7}  best by hand")
    for name in asked.recipes:
        batch = int(recipes.find(name).presets[asked.preset].get("train", {}).get("batch_size", 12))
        sizes = [d for d in (batch, batch // 2) if d and batch % d == 0]
        threads = sorted({1, os.cpu_count() or 1})
        first = ask(name, asked.preset, {}, asked.seconds)
        by_hand = {}
        for precision, count, size in product(("fp32", "bf16"), threads, sizes):
            settings = {"precision": precision, "threads": count, "micro_batch_size": size}
            step = ask(name, asked.preset, settings, asked.seconds)["step"]
            by_hand[f"{precision}, {count} threads, {size} at once"] = step
        auto = min(first["step"], ask(name, asked.preset, {}, asked.seconds)["step"])
        best = min(by_hand, key=lambda words: by_hand[words])
        ratio = auto / by_hand[best]
        verdict = "" if ratio <= GOAL else "  (goal missed)"
        print(
            f"{name:<12}{auto * 1e3:>9.2f}{by_hand[best] * 1e3:>9.2f}{ratio:>7.2f}  {best}{verdict}",
            flush=True,
        )


if __name__ == "__main__":
    main()
