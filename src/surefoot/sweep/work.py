"""A worker: takes trials until none is left, trains their runs, and says how they ended."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from surefoot import api
from surefoot.config.resolve import Resolved
from surefoot.errors import ConfigError, DeviceLost, RunError, Stopped, SurefootError
from surefoot.sweep.folder import Sweep
from surefoot.sweep.space import text_of
from surefoot.sweep.trials import Claim, Trials
from surefoot.track.folder import RunFolder
from surefoot.track.reading import read_history
from surefoot.track.record import Row, Sink
from surefoot.track.text import clock, number, real

__all__ = ["describe", "leash", "value_of", "work"]

PAUSE = 0.5  # seconds between looks for a trial that somebody left
Tell = Callable[[str], None]


class _PrunedError(Exception):
    """The trial is not worth going on with."""


def work(sweep: Sweep, trials: Trials, tell: Tell, glance: Tell | None = None) -> None:
    """Take trials until all have ended, waiting for those that others hold.

    A trial whose worker died is taken up where its checkpoint is. Raises Stopped on a signal, after
    saving and giving the trial back, and DeviceLost after giving it back. `tell` hears how trials end, `glance` how far the run is.
    """
    while not trials.finished():
        claim = trials.claim()
        if claim is None:
            _pause()
            continue
        try:
            _play(sweep, claim, tell, glance)
        except (Stopped, KeyboardInterrupt, SystemExit):
            claim.give_back()
            fix = f"surefoot sweep resume {sweep.reference}"
            raise Stopped(f"stopped in trial {claim.number + 1}, saved", fix=fix) from None
        except DeviceLost as error:  # here every other trial would fail, too
            claim.give_back()
            error.fix = f"surefoot sweep resume {sweep.reference} goes on; {error.fix}"
            raise


def _pause() -> None:
    time.sleep(PAUSE)


def _play(sweep: Sweep, claim: Claim, tell: Tell, glance: Tell | None) -> None:
    begun, values = time.monotonic(), dict[str, float]()
    title = f"trial {claim.number + 1}/{sweep.plan.count}"
    named = f"{title}  {describe(sweep, claim.point)}"

    def show(text: str) -> None:
        if glance is not None:
            glance(f"{named}  {text}")

    try:
        for seed in sweep.plan.seeds:
            values[str(seed)] = _run(
                sweep, claim, seed, lambda text: tell(f"{title}  {text}"), show
            )
    except (Stopped, DeviceLost, KeyboardInterrupt):
        raise
    except _PrunedError as pruned:
        claim.end("pruned", values, str(pruned))
        tell(f"{named}  pruned: {pruned}")
    except Exception as error:  # whatever it is, the others may be better
        what = error.problems[0].what if isinstance(error, ConfigError) else str(error)
        what = what if isinstance(error, SurefootError) else f"{type(error).__name__}: {what}"
        why = what.partition("\n")[0]
        claim.end("failed", values, why)
        tell(f"{named}  failed: {why}")
    else:
        claim.end("done", values)
        mean = math.fsum(values.values()) / len(values)
        seeds = f" of {len(values)} seeds" if len(values) > 1 else ""
        tell(
            f"{named}  {sweep.plan.metric} {number(mean)}{seeds}  {clock(time.monotonic() - begun)}"
        )


def describe(sweep: Sweep, point: Mapping[str, Any]) -> str:
    """Return a point in words, by the shortest names of its settings."""
    return "  ".join(f"{d.name} {text_of(point.get(d.path))}" for d in sweep.plan.space)


def _run(sweep: Sweep, claim: Claim, seed: int, tell: Tell, show: Tell) -> float:
    """Train a run of a trial, or go on with it; return the judged value."""
    plan, name = sweep.plan, sweep.run_name(claim.number, seed)
    resolved = plan.settle(claim.point, seed, sweep.path, f"sweep {sweep.name}")
    path = sweep.runs / name
    while path.exists() and RunFolder.open(path).holder() is not None:
        _pause()  # whoever lost the trial, by a long silence, still trains; let it end
    status = RunFolder.open(path).status if path.exists() else ""
    watch = _Watch(sweep, claim if seed == plan.seeds[0] else None, show)
    if status and status != "done":
        tell(f"goes on with {name}")
    if status != "done":
        _train(sweep, resolved, name, claim.number, watch)
    return value_of(RunFolder.open(path), resolved, plan.learner, plan.metric)


def _train(sweep: Sweep, resolved: Resolved, name: str, number: int, watch: _Watch) -> None:
    try:
        api.start(
            sweep.plan.found, resolved, sweep.runs, name, False, None,
            facts={"sweep": sweep.name, "trial": number + 1}, sinks=[watch.open],
        )  # fmt: skip
    except Stopped:
        if not watch.why:
            raise
        raise _PrunedError(watch.why) from None


class _Watch(Sink):
    """Tells a sweep what a run's evaluations give, and stops the run where it is not worth it."""

    name = "the sweep"

    def __init__(self, sweep: Sweep, claim: Claim | None, show: Tell) -> None:
        self.plan, self.claim, self.show, self.why = sweep.plan, claim, show, ""

    def open(self, run: Path, segment: int, first_step: int) -> Sink:
        """Return the sink of a run."""
        return self

    def row(self, row: Row) -> None:
        """Report an evaluation. A stop is the same as that of a signal: the run saves and ends."""
        if row["kind"] == "train" and row["learner"] == self.plan.learner:
            total = f"/{self.plan.length}" if self.plan.length else ""
            self.show(f"step {row['step']}{total}, loss {number(real(row['loss']) or 0.0)}")
        if row["kind"] != "eval" or row["learner"] != self.plan.learner or self.claim is None:
            return
        value = real(row.get(self.plan.metric))
        if value is None or not math.isfinite(value):
            return
        if self.claim.report(row["step"], value) and not self.why:
            self.why = f"{self.plan.metric} {number(value)} at step {row['step']}"
            signal.raise_signal(signal.SIGTERM)


def value_of(run: RunFolder, resolved: Resolved, learner: str, metric: str) -> float:
    """Return a metric of the weights that a run ended with. Raises RunError where it has none.

    That is the last evaluation, or where early stopping restored the best weights, theirs.
    """
    rows = read_history(run.path / "metrics.jsonl").eval.get(learner, [])
    policy, best = resolved.config.train, (run.meta.get("best") or {}).get(learner)
    if best and policy.patience and policy.restore_best:
        rows = [row for row in rows if row["step"] <= best[0]]
    told = [row for row in rows if metric in row]
    if not told:
        names = sorted({key for row in rows for key in row if real(row[key]) is not None})
        raise RunError(f"{run.name} reports no {metric}", fix=f"it has {', '.join(names)}")
    value = real(told[-1][metric])
    if value is None or not math.isfinite(value):
        raise RunError(f"{metric} is {told[-1][metric]} at step {told[-1]['step']}")
    return value


def leash() -> None:
    """End this process as a signal would when whoever holds the other end of its input is gone."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
