"""What shards elsewhere cost: bytes fetched in an epoch, windows a second, and loss by order.

    python benchmarks/far_data.py [--corpus reference] [--steps 800] [--seeds 3] [--shards 24] [--seconds 20]

A collection is written as shards to a folder, and one epoch of it is read in batches of 16 windows
of 64 tokens through caches that hold all of it, a half, a quarter: in one order (`all`) and with
some shards shuffled together at a time. `fetched` is in multiples of what there is. Then a small
model (two layers, 64 wide) is trained for the same steps with each order and several seeds; the
corpus is what makes orders differ: `reference` is an encyclopaedia followed by a dictionary.
Writes benchmarks/results/far_data.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import machine

import surefoot
from surefoot.data import manifest
from surefoot.data.batch import Data
from surefoot.data.collection import Collection, collect
from surefoot.data.manifest import publish
from surefoot.data.remote import FarTokens, open_shards

CONTEXT, BATCH = 64, 16
ORDERS = (0, 8, 4, 2, 1)
SHARES = (1.1, 0.5, 0.25)


def read_epoch(url: str, limit: int, together: int, most: float) -> tuple[float, float, float]:
    """Return (multiples of the data that were fetched, windows a second, share of an epoch read).

    Ends after `most` seconds; what was fetched is then scaled up.
    """
    with tempfile.TemporaryDirectory() as cache:
        far = open_shards(url, limit, together, Path(cache))
        source, tokens = far.source(CONTEXT), far.tokens
        assert isinstance(tokens, FarTokens)
        data, count, begun = Data(source, 1, BATCH), len(source) // BATCH, time.monotonic()
        done = 0
        while done < count and time.monotonic() - begun < most:
            data.batch(done)
            done += 1
        tokens.shelf.settle()
        took = time.monotonic() - begun
        whole = len(tokens) * tokens.dtype.itemsize
        return tokens.shelf.fetched / whole * count / done, done * BATCH / took, done / count


def losses(url: str, together: int, steps: int, seeds: int) -> list[float]:
    """Return the held-out loss of each seed."""
    found = []
    for seed in range(1, seeds + 1):
        with tempfile.TemporaryDirectory() as runs:
            result = surefoot.train(
                "gpt", preset="tiny", runs=runs, quiet=True, shards=url, shuffle_shards=together,
                max_steps=steps, batch_size=BATCH, context=CONTEXT, d_model=64, seed=seed,
                validate_every=steps, sample_every=0, save_every=0, report=False, device="cpu",
                precision="fp32", threads=1, compile="off", matmul="default",
            )  # fmt: skip
            found.append(result.metrics["main"]["val_loss"])
    return found


def reading(url: str, near: Collection, most: float) -> list[str]:
    """Return the table of what is fetched."""
    size = near.train.tokens * near.tokenizer.dtype.itemsize
    page = ["| order | cache | fetched | windows/s |", "|---|---:|---:|---:|"]
    for together in ORDERS:
        for share in SHARES:
            fetched, speed, part = read_epoch(url, int(size * share), together, most)
            name = f"{together} at a time" if together else "all"
            more = "" if part == 1 else f" (from {part:.0%} of an epoch)"
            page.append(f"| {name} | {min(share, 1):.0%} | {fetched:,.2f} x{more} | {speed:,.0f} |")
    return page


def training(url: str, options: Any) -> list[str]:
    """Return the table of losses."""
    page = ["| order | held-out loss, mean | of each seed |", "|---|---:|---|"]
    for together in ORDERS:
        found = losses(url, together, options.steps, options.seeds)
        name = f"{together} at a time" if together else "all"
        each = ", ".join(f"{value:.4f}" for value in found)
        page.append(f"| {name} | {statistics.fmean(found):.4f} | {each} |")
    return page


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default="reference")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=20.0, help="of reading, for each row")
    options = parser.parse_args()
    page = machine.heading("Data elsewhere", "benchmarks/far_data.py", __doc__ or "")
    near = collect(None, options.corpus, vocab_size=2048, val_ratio=0.02)
    with tempfile.TemporaryDirectory() as folder:
        size = near.train.tokens * near.tokenizer.dtype.itemsize // options.shards + 2
        manifest._OVERLAP = 2 * CONTEXT  # as little beside these shards as usual beside large ones
        made, _ = publish(near, folder, size)
        shards, steps = len(made.shards["train"]), options.steps * BATCH * CONTEXT
        page += [
            f"{options.corpus}: {near.train.tokens:,} tokens in {shards} shards of "
            f"{size / 1e6:.2f} MB; the model sees {steps:,} of them.", "",
            *reading(folder, near, options.seconds), "", *(training(folder, options) if options.steps else []),
        ]  # fmt: skip
    machine.write("far_data", page)


if __name__ == "__main__":
    main()
