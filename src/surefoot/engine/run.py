"""Begin a run, or go on with one: put the parts together and let the conductor play them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from surefoot.config.identity import fingerprint
from surefoot.config.schema import RunConfig
from surefoot.data.batch import Data
from surefoot.engine import fit
from surefoot.engine.conduct import Conductor
from surefoot.engine.create import create, versions
from surefoot.engine.disk import refusals, synced
from surefoot.engine.fork import inherit
from surefoot.engine.job import Job
from surefoot.engine.meter import Meter, resident
from surefoot.engine.mirror import Mirror
from surefoot.engine.monitor import monitoring
from surefoot.engine.pauses import Pauses
from surefoot.engine.place import compile_in_place
from surefoot.engine.plan import compared, farewell, planned_rates, work
from surefoot.engine.rebuild import Buildable, rebuild
from surefoot.engine.saver import Saver
from surefoot.engine.signals import watching
from surefoot.engine.state import Payload, TrainState
from surefoot.engine.store import Store
from surefoot.engine.tape import Tape
from surefoot.engine.witness import Witness
from surefoot.engine.world import World
from surefoot.errors import CheckFailed, Stopped, SurefootError
from surefoot.track.folder import RunFolder, now, reference
from surefoot.track.machine import describe_machine
from surefoot.track.record import Record, Sink

__all__ = ["Result", "begin", "resume"]


class OpenSinks(Protocol):
    """Opens what shows a run while it is written."""

    def __call__(
        self, path: Path, *, total: int | None, best: float | None, first: int, segment: int
    ) -> Sequence[Sink]:
        """`total` is the step to stop at, `best` the best loss so far, `first` where we go on."""
        ...


@dataclass(frozen=True)
class Result:
    """How a run ended: `status` is done or stopped; `metrics` are the last evaluation's."""

    folder: Path
    status: str
    step: int
    metrics: dict[str, dict[str, float]]
    best: dict[str, tuple[int, float]]
    proven: int = 0


def begin(
    recipe: Buildable,
    config: RunConfig,
    *,
    open_sinks: OpenSinks,
    parent: tuple[RunFolder, str | int] | None = None,
    **particulars: Any,
) -> Result:
    """Start a new run and train it, from the checkpoint of a `parent` if there is one.

    `particulars` are those of `create`. Raises SurefootError; see `errors` for which and what
    exit code each has.
    """

    def descend(job: Job) -> tuple[dict[str, Any], Payload]:
        assert parent is not None
        ancestor, payload = inherit(*parent)
        TrainState(job.learners).restore(payload)  # before anything is created: does it fit?
        return ancestor, payload

    new = create(recipe, config, origin=descend if parent else None, **particulars)
    with new.folder.lock(), refusals(new.folder.path):
        return _play(new.folder, config, new.job, new.world, new.pins, open_sinks, new.notes)


def resume(
    recipe: Buildable,
    folder: RunFolder,
    config: RunConfig,
    *,
    open_sinks: OpenSinks,
    notes: Sequence[str] = (),
    grown: Mapping[str, Any] = MappingProxyType({}),
) -> Result:
    """Go on with a run from its newest sound checkpoint, proving each step that is repeated.

    `config` is the run's own, with changed circumstances at most, and with what has `grown`: settings
    that were added to, path -> value. Raises RunError when the run
    is held by another process or its data changed, Unsupported when this machine cannot do what
    was pinned, CheckFailed at the first step whose bits differ.
    """
    with folder.lock(), refusals(folder.path):
        job, world, pins, horizons = rebuild(recipe, folder.reload(), config)
        other = _changed(folder.meta.get("versions", {}), versions(), folder.meta["machine"])
        identity = fingerprint(config) if grown else folder.meta["identity"]
        grown = {**folder.meta.get("grown", {}), **grown}
        limit = config.limit(len(job.source))
        folder.update(max_steps=limit, horizons=horizons, identity=identity, grown=grown)
        for name in (n for n in job.files if not (folder.path / n).exists()):
            (folder.path / name).write_text(job.files[name], encoding="utf-8")
            other.append(f"{name} was missing and is written anew")
        return _play(folder, config, job, world, pins, open_sinks, [*notes, *other])


