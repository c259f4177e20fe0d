"""Replay one step of a run and look inside: activations, gradients, updates, and its examples.

The step is reached from the nearest checkpoint before it, and each step on the way is compared
with the journal. Nothing of the run is changed, so it may be training meanwhile.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surefoot.config.schema import RunConfig
from surefoot.data.batch import Data
from surefoot.engine.job import Job
from surefoot.engine.journal import Event
from surefoot.engine.learner import Learner
from surefoot.engine.loop import Report, steps
from surefoot.engine.named import buffers_kept
from surefoot.engine.random import example_keys, rekey
from surefoot.engine.rebuild import Buildable, rebuild
from surefoot.engine.state import TrainState
from surefoot.engine.store import Store
from surefoot.engine.tape import Tape
from surefoot.engine.world import World
from surefoot.errors import CheckFailed, CheckpointError, RunError
from surefoot.nn.dropout import set_keys
from surefoot.seeds import derive
from surefoot.track.folder import RunFolder

__all__ = ["Inside", "Replay", "Spread", "replay"]


@dataclass(frozen=True)
class Spread:
    """What a tensor holds; mean to `high` are of what is finite. `zeros` is a share."""

    shape: tuple[int, ...]
    mean: float
    std: float
    low: float
    high: float
    zeros: float
    bad: int  # values that are not finite

    @classmethod
    def of(cls, tensor: Tensor) -> Spread:
        """Measure a tensor; of an empty one everything is 0."""
        flat = tensor.detach().flatten().float()
        fine = flat[flat.isfinite()]
        shape, bad = tuple(tensor.shape), flat.numel() - fine.numel()
        if not fine.numel():
            return cls(shape, 0.0, 0.0, 0.0, 0.0, 0.0, bad)
        mean, std, low, high = (
            float(x) for x in (fine.mean(), fine.std(correction=0), fine.min(), fine.max())
        )
        return cls(shape, mean, std, low, high, float((fine == 0).float().mean()), bad)


@dataclass
class Inside:
    """One learner at the step. `weights` has (norm, update / weight) where there was an update."""

    loss: float = math.nan
    grad_norm: float = math.nan
    lr: float = math.nan
    applied: bool = False
    activations: dict[str, Spread] = field(default_factory=dict)
    gradients: dict[str, Spread] = field(default_factory=dict)
    weights: dict[str, tuple[float, float]] = field(default_factory=dict)
    examples: list[tuple[int, float, str]] = field(default_factory=list)  # place, loss, text


@dataclass
class Replay:
    """The step, whence it was reached, how many steps were proven on the way, what was found."""

    step: int
    begun: int
    proven: int = 0
    findings: list[str] = field(default_factory=list)
    learners: dict[str, Inside] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for `--json`."""
        return asdict(self)


def replay(recipe: Buildable, folder: RunFolder, config: RunConfig, step: int) -> Replay:
    """Compute step `step` of a run again and look inside; a compiled run is replayed uncompiled.

    Raises RunError when the run has not got there or cannot be rebuilt.
    """
    reached = int(folder.meta.get("step") or 0)
    job, world, pins, _ = rebuild(recipe, folder, config)
    state = TrainState(job.learners)
    found = Replay(step, 0)
    if pins.compile:
        found.findings.append("the run is compiled and this replay is not: last bits may differ")
    with tempfile.TemporaryDirectory() as aside:
        tape = _go_back(folder, state, step, Path(aside), found)
        reached = max(reached, state.step + tape.ahead)
        if not 1 <= step <= reached:
            tape.close()
            raise RunError(
                f"no step {step} to look into", where=str(folder.path), fix=f"1 to {reached}"
            )
        try:
            _Player(job, world, config, state, tape, found).play()
        finally:
            tape.close()
    return found


