"""Does memory grow with the corpus? Encodes ever larger texts and draws batches from them.

    python benchmarks/memory.py [--sizes 10 100 1000] [--batches 20000]

Each size (in MB) runs in a process of its own, in a temporary folder that is removed at the end.
Resident memory: before anything, at the peak of encoding, at the peak of drawing. Writes
benchmarks/results/memory.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
import numpy as np
import psutil

from surefoot.data.batch import Data
from surefoot.data.text import load_text

LINE = "it was the best of times and it was the worst of times for her as it had been for him"
BATCH, CONTEXT = 64, 256


def generate(path: Path, megabytes: int) -> None:
    """Write `megabytes` of lines of random words."""
    rng = np.random.default_rng(1)
    block = " ".join(rng.choice(LINE.split(), 400_000))
    block = "\n".join(block[i : i + 80] for i in range(0, 1_000_000, 80))[:1_000_000]
    with path.open("w", encoding="ascii") as file:
        for number in range(megabytes):
            file.write(f"{number:09}" + block[9:])


def resident() -> int:
    """Return resident memory in bytes, mapped pages of files included."""
    return int(psutil.Process().memory_info().rss)


class Watch:
    """Samples resident memory beside the work, every few milliseconds."""

    def __init__(self) -> None:
        import threading

        self.peak, self._stop = resident(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, resident())

    def close(self) -> int:
        """Stop and return the peak in bytes."""
        self._stop.set()
        self._thread.join()
        return max(self.peak, resident())


def measure(path: Path, cache: Path, batches: int) -> dict[str, float]:
    """Encode the text at `path`, load it again, and draw `batches`; return figures."""
    before, begun = resident(), time.perf_counter()
    watch = Watch()
    load_text(path, None, val_ratio=0.1, vocabulary="char", cache=cache)
    encoded, encoding = watch.close(), time.perf_counter() - begun
    begun = time.perf_counter()
    text = load_text(path, None, val_ratio=0.1, vocabulary="char", cache=cache)
    data = Data(text.source(CONTEXT), seed=1, batch_size=BATCH)
    again = time.perf_counter() - begun
    watch, begun = Watch(), time.perf_counter()
    for step in range(batches):
        data.batch(step * 7919)
    drawing = time.perf_counter() - begun
    drawn = watch.close()
    return {
        "before": before / 1e6,
        "encoding": encoded / 1e6,
        "drawing": drawn / 1e6,
        "encode_s": encoding,
        "load_s": again,
        "batch_us": drawing / batches * 1e6,
    }


def main() -> None:
    """Run one child for each size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000], metavar="MB")
    parser.add_argument("--batches", type=int, default=20_000)
    parser.add_argument("--child", nargs=2, metavar=("TEXT", "CACHE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        path, cache = map(Path, asked.child)
        print(json.dumps(measure(path, cache, asked.batches)))
        return
    page = machine.heading("Memory and the size of the text", "benchmarks/memory.py", __doc__)
    page += [
        f"{asked.batches} batches of {BATCH} x {CONTEXT} characters.", "",
        "| text, MB | before, MB | encoding | drawing | encode, s | load, s | a batch, us |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    drawn = []
    for size in asked.sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "text.txt"
            generate(path, size)
            command = [sys.executable, __file__, "--batches", str(asked.batches)]
            command += ["--child", str(path), str(Path(folder) / "cache")]
            row = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        drawn.append(row["drawing"])
        page.append(
            f"| {size} | {row['before']:.0f} | {row['encoding']:.0f} | {row['drawing']:.0f} "
            f"| {row['encode_s']:.2f} | {row['load_s']:.2f} | {row['batch_us']:.0f} |"
        )
    growth = drawn[-1] - drawn[0]
    goal = machine.goal("more memory for the largest text", growth, 100, least=False, unit="MB")
    machine.write("memory", [*page, "", goal])


if __name__ == "__main__":
    main()
