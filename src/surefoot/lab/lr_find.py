"""Which learning rate? Train a few steps with an ever larger one, look where the loss falls, undo it all.

After Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), section 3.3. The weights
afterwards are those of before, and a checksum over their bits says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from surefoot.config.schema import RunConfig
from surefoot.data.batch import Data
from surefoot.engine.auto import fit
from surefoot.engine.checksum import weights_sum
from surefoot.engine.job import Job
from surefoot.engine.loop import steps
from surefoot.engine.plan import prepare
from surefoot.engine.state import TrainState
from surefoot.engine.world import World
from surefoot.errors import CheckFailed, ConfigError, SurefootError

__all__ = ["RateTest", "smoothed", "suggest", "try_rates"]

_AROUND = 4  # losses on each side of one that its mean is taken over
_LOST = 3.0  # a mean loss so many times the first one ends the test
_LEAST = 12  # losses that it takes to see anything
_BEGINNING = 0.1  # share of the losses at the beginning where a slope is noise


@dataclass(frozen=True)
class RateTest:
    """Losses by learning rate (on the scale of `optim.lr`), their moving mean, and four suggestions.

    `muon` is how many times `optim.lr` the other peak is, `optim.muon_lr`; None where there is none.
    """

    learner: str
    rates: list[float]
    losses: list[float]
    smooth: list[float]
    suggestions: dict[str, float]
    muon: float | None
    checksum: int


def try_rates(
    config: RunConfig, job: Job, world: World, *, low: float, high: float, count: int,
    learner: str | None = None,
) -> RateTest:  # fmt: skip
    """Train one learner of `job` for `count` steps with rates from `low` to `high`, then undo it.

    Rates grow by the same factor each step; other groups, such as Muon's, grow in proportion. Raises
    ConfigError where there is no such learner, SurefootError where the loss falls nowhere.
    """
    name = learner or next(iter(job.learners))
    if name not in job.learners:
        raise ConfigError(f"no learner {name}", fix=f"one of {', '.join(job.learners)}")
    prepare(job, config, {})
    pins, _ = fit.choose(config, job, world, count, None)
    mine = job.learners[name]
    peak = float(mine.groups[-1]["peak"])
    rates = np.geomspace(low, high, count)
    mine.schedule = lambda step: float(rates[min(step, count - 1)]) / peak
    mine.limit, mine.micro = count, pins.micro_batch_size
    before = [p.detach().clone() for p in mine.parameters]
    bits = weights_sum(mine.model)
    data = Data(job.source, config.train.seed, config.train.batch_size)
    losses: list[float] = []
    for report in steps(TrainState({name: mine}), data, config.train.seed, world):
        loss = report.readings[name].loss
        if not math.isfinite(loss):
            break
        losses.append(loss)
        if len(losses) > _LEAST and np.mean(losses[-5:]) > _LOST * np.mean(losses[:5]):
            break
    with torch.no_grad():
        for parameter, value in zip(mine.parameters, before):
            parameter.copy_(value)
    if weights_sum(mine.model) != bits:
        raise CheckFailed("the weights are not those of before", where=f"learner {name}")
    used, smooth = rates[: len(losses)].tolist(), smoothed(losses)
    first = float(mine.groups[0]["peak"])
    muon = first / peak if len(mine.optimisers) > 1 else None
    return RateTest(name, used, losses, smooth, suggest(used, losses), muon, bits)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Return the mean of each loss and its neighbours: seen from both sides, it does not lag behind."""
    return [
        float(np.mean(losses[max(0, i - _AROUND) : i + _AROUND + 1])) for i in range(len(losses))
    ]


def suggest(rates: Sequence[float], losses: Sequence[float]) -> dict[str, float]:
    """Return four learning rates that the means of losses by rate speak for.

    `steepest`: where the loss falls fastest by the logarithm of the rate. `valley`: the middle of the
    longest stretch in which it falls. `minimum/10`: a tenth of where it is lowest. `slide`: the
    largest rate before the minimum at which it still falls half as fast as at the steepest.

    Raises SurefootError where there are too few losses, or where none falls by more than they scatter.
    """
    smooth = smoothed(losses)
    early = max(1, len(smooth) // 5)  # where rates do not matter yet
    scatter = float(np.std(losses[:early])) if losses else 0.0
    if len(smooth) < _LEAST or smooth[0] - min(smooth) <= max(2 * scatter, 0.01 * abs(smooth[0])):
        what = f"the loss falls nowhere between {rates[0]:.2g} and {rates[-1]:.2g}" if rates else (
            "the first loss is not finite"
        )  # fmt: skip
        raise SurefootError(what, fix="other --from and --to, or more --trial-steps")
    skipped = int(_BEGINNING * len(smooth))
    loss, rates = np.asarray(smooth[skipped:], dtype=np.float64), rates[skipped:]
    lowest = max(int(loss.argmin()), 2)
    slope: NDArray[np.float64] = np.gradient(loss, np.log(np.asarray(rates)))[:lowest]
    steepest = int(slope.argmin())
    first, last = _longest_fall(loss)
    still = np.flatnonzero(slope <= slope[steepest] / 2)
    found = {
        "steepest": rates[steepest],
        "valley": rates[(first + last) // 2],
        "minimum/10": rates[lowest] / 10,
        "slide": rates[int(still[-1])],
    }
    return {name: float(f"{rate:.2g}") for name, rate in found.items()}


def _longest_fall(loss: NDArray[np.float64]) -> tuple[int, int]:
    """Return the first and last place of the longest stretch in which each value is below the one before."""
    best, start = (0, 0), 0
    for place in range(1, len(loss)):
        if loss[place] >= loss[place - 1]:
            start = place
        best = max(best, (start, place), key=lambda span: span[1] - span[0])
    return best
