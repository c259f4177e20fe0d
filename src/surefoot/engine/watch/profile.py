"""Where the time of a step goes: torch's profiler over a few steps, as a table and as a trace.

It watches and changes nothing: the numbers of a profiled run are those of any other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from surefoot.engine.learner import Learner
from surefoot.engine.loop import Report
from surefoot.engine.watch.meter import Meter, Span

__all__ = ["labelled", "operations", "profiled"]

WARMUP, STEPS = 10, 5  # steps that pass before (the first row of the record, too), those profiled
OPERATIONS = 20  # in the table
_PHASES = {"loss": "forward", "gradient_norm": "clip", "update": "optimiser"}


def profiled(
    reports: Iterator[Report],
    learners: Mapping[str, Learner],
    meter: Meter,
    folder: Path,
    tell: Callable[[str], None],
) -> Iterator[Report]:
    """Pass all reports on, and profile some of the first: a table to `tell`, files to `folder`.

    What the consumer does between these steps is part of the profile.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would write to the terminal
    yield from islice(reports, WARMUP)
    spans = {name: Span() for name in ("forward", "forward and backward", "clip", "optimiser")}
    others = {name: getattr(meter, name) for name in ("data", "evaluate", "save", "record")}
    before = {name: span.seconds for name, span in others.items()}
    device = next(iter(learners.values())).device
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if device.type == "cuda" else []
    passed, total = [], Span()
    with ExitStack() as labels:
        for learner in learners.values():
            labels.enter_context(labelled(learner, spans))
        with profile(activities=activities, profile_memory=True, acc_events=True) as found, total:
            for report in islice(reports, STEPS):
                passed.append(report.step)
                yield report
    if passed:
        seconds = {name: span.seconds for name, span in spans.items()}
        seconds["backward"] = seconds.pop("forward and backward") - seconds["forward"]
        seconds |= {name: span.seconds - before[name] for name, span in others.items()}
        _write(found, seconds, total.seconds, passed, folder, tell)
    else:
        tell(f"no profile: the run ended within its first {WARMUP} steps")
    yield from reports


@contextmanager
def labelled(learner: Learner, spans: Mapping[str, Span]) -> Iterator[None]:
    """Name the phases of a step in the trace and add up their seconds."""
    own, on_device = dict(vars(learner)), learner.device.type == "cuda"
    for method, label in {**_PHASES, "accumulate": "forward and backward"}.items():
        function = getattr(learner, method)
        setattr(learner, method, partial(_call, function, label, spans[label], on_device))
    try:
        yield
    finally:
        for method in (*_PHASES, "accumulate"):
            if method in own:
                setattr(learner, method, own[method])
            else:
                delattr(learner, method)


def _call(
    function: Callable[..., Any], label: str, span: Span, on_device: bool, *arguments: Any
) -> Any:
    with record_function(label), span:
        found = function(*arguments)
        if on_device:  # else its work would be counted where it is waited for
            torch.cuda.synchronize()
        return found


def _write(
    found: Any,
    seconds: Mapping[str, float],
    total: float,
    steps: list[int],
    folder: Path,
    tell: Callable[[str], None],
) -> None:
    folder.mkdir(exist_ok=True)
    stem = f"steps-{steps[0]}-{steps[-1]}"
    text = "\n".join(_tables(found, seconds, total, steps))
    (folder / f"{stem}.txt").write_text(text + "\n", encoding="utf-8")
    trace = folder / f"{stem}.json.gz"
    found.export_chrome_trace(str(trace))
    tell(text)
    tell(f"trace  {trace} (open it with Perfetto; memory is in it, too)")


def _tables(
    found: Any, seconds: Mapping[str, float], total: float, steps: list[int]
) -> Iterator[str]:
    count = len(steps)
    yield f"profile of steps {steps[0]} to {steps[-1]}: {1e3 * total / count:.1f} ms a step"
    rest = total - sum(seconds.values())
    parts = sorted(seconds.items(), key=lambda part: -part[1])
    for name, spent in [*((n, s) for n, s in parts if s > 0), ("rest", max(0.0, rest))]:
        yield f"  {name:<24}{1e3 * spent / count:>10.2f} ms{100 * spent / total:>6.1f} %"
    yield f"  {'operation':<38}{'calls':>7}{'ms':>10}{'share':>8}"
    yield from _table(list(operations(found.key_averages(), count)))


def operations(averages: Iterable[Any], count: int) -> Iterator[tuple[str, float, float]]:
    """Yield (name, calls, milliseconds) a step of each operation, those that take most by themselves first.

    On the device, where there is one. `count` steps were profiled.
    """
    labels = {*_PHASES.values(), "forward and backward"}
    rows = [row for row in averages if row.key not in labels]
    device = any(row.self_device_time_total for row in rows)

    def own(row: Any) -> float:
        return float(row.self_device_time_total if device else row.self_cpu_time_total)

    for row in sorted(rows, key=own, reverse=True):
        name = row.key.removeprefix("aten::").removeprefix("autograd::engine::evaluate_function: ")
        yield name, row.count / count, own(row) / 1e3 / count


def _table(found: Sequence[tuple[str, float, float]]) -> Iterator[str]:
    whole = sum(spent for _, _, spent in found) or 1.0
    for name, calls, spent in found[:OPERATIONS]:
        yield f"  {name[:37]:<38}{calls:>7.1f}{spent:>10.3f}{100 * spent / whole:>6.1f} %"
