"""Say beforehand what a run will be: its schedule, its size, its time; and how it ended."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from surefoot.config.learners import alone, own
from surefoot.config.schema import RunConfig
from surefoot.engine.auto import tune
from surefoot.engine.auto.fit import Pins, Plan
from surefoot.engine.job import Job
from surefoot.engine.learner import Learner
from surefoot.engine.state import TrainState
from surefoot.schedule import Constant, Cosine, OneCycle, Schedule, WarmupStableDecay
from surefoot.track.folder import RunFolder, reference
from surefoot.track.text import bytes_text, number, percent

__all__ = ["compared", "describe", "farewell", "planned_rates", "prepare", "schedule_for", "work"]

_ENOUGH = 20  # steps after which a plan can be compared
_SHARES = {"top1": "top-1", "top5": "top-5", "exact": "exact"}  # metrics told at the end


def schedule_for(config: RunConfig, horizon: int | None) -> Schedule:
    """Return the schedule of `config`, planned for `horizon` steps."""
    plan = config.schedule
    if plan.kind == "constant" or horizon is None:
        return Constant(plan.warmup_steps)
    end, floor = plan.decay_steps or horizon, plan.min_lr / config.optim.lr
    if plan.kind == "cosine":
        return Cosine(plan.warmup_steps, end, floor)
    if plan.kind == "wsd":
        return WarmupStableDecay(plan.warmup_steps, round(plan.decay_fraction * end), end, floor)
    return OneCycle(end)


def planned_rates(learner: Learner, points: int = 64) -> list[tuple[int, float]]:
    """Return (step, learning rate) as planned, evenly from the first step to the last one.

    Of a learner without a last step, the first thousand.
    """
    peak, last = float(learner.groups[-1]["peak"]), learner.limit or 1000
    places = sorted({1 + round(i * (last - 1) / (points - 1)) for i in range(points)})
    return [(step, float(f"{peak * learner.schedule(step - 1):.5g}")) for step in places]


def work(job: Job, batch_size: int) -> dict[str, int]:
    """Return floating-point operations a step of each learner whose model counts them."""
    counted = {name: _work(learner.model) for name, learner in job.learners.items()}
    return {name: count * batch_size for name, count in counted.items() if count is not None}


def _work(model: Any) -> int | None:
    """Return the operations of one example, forward and backward."""
    if hasattr(model, "flops"):
        return int(model.flops())
    if hasattr(model, "flops_per_token"):
        return int(model.flops_per_token() * model.config.context)
    return None


def prepare(
    job: Job, config: RunConfig, horizons: Mapping[str, int | None]
) -> dict[str, int | None]:
    """Give each learner its schedule and its end; return for how many steps each is planned.

    `horizons` are those that are known from before; other learners plan now.
    """
    found: dict[str, int | None] = {}
    for name, learner in job.learners.items():
        mine = alone(config, name)
        limit = mine.limit(len(job.source))
        planned = mine.schedule.horizon or mine.schedule.decay_steps or limit
        if "train.max_steps" in own(config, name) and mine.schedule == config.schedule:
            planned = mine.schedule.decay_steps or limit  # its own end, not that of the others
        found[name] = horizons.get(name, planned)
        learner.schedule = schedule_for(mine, found[name])
        learner.clip = mine.optim.clip
        learner.spike_factor = mine.train.spike_factor
        learner.limit = limit if learner.limit is None else learner.limit
        learner.average_with(mine.train.ema)
    return found


def describe(job: Job, pins: Pins, plan: Plan, steps: int | None) -> Iterator[str]:
    """Yield what a person wants to know before it starts."""
    yield from job.notes
    for name, learner in job.learners.items():
        count = sum(p.numel() for p in learner.parameters)
        label = "model" if len(job.learners) == 1 else name
        size = f"{count / 1e6:.2f} M" if count >= 10_000 else f"{count:,}"
        yield f"{label}  {size} parameters"
    time = "until stopped" if plan.seconds is None else _time(plan.seconds)
    yield (
        f"plan   {bytes_text(plan.memory)} of memory, {time}, {bytes_text(plan.disk)} of disk, "
        f"{'no last' if steps is None else steps} steps"
    )
    threads = f", {pins.threads} thread{'s' * (pins.threads > 1)}" if pins.device == "cpu" else ""
    kernels = "".join(f"{text}, " for text in tune.shown(pins.ops))
    yield (
        f"uses   {pins.device}, {pins.precision}{threads}, {kernels}"
        f"compile {'on' if pins.compile else 'off'}"
    )
    for name, why in sorted(pins.why.items()):
        yield f"       {name}: {why}"


def compared(plan: Mapping[str, Any], taken: Mapping[str, float]) -> Iterator[str]:
    """Yield how the plan compares with what a process took, after enough steps to tell."""
    foreseen = plan.get("step_seconds")
    if foreseen and taken["steps"] >= _ENOUGH:
        step, held = taken["step_seconds"], taken["bytes"] / 1e6
        times = f"{_ms(foreseen)} ms a step foreseen, {_ms(step)} ms taken"
        times += " beside other programs" if taken.get("crowded") else ""
        yield f"plan   {times}; the process held {held:.0f} MB, torch itself included"


def _ms(seconds: float) -> str:
    """Write milliseconds with three digits, large numbers of them too.

    >>> _ms(0.00448), _ms(0.0256), _ms(15.57)
    ('4.48', '25.6', '15,600')
    """
    return f"{float(f'{seconds * 1e3:.3g}'):,.10g}"


def farewell(
    state: TrainState,
    scores: Mapping[str, Mapping[str, float]],
    seconds: float,
    folder: RunFolder,
    *,
    unit: str,
    report: bool,
) -> Iterator[str]:
    """Yield how it ended: time, best losses and last accuracies; where it is, what to type next.

    `unit` is that of losses; those in nats are told in bits, too.
    """
    minutes, rest = divmod(round(seconds), 60)
    yield f"done   step {state.step} in " + (f"{minutes} min {rest} s" if minutes else f"{rest} s")
    for name, learner in state.learners.items():
        label = "" if len(state.learners) == 1 else f"{name}: "
        if "best" in learner.memory:
            step, loss = learner.memory["best"]
            bits = f", {_digits(loss / math.log(2))} bits" if unit == "nats" else ""
            told = f"{_digits(loss)} {unit}".rstrip()
            yield f"best   {label}val loss {told}{bits}, at step {step}"
        last = scores.get(name, {})
        shares = [f"{word} {percent(last[key])}" for key, word in _SHARES.items() if key in last]
        if shares:
            yield f"last   {label}{', '.join(shares)}"
    yield f"run    {folder.path}"
    if report:
        yield f"look   {folder.path / 'report.html'}"
    name = reference(folder.path)
    write = f"surefoot sample {name}    " if folder.meta.get("speaks", True) else ""
    yield f"next   {write}surefoot show {name}"


def _digits(value: float) -> str:
    return f"{value:.4f}" if value >= 0.01 else number(value)


def _time(seconds: float) -> str:
    if seconds < 1:
        return "under 1 s"
    if seconds < 90:
        return f"about {seconds:.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"