def _play(
    folder: RunFolder,
    config: RunConfig,
    job: Job,
    world: World,
    pins: fit.Pins,
    open_sinks: OpenSinks,
    notes: Sequence[str],
) -> Result:
    store = Store(folder.path / "checkpoints", folder.meta["id"])
    state = TrainState(job.learners)
    mirror = _mirror(folder, config)
    found = _restore(store, state, mirror)
    for learner in job.learners.values():
        learner.micro = learner.micro or pins.micro_batch_size
        if pins.compile:
            compile_in_place(learner)
    segment = len(folder.meta["segments"])
    limit = max((x.limit or 0 for x in job.learners.values()), default=0) or None
    sinks = open_sinks(
        folder.path, total=limit, best=_best_loss(state), first=found.step, segment=segment
    )
    places = {name: learner.step for name, learner in job.learners.items()}
    record = Record(folder.path, segment, found.step, sinks, places)
    try:
        tape = Tape(folder.path / "journal", folder.meta["id"], sorted(job.learners), found.places)
    except BaseException:
        record.close()
        raise
    try:
        for note in (*notes, *tape.notes):
            record.note(note)
        for warning in found.notes(segment, record, tape):
            record.note(warning)
        tape.begin(found.step)
        _sign(folder, found.step, job, config)
        return _train(folder, config, job, world, pins, state, record, tape, store, mirror)
    finally:
        tape.close()
        record.close()


def _train(
    folder: RunFolder,
    config: RunConfig,
    job: Job,
    world: World,
    pins: fit.Pins,
    state: TrainState,
    record: Record,
    tape: Tape,
    store: Store,
    mirror: Mirror | None,
) -> Result:
    data = Data(job.source, config.train.seed, config.train.batch_size, config.train.batch_warmup)

    def before_commit() -> None:
        synced(record, tape)

    saver = Saver(store, config.keep, config.cadence.save_every, before_commit, mirror)
    facts = {"identity": fingerprint(config), "versions": versions(), "threads": pins.threads}
    begun = time.monotonic()
    witness = Witness(tape, record, data.digest)
    with (
        watching() as interrupts,
        _batches(data, pins) as batches,
        monitoring(folder.meta, config, job, world, record) as monitor,
        Pauses() as pauses,
    ):
        conductor = Conductor(
            job, config, world, batches, state, record, witness, saver, interrupts, facts,
            Meter(pauses), monitor,
        )  # fmt: skip
        try:
            ended = conductor.run()
        except BaseException as error:
            _fail(folder, state, saver, error)
            raise
    witness.tell()
    status = "done" if ended == "done" else "stopped"
    best = {n: tuple(x.memory["best"]) for n, x in state.learners.items() if "best" in x.memory}
    taken = conductor.meter.taken()
    folder.update(status=status, ended=now(), step=state.step, best=best, taken=taken)
    if status == "done":
        seconds, report = time.monotonic() - begun, config.track.report
        unit = job.data.get("loss_unit", "nats")
        lines = farewell(state, conductor.scores, seconds, folder.path, unit=unit, report=report)
        for line in (*compared(folder.meta.get("plan", {}), taken), *lines):
            record.note(line)
    result = Result(folder.path, status, state.step, conductor.scores, best, tape.proven)
    if status == "stopped":
        raise Stopped(
            f"stopped by {ended} after step {state.step}, saved",
            where=str(folder.path), fix=f"surefoot resume {reference(folder.path)}",
        )  # fmt: skip
    return result


@dataclass(frozen=True)
class _Found:
    """What a resume found on the disk."""

    step: int
    places: Mapping[str, Any]
    incomplete: Sequence[str]
    aside: Sequence[str]

    def notes(self, segment: int, record: Record, tape: Tape) -> Iterator[str]:
        """Say it, to people."""
        for name in self.incomplete:
            yield f"checkpoint {name}: incomplete, swept away"
        for text in self.aside:
            yield f"checkpoint {text}"
        if segment:
            whence = f"checkpoint of step {self.step}" if self.step else "the beginning"
            rows = record.superseded
            again = f"{rows} row{'s' * (rows != 1)} of the record will be written again"
            yield f"going on from {whence}; {again}"
        if tape.ahead:
            steps = f"{tape.ahead} steps" if tape.ahead > 1 else "the step"
            verb = "are" if tape.ahead > 1 else "is"
            yield f"{steps} after it {verb} in the journal and will be compared bit for bit"


