"""Two implementations side by side: the same data, the same weights, the same steps.

*Tethered*: after every update b's weights are set to a's, so each step's error stands alone.
*Free*: both go their own way from equal weights, which shows the drift.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor

from surefoot.data.batch import Batch, Data
from surefoot.engine.learner import Loss
from surefoot.engine.loop import Report
from surefoot.errors import ConfigError, Problem
from surefoot.lab.differ import Difference, locate
from surefoot.lab.side import Side

__all__ = ["Lockstep", "Track", "lockstep", "tolerance_of"]

_WARM = 2  # first steps that are not timed
_FIRST = 4  # steps in which every gradient and update is compared
_FULL = 25  # later, steps between comparisons of every gradient and update, besides loss and norm
_FINE = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 3e-2}


@dataclass
class Track:
    """One learner on both sides. `gradient` and `update` are (step, relative error) of some steps.

    `weights` is the relative distance of the weights at the end.
    """

    loss: list[tuple[float, float]] = field(default_factory=list)
    norm: list[tuple[float, float]] = field(default_factory=list)
    gradient: list[tuple[int, float]] = field(default_factory=list)
    update: list[tuple[int, float]] = field(default_factory=list)
    weights: float = 0.0

    def errors(self) -> list[float]:
        """Return how far the losses are apart at each step, relative to a's."""
        return [_apart(a, b) for a, b in self.loss]


