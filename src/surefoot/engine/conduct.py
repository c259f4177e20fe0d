"""The conductor: the only place that knows when to log, validate, sample, save and stop."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from surefoot.config.learners import alone
from surefoot.config.schema import RunConfig, Train
from surefoot.data.batch import Data
from surefoot.engine import faults, named, retain
from surefoot.engine.heap import give_back
from surefoot.engine.job import Job
from surefoot.engine.journal import Event
from surefoot.engine.look import draw, measure, sample
from surefoot.engine.loop import Batches, Happening, Report, steps
from surefoot.engine.ranks.play import stragglers
from surefoot.engine.saver import Saver
from surefoot.engine.signals import Interrupts
from surefoot.engine.state import TrainState
from surefoot.engine.watch.compiled import Compiled
from surefoot.engine.watch.lives import Lives
from surefoot.engine.watch.meter import Meter, Timed, sparse
from surefoot.engine.watch.monitor import Monitor
from surefoot.engine.watch.ratio import watch_updates
from surefoot.engine.witness import Witness
from surefoot.engine.world import World
from surefoot.errors import Diverged, OutOfResources
from surefoot.seeds import derive
from surefoot.track.record import Record

__all__ = ["Conductor"]

GRAIN = 10  # steps between measurements of the machine, at first


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@dataclass
class Conductor:
    """Runs a job to its end, or until a signal. `facts` go into every checkpoint's manifest."""

    job: Job
    config: RunConfig
    world: World
    data: Batches
    state: TrainState
    record: Record
    witness: Witness
    saver: Saver
    interrupts: Interrupts
    facts: Mapping[str, Any]
    meter: Meter = field(default_factory=Meter)
    monitor: Monitor | None = None
    memory: int = 0  # bytes that it takes as planned, without compiling
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    _ratios: dict[str, dict[str, float]] = field(default_factory=dict)
    _lives: Lives | None = None
    _failed: dict[str, int] = field(default_factory=dict)  # learner -> step whose update failed
    _saved: tuple[int, ...] = ()
    _settled: bool = False  # whether what training keeps has its place in memory

    def run(self) -> str:
        """Train; return `done` or the name of the signal that stopped the run.

        Raises Diverged, OutOfResources or CheckFailed, after saving what can be saved.
        """
        if any(c.resumable for c in self.saver.store.checkpoints()):
            self._saved = self._progress()
            self.saver.tidy(self._needed())
        else:
            self._save()
        every = self.config.cadence.log_every if self.config.track.update_ratio else 0
        self._ratios = {n: watch_updates(x, every) for n, x in self.state.learners.items() if every}
        told = self.config, self.world, self.state, self.record
        self.record.at(self.state.step)
        Compiled(*told, self.data, self.memory).look()
        self._lives = Lives(self.job, *told)
        self._give_back()
        while not self.state.finished:
            try:
                for report in self._steps():
                    if self._after(report):
                        break
            except faults.UpdateFailed as failure:
                self._restore_after(failure)
            if self._signal and not self.state.finished:
                name = self._signal
                self._save_last()
                return name
        self._restore_best()
        self._save_last()
        return "done"

    def _steps(self) -> Iterator[Report]:
        data = Timed(self.data, self.meter.data)
        seed, told = self.config.train.seed, self.witness.tape.told
        reports = steps(self.state, data, seed, self.world, told)
        if not self.config.track.profile:
            return reports
        from surefoot.engine.watch.profile import profiled

        folder = self.record.path / "profile"
        return profiled(reports, self.state.learners, self.meter, folder, self.record.note)

    def _after(self, report: Report) -> bool:
        """Do what is due after a step; return whether the loop must begin anew."""
        self.meter.count(report.weight, {n: r.seconds for n, r in report.readings.items()})
        with self.meter.record:
            self.witness.write(report)
        for happening in report.happenings:
            self._tell(report, happening)
        if self._lives is not None:
            self._lives.look(report)
        kept = {n: r for n, r in report.readings.items() if not self._mind(report, n)}
        rolled = len(kept) < len(report.readings)
        if rolled:  # what was undone is neither logged nor looked at
            report = replace(report, readings=kept)
        with self.meter.record:
            if _due(report.step, self.config.cadence.log_every):
                self._log(report)
            self.record.at(self.state.step)
        with self.meter.evaluate:
            improved = self._look(report)
        self._stop_if_lost(report)
        with self.meter.save:
            self._save_if_due(report.step, improved, rolled)
        self._measure(report.step)
        if not self._settled:  # moments of optimisers came to be in the first step
            self._settled = True
            self._give_back()
        return rolled or self._signal is not None

    def _give_back(self) -> None:
        if self.world.device.type == "cpu":
            give_back()

    @property
    def _signal(self) -> str | None:
        """The name of the signal that asks to stop; of several processes, what any was sent."""
        team = self.world.team
        if team is None:
            return self.interrupts.received
        return signal.Signals(team.signal).name if team.signal else None

    def _tell(self, report: Report, happening: Happening) -> None:
        text = f"step {report.step}: {happening}"
        if happening.event is Event.SKIP and not happening.detail:
            again = f"surefoot resume {self.record.path.name} --debug-step {report.step}"
            text += f"; look inside: {again}"
        self.record.note(self._prefix(happening.learner) + text, "warning")
        self.record.row(
            "event", report.step, happening.learner,
            event=happening.event.name.lower(), value=happening.value, why=happening.why,
        )  # fmt: skip

    def _prefix(self, learner: str) -> str:
        return "" if len(self.state.learners) == 1 else f"{learner}: "

    def _mind(self, report: Report, name: str) -> bool:
        """Count skipped updates, and roll back where that is the policy; return whether it was."""
        learner, policy = self.state.learners[name], self.config.train
        skipped = any(h.learner == name and h.event is Event.SKIP for h in report.happenings)
        learner.memory["bad_steps"] = learner.memory.get("bad_steps", 0) + 1 if skipped else 0
        if not skipped or policy.nonfinite != "rollback":
            return False
        self._roll_back(report.step, name)
        return True

    def _stop_if_lost(self, report: Report) -> None:
        """Save and give up after too many skipped updates, with a whole record of this one."""
        policy = self.config.train
        limit = 1 if policy.nonfinite == "stop" else policy.nonfinite_limit
        for name, reading in report.readings.items():
            bad = self.state.learners[name].memory.get("bad_steps", 0)
            if bad < limit:
                continue
            self._save_last()
            kind = "spiking" if math.isfinite(reading.loss + reading.grad_norm) else "non-finite"
            raise Diverged(
                f"{bad} {kind} step{'s' * (bad > 1)} in a row: "
                f"loss {reading.loss}, gradient norm {reading.grad_norm}",
                where=f"step {report.step}, learner {name}, {self._examples(report.step)}",
                fix="a lower optim.lr or optim.muon_lr, or --train.nonfinite rollback; what is in it: "
                f"surefoot resume {self.record.path.name} --debug-step {report.step}",
            )

    def _examples(self, step: int) -> str:
        train = self.config.train
        data = Data(self.job.source, train.seed, train.batch_size, train.batch_warmup)
        return f"examples {data.first(step - 1)} to {data.first(step) - 1}"

    def _roll_back(self, step: int, name: str) -> None:
        """Put one learner back to the newest multiple of `rollback_every`, at a lower rate."""
        every, learner = self.config.train.rollback_every, self.state.learners[name]
        target = (step - 1) // every * every
        factor = learner.lr_factor * self.config.train.rollback_factor
        count = learner.memory.get("rollbacks", 0)
        self.saver.wait()
        found = self.saver.checkpoint_of(name, target)
        if found is None or count >= self.config.train.nonfinite_limit:
            what = f"rolled back {count} times" if found else f"no checkpoint of step {target}"
            raise Diverged(
                f"non-finite or a spike again: {what}",
                where=f"step {step}, learner {name}, {self._examples(step)}",
                fix="a lower optim.lr",
            )
        self.witness.tape.event(name, step, Event.ROLLBACK, float(target))
        checkpoint, payload = found
        self.saver.forget_after(checkpoint)
        payload.small["learners"] = {name: payload.small["learners"][name]}
        self.state.restore(payload)
        learner.lr_factor, learner.memory["rollbacks"] = factor, count + 1
        self.record.rewind(self.state.step, self._steps_of())
        text = f"step {step}: back to step {target}, learning rate x {factor:g} from here"
        self.record.note(self._prefix(name) + text, "warning")
        # At the step after, because a resume from `target` itself meets and writes it again.
        self.record.row("event", target + 1, name, event="rollback", value=float(step), why=text)

    def _steps_of(self) -> dict[str, int]:
        return {name: learner.step for name, learner in self.state.learners.items()}

    def _log(self, report: Report) -> None:
        rate, size = self.meter.rate(), self.world.size
        speed = {"tokens_per_s": round(rate, 1)}  # what batches weigh, whatever it is
        if report.weight == self.data.size(report.step - 1):
            speed["examples_per_s"] = speed["tokens_per_s"]
        speed |= {"tokens_per_s_each": round(rate / size, 1)} if size > 1 else {}
        team = self.world.team
        for text in stragglers(team) if team is not None else ():
            self.record.note(text, "warning")
        for name, reading in report.readings.items():
            parts = {key: float(value) for key, value in reading.parts.items()}
            self.record.row(
                "train", report.step, name, loss=reading.loss, lr=reading.lr,
                grad_norm=reading.grad_norm, **speed, **parts,
                **(self._ratios.get(name, {}) if reading.applied else {}),
            )  # fmt: skip

    def _measure(self, step: int) -> None:
        """Write down how fast this machine is: often at first, then ever more rarely."""
        if (step % GRAIN == 0 and sparse(step // GRAIN, 8)) or self.state.finished:
            spent = self.meter.system(self.world.device)
            if self.monitor is not None:
                spent |= self.monitor.row(spent)
            self.record.row("system", step, **spent)

    def _look(self, report: Report) -> bool:
        """Evaluate, draw and sample where due; return whether a best value was found."""
        improved, cadence = False, self.config.cadence
        every = cadence.validate_every
        for name in report.readings:
            ended = self.state.learners[name].finished
            look = _due(report.step, every) or ended
            drawn = ended or (_due(report.step, every) and sparse(report.step // every, 5))
            write = _due(report.step, cadence.sample_every) or (ended and cadence.sample_every > 0)
            if not (look or write):
                continue
            with self.state.learners[name].whole():
                if look:
                    improved |= self.evaluate(name, report.step)
                if drawn and self.world.leads:
                    draw(self.job, name, report.step, self.config, self.record)
                if write and self.world.leads:
                    sample(self.job, name, report.step, self.config, self.record)
        return improved

    def policy(self, name: str) -> Train:
        """Return how long and with what patience one learner trains."""
        return alone(self.config, name).train

    def evaluate(self, name: str, step: int) -> bool:
        """Run the evaluations of one learner; return whether its validation loss is a new best."""
        found = self._evaluations(name, step)
        if not found:
            return False
        self.scores[name] = found
        self.record.row("eval", step, name, **found)
        return "val_loss" in found and self._judge(name, step, found["val_loss"])

    def _evaluations(self, name: str, step: int) -> dict[str, float]:
        found: dict[str, float] = {}
        for label, evaluation in self.job.evals.items():
            key = derive(self.config.train.seed, "evaluate", step, label)
            found.update(measure(self.world, self.state.learners[name], key, evaluation))
        return found

    def _judge(self, name: str, step: int, loss: float) -> bool:
        """Keep the best value and the patience in the learner's memory, which is saved.

        Patience counts from the peak of a one-cycle schedule on: while the rate rises, the loss may
        wait, and what comes after the peak is what the schedule is for.
        """
        policy, memory = self.policy(name), self.state.learners[name].memory
        best = memory.get("best")
        improved = math.isfinite(loss) and (best is None or loss < best[1] - policy.min_delta)
        memory["score"] = [step, loss]
        rising = step <= getattr(self.state.learners[name].schedule, "peak", 0)
        memory["waited"] = 0 if improved or rising else memory.get("waited", 0) + 1
        if improved:
            memory["best"] = [step, loss]
        if policy.patience and memory["waited"] >= policy.patience:
            memory["stopped"] = step
            text = f"step {step}: no improvement in {policy.patience} evaluations; stopping"
            self.record.note(self._prefix(name) + text)
        return improved

    def _save_if_due(self, step: int, improved: bool, rolled: bool) -> None:
        complaint = self.saver.complaint()
        if complaint:
            self.record.note(complaint, "warning")
        policy, keep = self.config.train, self.config.keep
        milestone = _due(step, keep.milestones)
        anchor = policy.nonfinite == "rollback" and _due(step, policy.rollback_every)
        best = improved and (keep.best > 0 or self._best_is_result)
        wanted = self.saver.due(step) or best or milestone or anchor
        if wanted and not rolled and not self.state.finished and not self._signal:
            self._save()

    def _save(self) -> None:
        told = [(x.step, x.memory.get("score", [-1, 0.0])) for x in self.state.learners.values()]
        lately = [score for step, (at, score) in told if at == step]
        self._saved = self._progress()
        self.saver.pinned = self._needed()
        places, metric = self.witness.tape.places(), min(lately, default=None)
        self.saver.save(self.state, metric=metric, places=places, **self.facts)

    @property
    def _best_is_result(self) -> bool:
        policies = [self.policy(name) for name in self.state.learners]
        return any(policy.patience > 0 and policy.restore_best for policy in policies)

    def _needed(self) -> set[int]:
        learners = self.state.learners.items()
        return retain.needed(self.config, {n: (x.step, x.memory) for n, x in learners})

    def _progress(self) -> tuple[int, ...]:
        return tuple(self._steps_of().values())

    def _save_last(self) -> None:
        """Save what is not saved yet, and wait for it; try once more when it failed."""
        if self._saved != self._progress():
            self._save()
        try:
            self.saver.finish()
        except OutOfResources:
            self._save()
            self.saver.finish()

    def _restore_best(self) -> None:
        """Give learners that were stopped early the best weights they had."""
        for name, learner in self.state.learners.items():
            policy = self.policy(name)
            if not (learner.memory.get("stopped") and policy.patience and policy.restore_best):
                continue
            step, loss = learner.memory["best"]
            self.saver.wait()
            found = self.saver.checkpoint_of(name, step)
            if found is None:
                text = f"the checkpoint of step {step} is gone or damaged; the last weights are the result"
                self.record.note(self._prefix(name) + text, "warning")
                continue
            tensors = found[1].tensors
            named.restore_own(learner, tensors[f"{name}.model.safetensors"])
            if learner.average:
                named.restore_average(learner, tensors[f"{name}.ema.safetensors"])
            self._saved = ()
            text = f"the weights of step {step} (val loss {loss:.4f}) are the result"
            self.record.note(self._prefix(name) + text)

    def _restore_after(self, failure: faults.UpdateFailed) -> None:
        """An optimiser was interrupted by memory: go back to the newest checkpoint, once a step."""
        self.saver.wait()
        again = self._failed.get(failure.learner) == failure.step
        if self.world.size > 1:  # the others have their update, and nobody waits for this rank
            raise OutOfResources(
                f"rank {self.world.rank} ran out of memory in the optimiser: {failure.cause}",
                where=f"step {failure.step}, learner {failure.learner}",
                fix="surefoot resume goes on from the last checkpoint",
            )
        checkpoint, payload, _ = self.saver.store.newest()
        if again or checkpoint is None or payload is None:
            raise OutOfResources(
                f"out of memory in the optimiser: {failure.cause}",
                where=f"step {failure.step}, learner {failure.learner}",
                fix="a smaller model, or another machine",
            )
        self.state.restore(payload)
        self.witness.tape.rewind(checkpoint.manifest["places"])
        self.record.rewind(checkpoint.step, self._steps_of())
        self._failed[failure.learner] = failure.step
        self.record.note(
            f"step {failure.step}: out of memory in the optimiser; again from step {checkpoint.step}",
            "warning",
        )