def _go_back(folder: RunFolder, state: TrainState, step: int, aside: Path, found: Replay) -> Tape:
    """Restore the nearest checkpoint before `step`; return a copy of the journal from there."""
    store, places = Store(folder.path / "checkpoints", folder.meta["id"]), {}
    for checkpoint in sorted(store.checkpoints(), key=lambda c: (c.step, c.sequence), reverse=True):
        if checkpoint.step < step and checkpoint.resumable:
            try:
                state.restore(checkpoint.read())
            except (CheckpointError, OSError) as error:
                found.findings.append(f"{checkpoint.path.name} cannot be used: {error}")
                continue
            found.begun, places = checkpoint.step, checkpoint.manifest["places"]
            break
    if (folder.path / "journal").exists():
        shutil.copyfile(folder.path / "journal", aside / "journal")
    return Tape(aside / "journal", folder.meta["id"], sorted(state.learners), places)


class _Player:
    """Steps up to the one that is wanted, which is taken under observation."""

    def __init__(
        self, job: Job, world: World, config: RunConfig, state: TrainState, tape: Tape, out: Replay
    ) -> None:
        self.job, self.world, self.state, self.tape, self.out = job, world, state, tape, out
        self.seed = config.train.seed
        self.rolls_back = config.train.nonfinite == "rollback"
        self.data = Data(job.source, self.seed, config.train.batch_size, config.train.batch_warmup)
        self.sound = True  # all that was compared so far was equal

    def play(self) -> None:
        reports = steps(self.state, self.data, self.seed, self.world, self.tape.told)
        while self.state.step < self.out.step - 1:
            self._compare(next(reports))
        self._examples()
        self._observed(reports)
        self.out.proven = self.tape.proven

    def _compare(self, report: Report) -> None:
        if not self.sound:
            return
        try:
            for name, reading in report.readings.items():
                for what in report.happenings:
                    if what.learner == name:
                        self.tape.event(name, report.step, what.event, what.value, what.norm)
                record = self.tape.record(
                    name, report.step, micro=reading.micro, seed=report.seed, loss=reading.loss,
                    norm=reading.grad_norm, state=reading.state,
                    digest=self.data.digest(report.step - 1),
                )  # fmt: skip
                self.tape.step(name, record)
        except CheckFailed as error:
            self.sound = False
            self.out.findings.append(f"not what the journal holds: {error.what}")
        skipped = any(what.event is Event.SKIP for what in report.happenings)
        if skipped and self.rolls_back and report.step < self.out.step:
            raise RunError(
                f"step {report.step} was undone by a rollback, so what follows it is another branch",
                fix=f"a step up to {report.step}",
            )

    def _observed(self, reports: Iterator[Report]) -> None:
        """Take the step with torch's anomaly detection, which names where a NaN arises."""
        due = {name: self.state.learners[name] for name in self.state.due()}
        inside = {name: self.out.learners.setdefault(name, Inside()) for name in due}
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                with torch.autograd.detect_anomaly(check_nan=True), _watched(due, inside):
                    report = next(reports)
            except RuntimeError as error:
                self.out.findings.append(str(error).partition("\n")[0])
                self.out.findings += [line for w in said for line in _forward_call(str(w.message))]
                return
            finally:
                self.out.findings += _suspects(inside)
        self._compare(report)
        for name, reading in report.readings.items():
            found = inside[name]
            found.loss, found.grad_norm = reading.loss, reading.grad_norm
            found.lr, found.applied = reading.lr, reading.applied

    def _examples(self) -> None:
        """Measure each example of the batch by itself, and write it as the recipe would."""
        for name in self.state.due():
            learner, told = self.state.learners[name], self.out.learners.setdefault(name, Inside())
            try:
                with buffers_kept(learner):
                    self._alone(learner, told)
            except ValueError as error:  # BatchNorm1d says so of one example
                self.out.findings.append(f"no example is measured by itself: {error}")
            told.examples.sort(key=lambda e: -e[1] if math.isfinite(e[1]) else -math.inf)

    def _alone(self, learner: Learner, told: Inside) -> None:
        step = self.state.step
        for place in range(self.data.size(step)):
            batch = self.data.batch(step, place, 1)
            rekey(derive(self.seed, "forward", step, place), self.world.device)
            if learner.dropouts:
                keys = example_keys(self.seed, step, place, 1)
                set_keys(learner.model, keys.to(self.world.device))
            with torch.no_grad(), learner.autocast:
                loss = learner.loss(learner.model, self.world.to(batch), *learner.level()).sum
            told.examples.append((place, float(loss) / batch.weight, self.job.tell(batch)))


