"""How fast a machine can be at most, and what a predicted step takes on it.

Three ceilings are enough for an estimate: how many floating-point operations a second its matrix
products reach, how many bytes a second it moves, and what it costs to start an operation. Here
they are measured, once for each machine; of cards they are the makers' figures with a usual share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from surefoot.engine.known import device_name, recall, remember
from surefoot.track.machine import describe_machine

if TYPE_CHECKING:  # both load torch's compiler
    from surefoot.engine.ledger import Work
    from surefoot.engine.predict import Need

__all__ = ["Ceilings", "measured", "of_card", "seconds"]

_SIDE, _STREAM = 512, 2**21  # numbers a side of the product; in a tensor that is streamed
_GPU_SIDE, _GPU_STREAM = 4096, 2**26
_TRIES = 7
_MATRIX_SHARE, _BANDWIDTH_SHARE = 0.45, 0.75  # of the makers' figures, in small models
_LAUNCH = 8e-6  # seconds between operations that Python starts on a GPU, one after the other


@dataclass(frozen=True)
class Ceilings:
    """FLOP/s of matrix products in fp32 and in a half type, bytes/s, seconds to start one operation."""

    fp32: float
    half: float
    bandwidth: float
    start: float


def of_card(fp32: float, half: float | None, bandwidth: float) -> Ceilings:
    """Return what is usually reached of a maker's figures (TFLOP/s and GB/s)."""
    share = _MATRIX_SHARE * 1e12
    return Ceilings(
        fp32 * share, (half or fp32) * share, bandwidth * 1e9 * _BANDWIDTH_SHARE, _LAUNCH
    )


def seconds(need: Need, ceilings: Ceilings) -> float:
    """Return the seconds of a step: each operation is bound by arithmetic, or by moving its bytes."""
    passes = need.examples / need.micro
    return passes * _sum(need.passes, ceilings) + _sum(need.updates, ceilings)


def _sum(works: Sequence[Work], ceilings: Ceilings) -> float:
    rates = {"fp32": ceilings.fp32, "half": ceilings.half}
    return sum(
        ceilings.start + max(work.flops / rates[work.dtype], work.nbytes / ceilings.bandwidth)
        for work in works
    )


def measured(
    cache: Path | None, fresh: bool = False, device: torch.device = torch.device("cpu")
) -> Ceilings:
    """Return the ceilings of this machine's `device` (a processor on one thread), from `cache` if known.

    Measuring takes a third of a second; `fresh` does it anyway.
    """
    machine = describe_machine()
    key = f"{machine['cpu']}, {machine['cores']} cores, torch {torch.__version__}"
    if device.type != "cpu":
        key = f"{device_name(device)}, torch {torch.__version__}"
    found = None if fresh else recall(cache, key)
    if found is None or found.keys() != {f.name for f in fields(Ceilings)}:
        found = asdict(_measure(device))
        remember(cache, key, found)
    return Ceilings(**{name: float(value) for name, value in found.items()})


def _measure(device: torch.device) -> Ceilings:
    threads, small_one = torch.get_num_threads(), device.type == "cpu"
    side, length = (_SIDE, _STREAM) if small_one else (_GPU_SIDE, _GPU_STREAM)
    best = partial(_best, device)
    torch.set_num_threads(1 if small_one else threads)
    try:
        rates = []
        for dtype in (torch.float32, torch.bfloat16):
            a = torch.ones(side, side, dtype=dtype, device=device)
            rates.append(2 * side**3 / best(partial(torch.mm, a, a), 1))
        stream = torch.zeros(length, device=device)
        moved = 2 * stream.nbytes / best(partial(stream.mul_, 1.0), 1)
        small = torch.ones(8, requires_grad=True, device=device)
        start = best(partial(torch.mul, small, 2.0), 200)
    finally:
        torch.set_num_threads(threads)
    return Ceilings(rates[0], rates[1], moved, start)


def _best(device: torch.device, call: Callable[[], object], count: int) -> float:
    """Return seconds of one call. On a processor they are its own: other programs must not decide."""
    own = device.type == "cpu"
    clock, wait = (time.process_time, _nothing) if own else (time.perf_counter, _WAITS[device.type])
    best = float("inf")
    for _ in range(_TRIES):
        wait()
        begun = clock()
        for _ in range(count):
            call()
        wait()
        best = min(best, (clock() - begun) / count)
    return best


def _nothing() -> None:
    return


_WAITS: dict[str, Callable[[], object]] = {
    "cuda": torch.cuda.synchronize,
    "mps": torch.mps.synchronize,
}
