"""What a bottleneck holds: `python benchmarks/colours.py widths|vectors`.

`widths` trains the preset `laptop` of `colours` with bottlenecks of 1 to 8 numbers; `vectors` trains
the preset `original` with other widths and other numbers of names, and sets the best linear map of
the same rank beside it. Each writes a page to benchmarks/results, `vectors` also the picture of the
recipe's page. Every finished training is a line in `--results`, so that it can be stopped and goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import heading

from surefoot import api
from surefoot.config import flags
from surefoot.data.batch import Data
from surefoot.data.colours import ALPHABET, PLACES, Colours, load, parse_rgb, symbols, vectors
from surefoot.engine import TrainState, World, steps
from surefoot.engine.plan import prepare
from surefoot.recipes import find

HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "docs" / "recipes" / "pictures" / "colours-held.png"
CPU = World(torch.device("cpu"))
RECIPE = find("colours")
WIDTHS = range(1, 9)
NARROW = (1, 2, 4, 8, 12, 16, 24, 32, 41, 56)
LISTS = (("wikipedia", 100), ("wikipedia", None), ("large", 5000), ("large", None))


def train(preset: str, **settings: Any) -> dict[str, Any]:
    """Train without folder, record or checkpoints; return the last scores and the CPU time."""
    given, problems = flags.arguments(settings, RECIPE.config)
    config = api.settle(RECIPE, preset, (), given, problems).config
    job = RECIPE.build(config, CPU)
    prepare(job, config, {})
    data = Data(job.source, config.train.seed, config.train.batch_size)
    begun = time.process_time()
    for _ in steps(TrainState(job.learners), data, config.train.seed, CPU):
        pass
    spent = time.process_time() - begun
    with job.learners["main"].evaluating() as model:
        scores = dict(job.exams["list"](model))
        if config.model.reads == "both":
            asked = parse_rgb("0,0.28,0.73")
            seen: Any = model(rgb=torch.tensor(asked, dtype=torch.float32).unsqueeze(0))
            off = np.abs(seen.rgb_to_rgb[0].numpy() - asked).max()
            scores["example"] = float(off)
    names = {"names": len(job.source), "steps": config.train.max_steps}
    return {"settings": settings, "seconds": spent, **names, **scores}


def kept(path: Path, preset: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what was found before with these settings, or train now and keep it."""
    rows = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    found = next((r for r in rows if r["settings"] == settings), None)
    if found is None:
        found = train(preset, **settings)
        with path.open("a") as file:
            file.write(json.dumps(found) + "\n")
    return found


def widths(results: Path) -> str:
    """Return the page of the preset `laptop` by width."""
    rows = [kept(results, "laptop", {"bottleneck": width, "threads": 1}) for width in WIDTHS]
    table = [
        f"| {r['settings']['bottleneck']} | {r['rgb_error']:.4f} | {r['rgb_delta_e']:.2f} | "
        f"{r['example']:.4f} | {r['characters']:.2%} | {r['held']:.1%} | {r['named']:.1%} | "
        f"{r['unseen_characters']:.1%} | {r['name_error']:.3f} | {r['seconds']:.0f} |"
        for r in rows
    ]
    return "\n".join(
        [
            *heading("What a bottleneck of `colours` holds", "benchmarks/colours.py widths"),
            f"Preset `laptop` ({rows[0]['names']} names, {rows[0]['steps']} steps, one thread, one seed) by "
            "width of the bottleneck. Colours: mean error a channel and CIEDE2000, held out; the largest "
            "error of 0.000, 0.280, 0.730. Names: characters and whole names of the training list that come "
            "back; training colours that give their name; characters of held-out names. Name to colour: "
            "mean error a channel on held-out names, where a table of words has "
            f"{rows[0]['nearest_word_error']:.3f}.",
            "",
            "| width | colour error | ΔE2000 | example | characters | names | colour to name | "
            "unseen characters | name to colour | CPU s |",
            "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
            *table,
            "",
        ]
    )


