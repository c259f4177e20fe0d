"""Hold every way of an operation against its reference, and measure how fast it is here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surefoot.ops.way import Case, Op, Way, differentiated

__all__ = ["DTYPES", "Finding", "Speed", "check", "measure", "race", "seconds", "slow", "trial"]

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_EXACT = 1e-5  # of a way's tolerance that an error in fp64 may have


@dataclass(frozen=True)
class Finding:
    """The worst error of a way over all shapes, relative to the largest number of a result.

    `limit` is what was allowed; `where` names the shapes and the result that were worst.
    """

    op: str
    way: str
    dtype: str
    error: float
    limit: float
    where: str

    @property
    def fine(self) -> bool:
        return self.error <= self.limit  # NaN is not


@dataclass(frozen=True)
class Speed:
    """Seconds of one call, forward and backward, and what it takes of the reference's (1 = equal)."""

    seconds: float
    ratio: float


def check(op: Op, way: str, device: torch.device, shapes: int = 8, seed: int = 0) -> list[Finding]:
    """Compare `way` with the reference in fp64 on random shapes, values and gradients.

    In fp64 the error must stay far below the way's tolerance, in fp32 within it. In bf16 and fp16
    it may be twice that of the reference in the same type: the type is to blame, not the way.
    """
    found = []
    for dtype in op.ways[way].dtypes:
        if device.type == "mps" and dtype == torch.float64:
            continue
        worst = (-1.0, 0.0, "")
        for number in range(shapes):
            case = _draw(op, seed + number, large=False)
            error, limit, where = _error(op, op.ways[way], case, dtype, device)
            if not error / max(limit, 1e-300) <= worst[0] / max(worst[1], 1e-300):
                worst = (error, limit, where)
        found.append(Finding(op.name, way, _NAMES[dtype], *worst))
    return found


def _error(
    op: Op, way: Way, case: Case, dtype: torch.dtype, device: torch.device
) -> tuple[float, float, str]:
    reference = op.ways["reference"].call
    exact = op.outcome(reference, case)
    got = op.outcome(way.call, _cast(case, dtype, device))
    if len(got) != len(exact):
        return float("inf"), way.tolerance, f"{len(got)} results and not {len(exact)}"
    limits = [way.tolerance] * len(exact)
    if dtype == torch.float64:
        limits = [min(way.tolerance, max(way.tolerance * _EXACT, 1e-12))] * len(exact)
    elif dtype != torch.float32:
        same = op.outcome(reference, _cast(case, dtype, device))
        slack = torch.finfo(dtype).eps
        limits = [max(way.tolerance, 2 * _off(s, e) + slack) for s, e in zip(same, exact)]
    # A gradient that is zero in theory, as of the query of a single token, has no scale of its own.
    least = max(1e-30, 0.03 * max(float(e.abs().max()) for e in exact))  # all may be zero
    found = []
    for place, (g, e, limit) in enumerate(zip(got, exact, limits, strict=True)):
        name = f"result {place} of {_shapes(case)}"
        found.append((_off(g, e, least) if g.shape == e.shape else float("inf"), limit, name))
    return max(found, key=lambda f: f[0] / max(f[1], 1e-300) if f[0] == f[0] else float("inf"))


def _off(found: Tensor, exact: Tensor, least: float = 1e-30) -> float:
    """Return the largest error, relative to the largest number of `exact` or to `least`."""
    error = (found.cpu().double() - exact).abs().max() / exact.abs().max().clamp(min=least)
    return float(error)


def _draw(op: Op, seed: int, large: bool) -> Case:
    assert op.draw is not None, f"{op.name} cannot be checked"
    return op.draw(torch.Generator().manual_seed(seed), large)


def _cast(value: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Return arguments of another type on `device`, of the same strides, asking for the same gradients."""
    if isinstance(value, Tensor):
        if not value.is_floating_point() or value.dtype != torch.float64:
            return value.to(device)
        moved = value.detach().to(device, dtype)
        return moved.requires_grad_(value.requires_grad)
    if isinstance(value, list | tuple):
        return type(value)(_cast(inner, dtype, device) for inner in value)
    return dtype if value is torch.float64 else value


def _shapes(value: Any) -> str:
    if isinstance(value, Tensor):
        return "×".join(map(str, value.shape)) or "1"
    if isinstance(value, list | tuple):
        return ", ".join(filter(None, map(_shapes, value)))
    return ""


def measure(
    op: Op, device: torch.device, ways: Sequence[str], dtype: torch.dtype, budget: float = 0.3
) -> Mapping[str, Speed]:
    """Return the speed of each way on arguments of a usual size; `budget` seconds a way.

    Ways take turns, so that another program slows all of them alike.
    """
    case = _cast(_draw(op, 0, large=True), dtype, device)
    calls = {
        name: trial(op, op.ways[name].call, case) for name in ways if dtype in op.ways[name].dtypes
    }
    found = seconds(calls, device, budget)
    base = found["reference"]
    return {name: Speed(taken, taken / base) for name, taken in found.items()}


def race(
    ops: Iterable[Op], device: torch.device, dtype: str = "fp32", patient: bool = False
) -> Iterator[tuple[Op, Mapping[str, Speed]]]:
    """Yield each operation with the speed of every way that runs on `device` in `dtype`.

    Ways that a compiler has to build first are left out unless `patient`.
    """
    for op in ops:
        names = [n for n in op.available(device) if patient or not op.ways[n].slow_start]
        yield op, measure(op, device, names, DTYPES[dtype])


def slow(op: Op, speeds: Mapping[str, Speed], limit: float = 0.05) -> str | None:
    """Return in words that the standard way takes more than (1 + limit) of its reference, or None."""
    standard = speeds.get(op.standard)
    if standard is None or standard.ratio <= 1 + limit:
        return None
    return f"{op.name} {op.standard} takes {standard.ratio:.2f} of its reference"


def trial(op: Op, call: Callable[..., Any], args: Case) -> Callable[[], None]:
    """Return a function that makes the call once, forward and backward where there is a gradient."""

    def once() -> None:
        if op.outcome is not differentiated:
            op.outcome(call, args)
            return
        call(*args).square().sum().backward()
        for arg in args:
            if isinstance(arg, Tensor):
                arg.grad = None

    return once


def seconds(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    budget: float = 0.01,
    rounds: int = 3,
) -> dict[str, float]:
    """Return seconds of one call each, the best of some rounds in turn, after one unmeasured.

    On a processor it is CPU time, for other programs must not decide.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    repeats, best = dict.fromkeys(calls, 1), dict.fromkeys(calls, float("inf"))
    for name, call in calls.items():
        call()  # libraries make their kernels
        spent = _spent(call, 1, clock, device)
        repeats[name] = max(1, min(1000, int(budget / rounds / max(spent, 1e-7))))
    for _ in range(rounds):
        for name, call in calls.items():
            spent = _spent(call, repeats[name], clock, device) / repeats[name]
            best[name] = min(best[name], spent)
    return best


def _spent(
    call: Callable[[], object], times: int, clock: Callable[[], float], device: torch.device
) -> float:
    _wait(device)
    begun = clock()
    for _ in range(times):
        call()
    _wait(device)
    return clock() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
