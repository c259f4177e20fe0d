"""Begin a run, or go on with one: put the parts together and let the conductor play them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from surefoot.config.devices import enough
from surefoot.config.identity import fingerprint, together
from surefoot.config.schema import RunConfig
from surefoot.data.batch import Data
from surefoot.engine.auto import fit
from surefoot.engine.conduct import Conductor
from surefoot.engine.create import New, create, versions
from surefoot.engine.disk import synced
from surefoot.engine.fork import inherit
from surefoot.engine.job import Job
from surefoot.engine.lost import answering
from surefoot.engine.memory import resident
from surefoot.engine.mirror import Mirror
from surefoot.engine.place import compile_in_place
from surefoot.engine.plan import compared, farewell, planned_rates, work
from surefoot.engine.ranks.begin import alike, mode, spread
from surefoot.engine.ranks.follow import Silence
from surefoot.engine.ranks.play import (
    agree,
    checkpoint,
    held,
    moved,
    processes,
    saving,
    teach,
    watched,
    witnessed,
)
from surefoot.engine.rebuild import Buildable, mended, rebuild
from surefoot.engine.saver import Saver
from surefoot.engine.signals import watching
from surefoot.engine.state import Payload, TrainState
from surefoot.engine.store import Checkpoint, Store
from surefoot.engine.tape import Tape
from surefoot.engine.watch.meter import Meter
from surefoot.engine.watch.monitor import monitoring
from surefoot.engine.watch.pauses import Pauses
from surefoot.engine.witness import Witness
from surefoot.engine.world import World, open_world
from surefoot.errors import CheckFailed, Stopped, SurefootError
from surefoot.track.folder import RunFolder, now, reference
from surefoot.track.machine import describe_machine
from surefoot.track.meta import loss_unit
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

    world = open_world(config.machine.device)
    if world.team is not None:
        asked = config.machine.micro_batch_size
        enough(config, world.size, asked if isinstance(asked, int) else None)
        alike(world.team, {**together(config), **versions()})
    made: list[New] = []

    def make() -> RunFolder:
        made.append(create(recipe, config, origin=descend if parent else None, **particulars))
        return made[0].folder

    folder = world.first(make, "preparing the run")
    agree(world, folder, {})
    with held(folder, world):
        if made:
            new = made[0]
            job, pins, notes = world.each(lambda: (new.job, new.pins, new.notes))
        else:
            job, world, pins, _ = world.each(lambda: rebuild(recipe, folder, config))
            notes = ()
        return _play(_Built(folder, config, job, world, pins), open_sinks, notes)


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
    world = open_world(config.machine.device)
    agree(world, folder, {**together(config), **versions()})
    with held(folder, world):
        enough(config, world.size, None)
        if world.team is None:
            folder.reload()
        job, world, pins, horizons = world.each(lambda: rebuild(recipe, folder, config))
        other = _changed(folder, pins)
        identity = fingerprint(config) if grown else folder.meta["identity"]
        grown = {**folder.meta.get("grown", {}), **grown}
        limit = config.limit(len(job.source))
        if world.leads:
            folder.update(max_steps=limit, horizons=horizons, identity=identity, grown=grown)
        other += mended(folder.path, job.files) if world.leads else []
        return _play(_Built(folder, config, job, world, pins), open_sinks, [*notes, *other])


@dataclass(frozen=True)
class _Built:
    """A run whose parts are there, as it was decided."""

    folder: RunFolder
    config: RunConfig
    job: Job
    world: World
    pins: fit.Pins


def _play(run: _Built, open_sinks: OpenSinks, notes: Sequence[str]) -> Result:
    """Go on from the newest checkpoint, or begin, and train to the end."""
    folder, config, job, world = run.folder, run.config, run.job, run.world
    store = Store(folder.path / "checkpoints", folder.meta["id"])
    state = TrainState(job.learners)
    mirror = _mirror(folder, config) if world.leads else None
    how, why = mode(config, world, _planned(folder))
    spread(job, world, how, config.machine.reduce)
    found, payload = checkpoint(world, store, lambda: _find(store, mirror))
    if payload is not None:
        state.restore(payload)
    for learner in job.learners.values():
        learner.micro = learner.micro or run.pins.micro_batch_size
        if run.pins.compile:
            compile_in_place(learner)
    if not world.leads:
        list(moved(folder, config, world, None, job))
        return _train(run, state, Silence.of(folder.path), None, store, mirror)
    with _recording(run, state, found, open_sinks) as (record, tape):
        for text in (*notes, *tape.notes, *found.notes(record, tape)):
            record.note(text)
        for text in moved(folder, config, world, tape, job):
            record.note(text)
        if world.size > 1 or how != "none":
            record.note(f"uses   {processes(world.size)}, {how} ({why})")
        tape.begin(found.step)
        _sign(folder, found.step, job, config, {"ranks": world.size, "parallel": how})
        return _train(run, state, record, tape, store, mirror)


@contextmanager
def _recording(
    run: _Built, state: TrainState, found: _Found, open_sinks: OpenSinks
) -> Iterator[tuple[Record, Tape]]:
    """Lend the record and the journal of this process, and close both."""
    path, learners, segment = run.folder.path, run.job.learners, len(run.folder.meta["segments"])
    limit = max((x.limit or 0 for x in learners.values()), default=0) or None
    best = _best_loss(state)
    sinks = open_sinks(path, total=limit, best=best, first=found.step, segment=segment)
    places = {name: learner.step for name, learner in learners.items()}
    journal = path / "journal"
    with (
        closing(Record(path, segment, found.step, sinks, places)) as record,
        closing(Tape(journal, run.folder.meta["id"], sorted(learners), found.places)) as tape,
    ):
        yield record, tape


def _train(
    run: _Built,
    state: TrainState,
    record: Record,
    tape: Tape | None,
    store: Store,
    mirror: Mirror | None,
) -> Result:
    folder, config, job, world, pins = run.folder, run.config, run.job, run.world, run.pins
    data = Data(job.source, config.train.seed, config.train.batch_size, config.train.batch_warmup)

    def before_commit() -> None:
        assert tape is not None
        synced(record, tape)

    every = config.cadence.save_every
    own = Saver(store, config.keep, every, before_commit, mirror) if tape is not None else None
    saver = saving(world, store, own, config)
    facts = {"identity": fingerprint(config), "versions": versions(pins), "threads": pins.threads}
    begun = time.monotonic()
    witness = witnessed(world, Witness(tape, record, data.digest) if tape is not None else None)
    with (
        watching() as interrupts,
        watched(world, config, folder.path, record, saver, interrupts),
        _batches(data, pins, world) as batches,
        monitoring(folder.meta, config, job, world, record) as monitor,
        Pauses() as pauses,
    ):
        conductor = Conductor(
            job, config, world, batches, state, record, witness, saver, interrupts, facts,
            Meter(pauses), monitor, _planned(folder),
        )  # fmt: skip
        try:
            with answering(world.device, state, saver, store):
                ended = conductor.run()
        except BaseException as error:
            _fail(folder, world, state, saver, error)
            raise
    witness.tell()
    status = "done" if ended == "done" else "stopped"
    best = {n: tuple(x.memory["best"]) for n, x in state.learners.items() if "best" in x.memory}
    taken = {**conductor.meter.taken(), "crowded": monitor is not None and monitor.crowded}
    if world.leads:
        folder.update(status=status, ended=now(), step=state.step, best=best, taken=taken)
    if status == "done" and world.leads:
        seconds, told = time.monotonic() - begun, config.track.report
        unit = loss_unit(job.data)
        lines = farewell(state, conductor.scores, seconds, folder, unit=unit, report=told)
        for line in (*compared(folder.meta.get("plan", {}), taken), *lines):
            record.note(line)
    result = Result(folder.path, status, state.step, conductor.scores, best, witness.tape.proven)
    if status == "stopped":
        raise Stopped(
            f"stopped by {ended} after step {state.step}, saved",
            where=str(folder.path), fix=f"surefoot resume {reference(folder.path)}",
        )  # fmt: skip
    return result


def _planned(folder: RunFolder) -> int:
    """Return the bytes that the run takes as it was planned."""
    return int(folder.meta.get("plan", {}).get("memory", 0))


@dataclass(frozen=True)
class _Found:
    """What a resume found on the disk."""

    step: int
    places: Mapping[str, Any]
    incomplete: Sequence[str]
    aside: Sequence[str]

    def notes(self, record: Record, tape: Tape) -> Iterator[str]:
        """Yield what a person should know of it."""
        for name in self.incomplete:
            yield f"checkpoint {name}: incomplete, swept away"
        for text in self.aside:
            yield f"checkpoint {text}"
        if record.segment:
            whence = f"checkpoint of step {self.step}" if self.step else "the beginning"
            rows = record.superseded
            again = f"; {rows} row{'s' * (rows != 1)} of the record will be written again"
            yield f"going on from {whence}{again if rows else ''}"
        if tape.ahead:
            steps = f"{tape.ahead} steps" if tape.ahead > 1 else "the step"
            verb = "are" if tape.ahead > 1 else "is"
            yield f"{steps} after it {verb} in the journal and will be compared bit for bit"


def _find(store: Store, mirror: Mirror | None) -> tuple[_Found, Checkpoint | None, Payload | None]:
    if not store.folder.exists() and mirror is None:
        return _Found(0, {}, (), ()), None, None
    incomplete = store.sweep()
    checkpoint, payload, aside = store.newest()
    brought = mirror.bring_back(store) if mirror is not None else None
    if brought is not None:
        aside = [*aside, f"{brought.path.name}: brought back from the mirror"]
        checkpoint, payload = brought, brought.read()
    if checkpoint is None or payload is None:
        return _Found(0, {}, incomplete, aside), None, None
    places = checkpoint.manifest["places"]
    return _Found(checkpoint.step, places, incomplete, aside), checkpoint, payload


def _mirror(folder: RunFolder, config: RunConfig) -> Mirror | None:
    place = config.keep.mirror
    if place is None or place.expanduser().resolve() == folder.path.parent.resolve():
        return None
    return Mirror(folder.path, place, folder.meta["id"])


def _best_loss(state: TrainState) -> float | None:
    found = [x.memory["best"][1] for x in state.learners.values() if "best" in x.memory]
    return min(found, default=None)


def _sign(
    folder: RunFolder, step: int, job: Job, config: RunConfig, shared: Mapping[str, Any]
) -> None:
    """Write into run.json that this process trains the run now, and with which rates.

    `memory` is what it holds besides the weights: the program itself and the data.
    """
    weights = sum(p.nbytes for x in job.learners.values() for p in x.parameters)
    segment = {
        "pid": os.getpid(), "host": describe_machine()["host"], "started": now(), "step": step,
        "after": folder.meta["status"], "memory": resident() - weights, **shared,
    }  # fmt: skip
    folder.update(
        status="running", started=folder.meta.get("started") or now(), ended=None,
        segments=[*folder.meta["segments"], segment],
        rates={name: planned_rates(learner) for name, learner in job.learners.items()},
        flops=work(job, config.train.batch_size),
    )  # fmt: skip


def _fail(
    folder: RunFolder, world: World, state: TrainState, saver: Saver, error: BaseException
) -> None:
    """Write into run.json what ended the run, after the save in flight."""
    teach(folder, error)
    if not world.leads:
        return
    saver.wait()
    what = error.what if isinstance(error, SurefootError) else f"{type(error).__name__}: {error}"
    entry = {"time": now(), "step": state.step, "error": what}
    folder.update(
        status="stopped" if isinstance(error, KeyboardInterrupt) else "failed",
        ended=now(), step=state.step, errors=[*folder.meta.get("errors", []), entry],
    )  # fmt: skip
    if isinstance(error, CheckFailed) and error.fix is None:
        other = _changed(folder, fit.Pins.read(folder.meta["pinned"]))
        error.fix = "; ".join(other) or "versions, machine and threads are as they were"


@contextmanager
def _batches(data: Data, pins: fit.Pins, world: World) -> Iterator[Any]:
    if not pins.prefetch_threads:
        yield data
        return
    from surefoot.data.prefetch import Prefetch
    from surefoot.engine.carry import Carried

    mine = None if world.team is None else world.team.share
    source = Carried(data, world.device) if world.device.type == "cuda" else data
    prefetch = Prefetch(source, pins.prefetch_threads, 2 * pins.prefetch_threads, mine)
    try:
        yield prefetch
    finally:
        prefetch.close()


def _changed(folder: RunFolder, pins: fit.Pins) -> list[str]:
    """Name what differs from where the run began; bits may then differ too, and are compared."""
    was, now_, machine = folder.meta.get("versions", {}), versions(pins), folder.meta["machine"]
    found = [f"{k} {was[k]} -> {now_[k]}" for k in now_ if k in was and was[k] != now_[k]]
    here = describe_machine()
    found += [
        f"{k} {machine[k]} -> {here[k]}" for k in ("cpu", "cores") if machine.get(k) != here.get(k)
    ]
    return [f"changed since the run began: {', '.join(found)}"] if found else []
