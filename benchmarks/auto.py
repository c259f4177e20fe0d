"""Everything on auto against the best of a small grid by hand: is what was chosen fast?

    python benchmarks/auto.py [--recipes charlm multiply colours] [--seconds 4]

The grid is precision x threads x examples at once, of what the preset leaves on auto; each setting
trains for some seconds in a process of its own, auto first and last, of which the faster counts.
Wants a quiet machine. Writes benchmarks/results/auto.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import machine

GOAL = 1.05


def child(recipe: str, preset: str, settings: str, seconds: str) -> None:
    """Train with these settings and print the seconds of a step."""
    from surefoot import api, recipes
    from surefoot.config import flags
    from surefoot.engine import open_world
    from surefoot.lab.bench import speed_of

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


def words(settings: dict[str, Any]) -> str:
    count = settings["threads"]
    cores = "1 thread" if count == 1 else f"{count} threads"
    return f"{settings['precision']}, {cores}, {settings['micro_batch_size']} at once"


def grid(name: str, preset: str) -> list[dict[str, Any]]:
    """Return what a careful user would try by hand, of what the preset leaves open."""
    from surefoot import api, recipes

    config = api.settle(recipes.find(name), preset, [], {}).config
    batch, asked = config.train.batch_size, config.machine.precision
    sizes = [batch, batch // 2] if batch % 2 == 0 else [batch]
    precisions = ("fp32", "bf16") if asked == "auto" else (asked,)
    every = product(precisions, sorted({1, os.cpu_count() or 1}), sizes)
    names = ("precision", "threads", "micro_batch_size")
    return [dict(zip(names, chosen, strict=True)) for chosen in every]


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
    page = machine.heading(
        "Everything on auto, and the best by hand", "benchmarks/auto.py", __doc__
    )
    page += [
        "| recipe | auto, ms a step | best by hand | auto over it | which that is | auto chose |"
    ]
    page += ["|---|---:|---:|---:|---|---|"]
    worst = 0.0
    for name in asked.recipes:
        first = ask(name, asked.preset, {}, asked.seconds)
        by_hand = {
            words(settings): ask(name, asked.preset, settings, asked.seconds)["step"]
            for settings in grid(name, asked.preset)
        }
        auto = min((first, ask(name, asked.preset, {}, asked.seconds)), key=lambda x: x["step"])
        best = min(by_hand, key=lambda how: by_hand[how])
        ratio = auto["step"] / by_hand[best]
        worst = max(worst, ratio)
        page.append(
            f"| {name} | {auto['step'] * 1e3:.2f} | {by_hand[best] * 1e3:.2f} | {ratio:.2f} "
            f"| {best} | {words(auto['pins'])} |"
        )
        print(page[-1], flush=True)
    page += [
        "",
        machine.goal("auto over the best by hand, the worst recipe", worst, GOAL, least=False),
    ]
    machine.write("auto", page)


if __name__ == "__main__":
    main()