def linear(colours: Colours, width: int) -> tuple[float, float]:
    """Return the shares of training and of held-out names that the best linear map holds.

    That is the projection on the `width` first principal axes of the training names.
    """
    told = symbols(colours.folded)
    vector = vectors(told)[:, :PLACES].astype(np.float64)
    train, held = colours.rows(held_out=False), colours.rows(held_out=True)
    mean = vector[train].mean(0)
    axes = np.linalg.svd(vector[train] - mean, full_matrices=False)[2][:width]
    back = np.rint(((vector - mean) @ axes.T @ axes + mean) * len(ALPHABET))
    right = (back == told).all(1)
    return float(right[train].mean()), float(right[held].mean())


def answers(results: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield for each list what is held at each width, the best linear map beside it."""
    for name, most in LISTS:
        rows = []
        colours = load(name, 0.1, most)
        for width in NARROW:
            settings = {"bottleneck": width, "list_name": name, "most_names": most, "threads": 1}
            found = kept(results, "original", settings)
            found["linear"], found["linear_unseen"] = linear(colours, width)
            rows.append(found)
        source = "Wikipedia" if name == "wikipedia" else "the large list"
        yield f"{rows[0]['names']:,} names of {source}", rows


def picture(found: dict[str, list[dict[str, Any]]]) -> None:
    """Draw how much is held by width."""
    from matplotlib.figure import Figure

    from surefoot.track.plots import DPI, GRID, HUES, INK

    canvas = Figure(figsize=(8, 4.2), layout="constrained")
    axes = canvas.add_subplot()
    for (label, rows), hue in zip(found.items(), HUES):
        x = [row["settings"]["bottleneck"] for row in rows]
        axes.plot(x, [100 * row["held"] for row in rows], color=hue, marker="o", label=label)
        axes.plot(x, [100 * row["linear"] for row in rows], color=hue, linestyle=(0, (1, 2)))
    axes.plot([], [], color=INK, linestyle=(0, (1, 2)), label="the best linear map")
    axes.set_title("Names that come back letter for letter", loc="left", color=INK, weight="bold")
    axes.set_xlabel("numbers in the bottleneck", color=INK)
    axes.set_ylabel("% of the names trained on", color=INK)
    axes.grid(color=GRID)
    axes.tick_params(colors=INK, length=0)
    axes.legend(frameon=False, labelcolor=INK)
    for side in axes.spines.values():
        side.set_visible(False)
    PICTURE.parent.mkdir(exist_ok=True)
    canvas.savefig(PICTURE, dpi=DPI)


def held(results: Path) -> str:
    """Return the page of the preset `original`, and draw the picture."""
    found = dict(answers(results))
    picture(found)
    head = " | ".join(f"{label}, held | linear | unseen" for label in found)
    lines = [
        " | ".join(
            f"{row['held']:.1%} | {row['linear']:.1%} | {row['unseen_held']:.1%}"
            for row in (rows[place] for rows in found.values())
        )
        for place in range(len(NARROW))
    ]
    return "\n".join(
        [
            *heading("How many names a bottleneck holds", "benchmarks/colours.py vectors"),
            "Preset `original`: vectors of 128 numbers, a number a character, through a bottleneck with leaky "
            "ReLU (slope 0.01), squared error, 4,000 steps, one seed. A name is held when every "
            "character comes back after rounding. Linear: the projection on as many principal axes of the "
            "same names. Unseen: held-out names that come back through the trained model.",
            "",
            f"| width | {head} |",
            f"|---:|{'---:|---:|---:|' * len(found)}",
            *(f"| {width} | {line} |" for width, line in zip(NARROW, lines)),
            "",
        ]
    )


def main() -> int:
    """Measure one of the two and write its page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("widths", "vectors"))
    parser.add_argument("--results", type=Path, help="lines of finished trainings")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    file = asked.results or HERE / "results" / f".colours_{asked.what}.jsonl"
    page = {"widths": widths, "vectors": held}[asked.what](file)
    (HERE / "results" / f"colours_{asked.what}.md").write_text(page, encoding="utf-8")
    print(page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