def _restore(store: Store, state: TrainState, mirror: Mirror | None) -> _Found:
    if not store.folder.exists() and mirror is None:
        return _Found(0, {}, (), ())
    incomplete = store.sweep()
    checkpoint, payload, aside = store.newest()
    brought = mirror.bring_back(store) if mirror is not None else None
    if brought is not None:
        aside = [*aside, f"{brought.path.name}: brought back from the mirror"]
        checkpoint, payload = brought, brought.read()
    if checkpoint is None or payload is None:
        return _Found(0, {}, incomplete, aside)
    state.restore(payload)
    return _Found(checkpoint.step, checkpoint.manifest["places"], incomplete, aside)


def _mirror(folder: RunFolder, config: RunConfig) -> Mirror | None:
    place = config.keep.mirror
    if place is None or place.expanduser().resolve() == folder.path.parent.resolve():
        return None
    return Mirror(folder.path, place, folder.meta["id"])


def _best_loss(state: TrainState) -> float | None:
    found = [x.memory["best"][1] for x in state.learners.values() if "best" in x.memory]
    return min(found, default=None)


def _sign(folder: RunFolder, step: int, job: Job, config: RunConfig) -> None:
    """Write into run.json that this process trains the run now, and with which rates.

    `memory` is what it holds besides the weights: the program itself and the data.
    """
    weights = sum(p.nbytes for x in job.learners.values() for p in x.parameters)
    segment = {
        "pid": os.getpid(), "host": describe_machine()["host"], "started": now(), "step": step,
        "after": folder.meta["status"], "memory": resident() - weights,
    }  # fmt: skip
    folder.update(
        status="running", started=folder.meta.get("started") or now(), ended=None,
        segments=[*folder.meta["segments"], segment],
        rates={name: planned_rates(learner) for name, learner in job.learners.items()},
        flops=work(job, config.train.batch_size),
    )  # fmt: skip


def _fail(folder: RunFolder, state: TrainState, saver: Saver, error: BaseException) -> None:
    """Write into run.json what ended the run, after the save in flight."""
    saver.wait()
    what = error.what if isinstance(error, SurefootError) else f"{type(error).__name__}: {error}"
    entry = {"time": now(), "step": state.step, "error": what}
    folder.update(
        status="stopped" if isinstance(error, KeyboardInterrupt) else "failed",
        ended=now(), step=state.step, errors=[*folder.meta.get("errors", []), entry],
    )  # fmt: skip
    if isinstance(error, CheckFailed) and error.fix is None:
        other = _changed(folder.meta.get("versions", {}), versions(), folder.meta["machine"])
        error.fix = "; ".join(other) or "versions, machine and threads are as they were"


@contextmanager
def _batches(data: Data, pins: fit.Pins) -> Iterator[Any]:
    if not pins.prefetch_threads:
        yield data
        return
    from surefoot.data.prefetch import Prefetch

    prefetch = Prefetch(data, pins.prefetch_threads, 2 * pins.prefetch_threads)
    try:
        yield prefetch
    finally:
        prefetch.close()


def _changed(
    was: Mapping[str, str], now_: Mapping[str, str], machine: Mapping[str, Any]
) -> list[str]:
    """Name what differs from where the run began; bits may then differ too, and are compared."""
    found = [f"{k} {was[k]} -> {now_[k]}" for k in now_ if k in was and was[k] != now_[k]]
    here = describe_machine()
    found += [
        f"{k} {machine[k]} -> {here[k]}" for k in ("cpu", "cores") if machine.get(k) != here.get(k)
    ]
    return [f"changed since the run began: {', '.join(found)}"] if found else []