@dataclass
class Lockstep:
    """What came of it. Times are median seconds a step, memory is bytes kept for a step's backward."""

    steps: int
    tethered: bool
    tolerance: float
    labels: tuple[str, str]
    ways: tuple[Mapping[str, str], Mapping[str, str]]
    tracks: dict[str, Track] = field(default_factory=dict)
    first: Difference | None = None
    seconds: tuple[float, float] = (0.0, 0.0)
    memory: tuple[int, int] = (0, 0)

    @property
    def identical(self) -> bool:
        """Whether every loss and gradient norm has the same bits."""
        return all(_same(a, b) for t in self.tracks.values() for a, b in (*t.loss, *t.norm))

    @property
    def slowdown(self) -> float:
        """How much slower b is, as a share; negative where it is faster."""
        return self.seconds[1] / self.seconds[0] - 1

    @property
    def growth(self) -> float:
        """How much more memory b takes, as a share."""
        return self.memory[1] / max(1, self.memory[0]) - 1

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for `--json`."""
        return {
            **asdict(self), "identical": self.identical, "slowdown": self.slowdown,
            "growth": self.growth,
        }  # fmt: skip


def _apart(a: float, b: float) -> float:
    if _same(a, b):
        return 0.0
    return abs(a - b) / max(abs(a), 1e-12) if math.isfinite(a) and math.isfinite(b) else math.inf


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def tolerance_of(a: Side, b: Side) -> float:
    """Return how far two sides may be apart: 1e-4 in fp32, 3e-2 where one is narrower."""
    return max(_FINE[side.pins.precision] for side in (a, b))


class _Shared:
    """The batches of one step, made once for both sides."""

    def __init__(self, data: Data) -> None:
        self.data, self.batch_size = data, data.batch_size
        self.step, self.known = -1, dict[tuple[int, int | None], Batch]()

    def size(self, step: int) -> int:
        return self.data.size(step)

    def batch(self, step: int, start: int = 0, size: int | None = None) -> Batch:
        if step != self.step:
            self.step, self.known = step, {}
        if (start, size) not in self.known:
            self.known[start, size] = self.data.batch(step, start, size)
        return self.known[start, size]


def lockstep(
    a: Side, b: Side, count: int, *, tethered: bool, tolerance: float | None = None,
    watch: Callable[[int], None] = lambda step: None,
) -> Lockstep:  # fmt: skip
    """Take `count` steps on both sides; `watch` is told each.

    Raises ConfigError where data or weights of the two cannot be the same.
    """
    _tie(a, b, _mismatches(a, b))
    seed = a.config.train.seed
    shared = _Shared(
        Data(a.job.source, seed, a.config.train.batch_size, a.config.train.batch_warmup)
    )
    found = Lockstep(
        0, tethered, tolerance_of(a, b) if tolerance is None else tolerance,
        (a.label, b.label), (a.pins.ops, b.pins.ops),
    )  # fmt: skip
    found.tracks = {name: Track() for name in a.job.learners}
    judges = [_Judge(name, a, b, shared, found) for name in a.job.learners]
    for side in (a, b):
        side.begin(shared, seed)
    other_way = (a.pins.threads, a.pins.matmul) != (b.pins.threads, b.pins.matmul)
    for number in range(count):
        for judge in judges:
            judge.full = number < _FIRST or number % _FULL == 0 or number == count - 1
        if other_way:
            a.enter()
        mine = a.step(number == 0)
        for judge in judges if mine else ():
            judge.told = mine
        if other_way:
            b.enter()
        other = b.step(number == 0)
        if mine is None or other is None:
            break
        found.steps = number + 1
        for judge in judges:
            judge.after(mine, other)
        if tethered:
            _tie(a, b)
        watch(number + 1)
    for judge in judges:
        judge.end()
    found.seconds = (_typical(a.seconds), _typical(b.seconds))
    found.memory = (a.memory, b.memory)
    return found


def _typical(seconds: Sequence[float]) -> float:
    return median(seconds[_WARM:] or seconds)


def _mismatches(a: Side, b: Side) -> list[Problem]:
    wrong = []
    if a.job.source.fingerprint != b.job.source.fingerprint:
        wrong.append(Problem("they do not learn from the same data", "parity", "the same data.*"))
    if a.config.train.batch_size != b.config.train.batch_size:
        sizes = f"{a.config.train.batch_size} and {b.config.train.batch_size}"
        wrong.append(Problem(f"batches of {sizes} examples", "parity", "one train.batch_size"))
    if a.job.learners.keys() != b.job.learners.keys():
        names = f"{', '.join(a.job.learners)} and {', '.join(b.job.learners)}"
        wrong.append(Problem(f"learners {names}", "parity", "the same learners"))
        return wrong
    for name, one in a.job.learners.items():
        mine = {n: tuple(p.shape) for n, p in zip(one.names, one.parameters)}
        two = b.job.learners[name]
        other = {n: tuple(p.shape) for n, p in zip(two.names, two.parameters)}
        odd = [n for n in {**mine, **other} if mine.get(n) != other.get(n)]
        if odd:
            what = f"weights differ in shape: {len(odd)}, first {odd[0]}"
            wrong.append(Problem(what, "parity", "the same model.*"))
    return wrong


@torch.no_grad()
def _tie(a: Side, b: Side, wrong: Sequence[Problem] = ()) -> None:
    if wrong:
        raise ConfigError(wrong)
    for name, learner in a.job.learners.items():
        torch._foreach_copy_(list(b.job.learners[name].parameters), list(learner.parameters))


class _Judge:
    """Compares one learner of both sides, and finds the layer at the first step that differs.

    It listens to both: what a's step gave is known when b is about to be updated, and b still has
    the weights that both computed with.
    """

    def __init__(self, name: str, a: Side, b: Side, data: _Shared, out: Lockstep) -> None:
        self.name, self.a, self.b, self.data, self.out = name, a, b, data, out
        self.one, self.two = a.job.learners[name], b.job.learners[name]
        self.track = out.tracks[name]
        self.full = True
        self.told: Report | None = None
        self.grads: list[Tensor | None] = []
        self.loss = self.norm = math.nan
        self.equal = False
        self.before: list[Tensor] = []
        self._listen()

    def _listen(self) -> None:
        mine, other = self.one.update, self.two.update
        accumulate, measure = self.two.accumulate, self.two.gradient_norm

        def update_a() -> float:
            self.grads = [p.grad for p in self.one.parameters] if self.full else []
            return mine()

        def accumulate_b(batch: Batch, total: float) -> Loss:
            found = accumulate(batch, total)
            self.loss += float(found.sum.detach()) / total
            return found

        def measure_b() -> float:
            self.norm = measure()
            return self.norm

        def update_b() -> float:
            self._gradients()
            return other()

        self.one.update = update_a  # type: ignore[method-assign]
        self.two.accumulate = accumulate_b  # type: ignore[method-assign]
        self.two.gradient_norm = measure_b  # type: ignore[method-assign, assignment]
        self.two.update = update_b  # type: ignore[method-assign]
        self.loss = 0.0

    def end(self) -> None:
        """Listen no more; measure how far the weights are apart."""
        for learner in (self.one, self.two):
            for name in ("update", "accumulate", "gradient_norm"):
                learner.__dict__.pop(name, None)
        distance, size = self._distance(self.two.parameters, self.one.parameters)
        self.track.weights = distance / max(size, 1e-30)

    @staticmethod
    def _distance(b: Sequence[Tensor], a: Sequence[Tensor]) -> tuple[float, float]:
        """Return the 2-norms of b - a and of a, over all tensors."""
        with torch.no_grad():
            apart = torch._foreach_norm(torch._foreach_sub(list(b), list(a)))
            sizes = torch._foreach_norm(list(a))
            return float(torch.stack(apart).norm()), float(torch.stack(sizes).norm())

    def _gradients(self) -> None:
        """Before b's update: compare what both computed with the same weights."""
        assert self.told is not None
        reading = self.told.readings[self.name]
        error = max(_apart(reading.loss, self.loss), _apart(reading.grad_norm, self.norm))
        if self.full and self.grads:
            pairs = [
                (p.grad, g)
                for p, g in zip(self.two.parameters, self.grads, strict=True)
                if p.grad is not None and g is not None
            ]
            apart, size = self._distance([b for b, _ in pairs], [g for _, g in pairs])
            self.equal = apart == 0.0
            self.track.gradient.append((self.told.step, apart / max(size, 1e-30)))
            error = max(error, apart / max(size, 1e-30))
            self.before = [p.detach().clone() for p in self.two.parameters]
        self._look(self.told, error)
        self.grads = []

    def _look(self, report: Report, error: float) -> None:
        """At the first step beyond the tolerance, find the first layer that differs."""
        if self.out.first is not None or error <= self.out.tolerance:
            return
        step = report.step - 1
        all_of_it = self.data.size(step)
        batch = self.data.batch(step, 0, min(self.two.micro or all_of_it, all_of_it))
        self.out.first = locate(
            (self.a, self.b), self.name, batch, step, self.a.config.train.seed, self.out.tolerance,
            error,
        )  # fmt: skip

    def after(self, mine: Report, other: Report) -> None:
        """After both steps: keep what they gave, and judge an update of equal gradients."""
        if self.name not in mine.readings or self.name not in other.readings:
            return
        a, b = mine.readings[self.name], other.readings[self.name]
        self.track.loss.append((a.loss, b.loss))
        self.track.norm.append((a.grad_norm, b.grad_norm))
        self.loss = 0.0
        if not b.applied or not a.applied:
            self._look(mine, max(_apart(a.loss, b.loss), _apart(a.grad_norm, b.grad_norm)))
        elif self.before and self.out.tethered:
            self._updates(mine.step)
        self.before = []

    @torch.no_grad()
    def _updates(self, step: int) -> None:
        moved = torch._foreach_sub([p.detach() for p in self.one.parameters], self.before)
        apart = torch._foreach_sub([p.detach() for p in self.two.parameters], self.before)
        torch._foreach_sub_(apart, moved)
        sizes, errors = (torch.stack(torch._foreach_norm(found)) for found in (moved, apart))
        error = float(errors.norm() / sizes.norm().clamp(min=1e-30))
        self.track.update.append((step, error))
        if self.equal and error > self.out.tolerance and self.out.first is None:
            place = int((errors / sizes.clamp(min=1e-30)).argmax())
            off = float(errors[place] / sizes[place].clamp(min=1e-30))
            self.out.first = Difference(step, self.name, "update", self.one.names[place], off)
