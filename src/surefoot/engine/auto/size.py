"""How many examples go through the model at once: what fits and is fastest, found by real passes.

However a batch is cut, the update is that of the whole batch, so only memory and speed decide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from surefoot.engine import faults

__all__ = ["Size", "divisors", "fastest", "largest"]

_TRIED = 3  # sizes that are timed
_GAIN = 0.95  # a smaller size must take less than this share of the time
_FULL = 0.92  # share of free memory that passes and optimisers may take together


@dataclass(frozen=True)
class Size:
    """`examples` at once, seconds that each takes then, and the sizes that were timed, in words."""

    examples: int
    each: float
    why: str


def divisors(batch: int, least: int = 1) -> list[int]:
    """Return the sizes, at least `least`, that cut `batch` into equal pieces, largest first.

    >>> divisors(12)
    [12, 6, 4, 3, 2, 1]
    """
    return [size for size in range(batch, least - 1, -1) if batch % size == 0]


def fastest(
    sizes: Sequence[int], seconds: Callable[[int], float], device: torch.device
) -> Size | None:
    """Return the size whose examples take least, of the largest of `sizes` (falling) that run.

    `seconds` makes a real pass of so many examples. A size that does not fit is left out; None
    where not even the last does. Smaller ones count only where they are clearly faster.
    """
    taken: dict[int, float] = {}
    for size in sizes:
        try:
            taken[size] = seconds(size) / size
        except Exception as error:
            if not faults.out_of_memory(error):
                raise
            faults.release(error)
            continue
        worse = len(taken) > 1 and taken[size] > 1.1 * min(taken.values())
        if worse or len(taken) == _TRIED:
            break
    if not taken:
        return None
    best = next(iter(taken))
    for size, each in taken.items():
        if each < _GAIN * taken[best]:
            best = size
    words = ", ".join(f"{size}: {each * 1e3:.3g}" for size, each in taken.items())
    return Size(best, taken[best], f"ms an example at so many at once: {words}")


def largest(
    sizes: Sequence[int], run: Callable[[int], object], device: torch.device, later: int, least: int
) -> tuple[list[int], int]:
    """Return those of `sizes` that fit on a CUDA device, and the bytes that an example takes there.

    Two small passes tell, one of the `least` that works; `later` bytes are needed besides, by gradients
    and optimisers. Where not even the second fits, only smaller ones are left.
    """
    few = max(least, min(4, max(sizes)))
    peaks: dict[int, int] = {}
    for size in sorted({least, few}):
        torch.cuda.reset_peak_memory_stats(device)
        try:
            run(size)
        except Exception as error:
            if size == least or not faults.out_of_memory(error):
                raise
            faults.release(error)
            return [s for s in sizes if s < few] or [sizes[-1]], max(1, peaks[least] // least)
        peaks[size] = torch.cuda.max_memory_allocated(device)
    slope = max(1, (peaks[few] - peaks[least]) // max(1, few - least))
    base = peaks[least] - slope * least
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    room = int(_FULL * free) - later - base
    return [size for size in sizes if size * slope <= room] or [sizes[-1]], slope
