"""What a position in the data costs: near the start and far into a run, small and huge data.

    python benchmarks/position_in_data.py

Prints microseconds (best of seven rounds) and the memory that an order takes.
"""

from __future__ import annotations

import timeit
import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np

from surefoot.data.batch import Data
from surefoot.data.order import Permutation
from surefoot.data.text import TextSource

EXAMPLES = 12
STEPS = (10**3, 10**9)


def microseconds(work: Callable[[], object], count: int = 3000) -> float:
    """Return the time of one call, best of seven rounds."""
    return min(timeit.repeat(work, number=count, repeat=7)) / count * 1e6


def positions(n: int) -> tuple[float, float]:
    """Return the time of finding one step's examples among `n`, early and late."""
    order = Permutation(n, key=1)
    times = []
    for step in STEPS:
        epoch, place = np.divmod(np.arange(step * EXAMPLES, (step + 1) * EXAMPLES), n)
        times.append(microseconds(partial(order, place, epoch)))
    return times[0], times[1]


def order_bytes(n: int) -> int:
    """Return the peak memory of making an order and asking it for one step."""
    tracemalloc.start()
    Permutation(n, key=1)(np.arange(EXAMPLES), np.zeros(EXAMPLES, dtype=np.int64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def main() -> None:
    """Print the tables."""
    print(f"order of {EXAMPLES} examples: us at step 1e3, at step 1e9, ratio, peak bytes")
    for n in (20, 100, 17_691, 10**6, 10**9, 10**12):
        early, late = positions(n)
        print(f"  n = {n:<14,} {early:6.1f} {late:6.1f} {late / early:6.2f} {order_bytes(n):8,}")
    tokens = np.random.default_rng(0).integers(0, 65, 1_003_854, dtype=np.uint8)
    print("Data.batch from a text of 1 M characters: us at step 1e3, at step 1e9")
    for batch_size, context in ((12, 64), (64, 256)):
        data = Data(TextSource(tokens, context), seed=1, batch_size=batch_size)
        early, late = (microseconds(partial(data.batch, step)) for step in STEPS)
        print(f"  {batch_size} x {context:<10} {early:6.1f} {late:6.1f}")


if __name__ == "__main__":
    main()
