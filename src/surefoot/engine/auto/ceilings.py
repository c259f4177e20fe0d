"""How fast a machine can be at most.

Three ceilings are enough for an estimate: how many floating-point operations a second its matrix
products reach, how many bytes a second it moves, and what it costs to start an operation. Here
they are measured, once for each machine; of cards they are the makers' figures with a usual share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from surefoot.engine.auto.known import device_name, recall, remember
from surefoot.track.machine import describe_machine

__all__ = ["Ceilings", "best_of", "measured", "of_card", "products"]

_SIDE, _STREAM = 512, 2**24  # numbers a side of the product; in a tensor that is streamed
_GPU_SIDE, _GPU_STREAM = 4096, 2**26
_USUAL = 2**19  # numbers in a usual tensor
_TRIES = 7
_MATRIX_SHARE, _BANDWIDTH_SHARE = 0.45, 0.75  # of the makers' figures, in small models
_LAUNCH = 8e-6  # seconds between operations that Python starts on a GPU, one after the other


@dataclass(frozen=True)
class Ceilings:
    """How fast a device is at most.

    FLOP/s of matrix products in fp32 and in a half type; bytes/s of a stream through memory, of the
    operations between products on tensors of a usual size (`usual`), and where a large result takes
    new memory from the system (`fresh`); seconds to start an operation of a model and of its
    gradient. Where `ahead`, operations are started while others still work.
    """

    fp32: float
    half: float
    bandwidth: float
    usual: float
    fresh: float
    start: float
    ahead: bool = False


def of_card(fp32: float, half: float | None, bandwidth: float) -> Ceilings:
    """Return what is usually reached of a maker's figures (TFLOP/s and GB/s)."""
    share, moved = _MATRIX_SHARE * 1e12, bandwidth * 1e9 * _BANDWIDTH_SHARE
    return Ceilings(fp32 * share, (half or fp32) * share, moved, moved, moved, _LAUNCH, ahead=True)


def measured(
    cache: Path | None, fresh: bool = False, device: torch.device = torch.device("cpu")
) -> Ceilings:
    """Return the ceilings of this machine's `device` (a processor on one thread), from `cache` if known.

    Measuring takes a second; `fresh` does it anyway.
    """
    key = _name(device)
    found: dict[str, Any] | None = None if fresh else recall(cache, key)
    if found is None or found.keys() != {f.name for f in fields(Ceilings)}:
        found = asdict(_measure(device))
        remember(cache, key, found)
    return Ceilings(**found)


def products(cache: Path | None, device: torch.device) -> tuple[float, float]:
    """Return the FLOP/s of matrix products in fp32 and in a half type, from `cache` if known.

    Measuring takes a twentieth of a second.
    """
    full, key = recall(cache, _name(device)), f"products of {_name(device)}"
    found = full if full is not None and {"fp32", "half"} <= full.keys() else recall(cache, key)
    if found is None:
        found = dict(zip(("fp32", "half"), _products(device)))
        remember(cache, key, found)
    return float(found["fp32"]), float(found["half"])


def _name(device: torch.device) -> str:
    machine = describe_machine()
    name = f"{machine['cpu']}, {machine['cores']} cores"
    return f"{name if device.type == 'cpu' else device_name(device)}, torch {torch.__version__}"


def _products(device: torch.device) -> list[float]:
    side = _SIDE if device.type == "cpu" else _GPU_SIDE
    with _one_thread(device):
        rates = []
        for dtype in (torch.float32, torch.bfloat16):
            a = torch.ones(side, side, dtype=dtype, device=device)
            rates.append(2 * side**3 / best_of(device, partial(torch.mm, a, a), 1))
    return rates


def _measure(device: torch.device) -> Ceilings:
    from surefoot.engine.auto.pace import operations_and_seconds

    alone = device.type == "cpu"
    fp32, half = _products(device)
    with _one_thread(device):
        best = partial(best_of, device)
        stream = torch.zeros(_STREAM if alone else _GPU_STREAM, device=device)
        moved = 2 * stream.nbytes / best(partial(stream.mul_, 1.0), 1)
        fresh = 2 * stream.nbytes / best(partial(torch.mul, stream, 1.0), 1)
        usual = (stream[:_USUAL] if alone else stream).unflatten(0, (-1, 256))
        mixed = (torch.nn.functional.silu, partial(torch.softmax, dim=1), partial(torch.mul, usual))
        taken = sum(best(partial(each, usual), 2) for each in mixed)
        usually = 7 * usual.nbytes / taken  # read and written by all three, and one reads two
        count, seconds_ = operations_and_seconds(device)
    return Ceilings(fp32, half, moved, usually, fresh, seconds_ / count, not alone)


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if device.type == "cpu" else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def best_of(device: torch.device, call: Callable[[], object], count: int) -> float:
    """Return the seconds of one call. On a processor, processor time: other programs must not count."""
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