@contextmanager
def _watched(learners: Mapping[str, Learner], inside: Mapping[str, Inside]) -> Iterator[None]:
    """Watch modules and the two ends of an update; leave nothing behind."""
    hooks = []
    for name, learner in learners.items():
        seen = inside[name].activations
        for path, module in learner.model.named_modules():
            if path and not any(module.children()):
                hooks.append(module.register_forward_hook(_observer(path, seen)))
        learner.gradient_norm = _gradients(learner, inside[name])  # type: ignore[method-assign, assignment]
        learner.update = _update(learner, inside[name])  # type: ignore[method-assign]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for learner in learners.values():
            del learner.gradient_norm, learner.update


def _observer(path: str, seen: dict[str, Spread]) -> Callable[[nn.Module, Any, Any], None]:
    """Return a hook that keeps what a module gave for the first piece of the batch."""

    def hook(module: nn.Module, given: Any, result: Any) -> None:
        first = result[0] if isinstance(result, tuple) and result else result
        if path not in seen and isinstance(first, Tensor) and first.is_floating_point():
            seen[path] = Spread.of(first)

    return hook


def _gradients(learner: Learner, inside: Inside) -> Callable[[], float]:
    measure = learner.gradient_norm

    def measured() -> float:
        for name, parameter in zip(learner.names, learner.parameters):
            if parameter.grad is not None:
                inside.gradients[name] = Spread.of(parameter.grad / learner.loss_scale)
        return measure()

    return measured


def _update(learner: Learner, inside: Inside) -> Callable[[], float]:
    update = learner.update

    def measured() -> float:
        before = [p.detach().clone() for p in learner.parameters]
        rate = update()
        for name, was, parameter in zip(learner.names, before, learner.parameters):
            size = float(was.norm())
            moved = float((parameter.detach() - was).norm())
            inside.weights[name] = (size, moved / max(size, 1e-12))
        return rate

    return measured


def _suspects(inside: Mapping[str, Inside]) -> Iterator[str]:
    """Name the first layer and gradient that is not finite, and the examples whose loss is not."""
    for name, found in inside.items():
        who = f"{name}: " if len(inside) > 1 else ""
        layer = next((path for path, spread in found.activations.items() if spread.bad), None)
        if layer is not None:
            yield f"{who}the first layer that gives values that are not finite: {layer}"
        odd = [path for path, spread in found.gradients.items() if spread.bad]
        if odd:
            yield f"{who}gradients that are not finite: {len(odd)}, first {odd[0]}"
        places = [str(place) for place, loss, _ in found.examples if not math.isfinite(loss)]
        if places:
            yield f"{who}examples whose loss is not finite: {_some(places)}"


def _some(words: Sequence[str], most: int = 10) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def _forward_call(text: str) -> Iterator[str]:
    """Yield the line of code whose result's gradient is bad, out of what torch warns."""
    if "Traceback of forward call" not in text:
        return
    lines = [line.strip() for line in text.splitlines()]
    frames = [i for i, line in enumerate(lines) if line.startswith("File ")]
    own = [i for i in frames if "/torch/" not in lines[i]]
    if own:
        yield f"computed forward at {lines[own[-1]]}: {lines[min(own[-1] + 1, len(lines) - 1)]}"
