"""What watching costs: a run with the monitor beside the same run without it, and the pauses of Python.

    python benchmarks/monitor.py [--seconds 4] [--rounds 6] [--device cpu]

Stretches of the laptop preset's steps with and without the monitor take turns; each has a row of the
record every ten steps. Their ratio is as noisy as steps are, so what watching itself takes is timed,
too: a reading a second, and a row. The second table is what Python's garbage collector takes within
steps, as it is and with all that was there before frozen, as every run has it. Writes
benchmarks/results/monitor.md.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from machine import goal, heading, write
from record import laptop

from surefoot.engine.watch.meter import Meter
from surefoot.engine.watch.monitor import EVERY, Monitor
from surefoot.engine.watch.pauses import Pauses
from surefoot.engine.watch.sensors import sensors

_ROWS, _MOST = 10, 0.005  # steps between rows; share of the time that watching may take
_READINGS = 200


def watcher(device: torch.device) -> Monitor:
    """Return a monitor as a run has it, that says nothing."""
    return Monitor(sensors(device), lambda _: None, flops=1e9, ceiling=1e11, memory=8e9)


def stretch(going: Iterator[Any], device: torch.device, seconds: float, watched: bool) -> Any:
    """Train so long; return the seconds of a step on the wall, and of all threads of the process."""
    monitor = watcher(device) if watched else None
    meter, count = Meter(), 0
    with monitor or nullcontext():
        begun, own = time.perf_counter(), time.process_time()
        while (spent := time.perf_counter() - begun) < seconds:
            report = next(going)
            count += 1
            meter.count(report.weight, {})
            if count % _ROWS == 0:
                row = meter.system(device)
                if monitor is not None:
                    monitor.row(row)
        return spent / count, (time.process_time() - own) / count


def watching(device: torch.device, seconds: float, rounds: int) -> list[str]:
    """Return the lines about the monitor."""
    going = laptop()
    stretch(going, device, 1.0, True)  # imports
    sides: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for round_ in range(rounds):
        for watched in (False, True) if round_ % 2 else (True, False):
            sides[watched].append(stretch(going, device, seconds, watched))
    lines = ["| | without, ms a step | with | ratio, median and range of the rounds |"]
    lines.append("|---|---:|---:|---|")
    for place, name in enumerate(("on the wall", "of the processor")):
        alone, beside = ([pair[place] for pair in sides[key]] for key in (False, True))
        ratios = sorted(b / a for a, b in zip(alone, beside, strict=True))
        told = f"{statistics.median(ratios):.4f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        times = [f"{1e3 * statistics.median(side):.2f}" for side in (alone, beside)]
        lines.append(f"| {name} | {times[0]} | {times[1]} | {told} |")
    read, row = itself(device, time.process_time if device.type == "cpu" else time.perf_counter)
    step = statistics.median(pair[0] for pair in sides[False])
    share = read / EVERY + row / (_ROWS * step)
    return [
        *lines, "",
        f"A reading takes {1e6 * read:.0f} µs, every {EVERY:g} s; a row {1e6 * row:.0f} µs, every "
        f"{_ROWS} steps: {share:.3%} of the time.", "",
        goal("share of the time that watching takes", 100 * share, 100 * _MOST, False, "%"), "",
    ]  # fmt: skip


def itself(device: torch.device, clock: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds of a reading, and of the monitor's part of a row."""
    monitor = watcher(device)
    begun = clock()
    for _ in range(_READINGS):
        monitor.read()
    read = (clock() - begun) / _READINGS
    begun = clock()
    for _ in range(_READINGS):
        monitor._count = 1  # as if there had been a reading
        monitor.row({"steps": 10, "compute_s": 0.3, "data_s": 0.01})
    return read, (clock() - begun) / _READINGS


class Beside:
    """Notes what collections take, without any care."""

    def __init__(self) -> None:
        self.seconds = self.longest = self.begun = 0.0

    def note(self, phase: str, _: Any) -> None:
        """Be called by the collector."""
        if phase == "start":
            self.begun = time.perf_counter()
            return
        taken = time.perf_counter() - self.begun
        self.seconds, self.longest = self.seconds + taken, max(self.longest, taken)


def collecting(steps: int = 300) -> list[str]:
    """Return the lines about the garbage collector."""
    going, found = laptop(), {}
    for _ in range(20):
        next(going)

    def train() -> float:
        begun = time.perf_counter()
        for _ in range(steps):
            next(going)
        return time.perf_counter() - begun

    plain = Beside()
    gc.callbacks.append(plain.note)
    taken = train()
    found["as it is"] = (plain.seconds, plain.longest, taken)
    gc.collect()
    found["a whole collection then"] = (0.0, plain.longest, 1.0)
    gc.callbacks.remove(plain.note)
    with Pauses() as pauses:
        taken = train()
        found["frozen"] = (pauses.seconds, pauses.longest, taken)
        gc.collect()
        found["a whole collection then, frozen"] = (0.0, pauses.longest, 1.0)
    lines = ["| garbage collector | of the time | longest pause |", "|---|---:|---:|"]
    for name, (seconds, longest, whole) in found.items():
        share = f"{seconds / whole:.3%}" if seconds else "-"
        lines.append(f"| {name} | {share} | {1e3 * longest:.2f} ms |")
    return [*lines, ""]


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each stretch")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--device", default="cpu", help="whose sensors are read")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    page = heading("What watching costs", "benchmarks/monitor.py", __doc__)
    page += watching(torch.device(asked.device), asked.seconds, asked.rounds)
    write("monitor", [*page, *collecting()])


if __name__ == "__main__":
    main()
