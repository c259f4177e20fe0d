"""Begin or go on with a run in several processes: what each of them opens, and what all agree on."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from surefoot.config.schema import RunConfig
from surefoot.config.units import parse_seconds
from surefoot.engine.disk import refusals
from surefoot.engine.job import Job
from surefoot.engine.ranks.beat import slow
from surefoot.engine.ranks.begin import alike, clear, visible
from surefoot.engine.ranks.follow import TeamSaver, TeamStore, TeamWitness
from surefoot.engine.ranks.team import Team
from surefoot.engine.saver import Saver
from surefoot.engine.signals import Interrupts
from surefoot.engine.store import Checkpoint, Store
from surefoot.engine.tape import Tape
from surefoot.engine.witness import Witness
from surefoot.engine.world import World
from surefoot.track.folder import RunFolder
from surefoot.track.ranks import BOARD
from surefoot.track.record import Record

__all__ = [
    "agree",
    "checkpoint",
    "held",
    "learned",
    "moved",
    "processes",
    "saving",
    "stragglers",
    "teach",
    "watched",
    "witnessed",
]

LESSONS = "ranks-memory.jsonl"  # in the run's folder: where ranks ran out of memory
T = TypeVar("T")


@contextmanager
def held(folder: RunFolder, world: World) -> Iterator[None]:
    """Hold the run while training it: rank 0 for all."""
    with ExitStack() as stack:

        def hold() -> None:
            stack.enter_context(folder.lock())

        world.first(hold)
        if world.leads:
            clear(folder.path)
            stack.enter_context(refusals(folder.path))
        yield


def agree(world: World, folder: RunFolder, facts: Mapping[str, Any]) -> None:
    """Make sure that all ranks mean the same run in the same folder."""
    if world.team is not None:
        visible(world.team, folder.path)
        alike(world.team, facts)
        folder.meta = world.team.told(folder.meta)


def checkpoint(
    world: World, store: Store, find: Callable[[], tuple[T, Checkpoint | None, Any]]
) -> tuple[T, Any]:
    """Return what rank 0 finds and the contents of the checkpoint it chose, on all ranks."""
    if world.team is None:
        found, _, payload = find()
        return found, payload
    mine: list[Any] = []

    def look() -> tuple[T, Checkpoint | None]:
        found, chosen, payload = find()
        mine.append(payload)
        return found, chosen

    found, chosen = world.first(look, "reading a checkpoint")
    if chosen is None:
        return found, None
    return found, world.each(lambda: mine[0] if mine else chosen.read())


def teach(folder: RunFolder, error: BaseException) -> None:
    """Write down, on whichever rank, that it ran out of memory where the others cannot go on."""
    lesson = getattr(error, "lesson", None)
    if lesson is not None:
        with suppress(OSError), (folder.path / LESSONS).open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps(lesson)}\n")  # after what may be half a line


def learned(folder: RunFolder, job: Job) -> Iterator[str]:
    """Take smaller pieces where ranks ran out of memory twice in the same step; say so.

    The first time it may have been another program, as where a step can be done again at once.
    """
    lessons = _lessons(folder.path / LESSONS)
    for name, learner in job.learners.items():
        for place, lesson in enumerate(lessons):
            again = lesson in lessons[:place] and lesson["micro"] == learner.micro
            if again and learner.micro and learner.micro > 1:
                size, learner.micro = learner.micro, learner.micro // 2
                yield f"{name}: out of memory twice at {size} examples a pass, so {size // 2} from here"


def _lessons(path: Path) -> list[Any]:
    """Return what was learned; a line that a killed process left half written teaches nothing."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with suppress(ValueError):
            lesson = json.loads(line)
            if isinstance(lesson, dict) and {"step", "micro"} <= lesson.keys():
                found.append(lesson)
    return found


def moved(
    folder: RunFolder, config: RunConfig, world: World, tape: Tape | None, job: Job
) -> Iterator[str]:
    """Yield what a change of the number of processes means for the numbers; loosen the tape."""
    segments = folder.meta["segments"]
    smaller = list(learned(folder, job)) if world.size > 1 else []
    yield from smaller
    before = int(segments[-1].get("ranks", 1)) if segments else world.size
    batch = config.train.batch_size
    coarse = [x for x in job.learners.values() if x.micro and -(-batch // x.micro) < world.size]
    for learner in coarse:
        learner.micro = max(d for d in range(1, batch // world.size + 1) if batch % d == 0)
    if smaller and before == world.size and not coarse:
        if tape is not None:
            tape.loosen()
        return
    if before == world.size and not coarse:
        return
    text = f"trained by {processes(before)} so far, by {processes(world.size)} from here: "
    if coarse:
        text += f"in pieces of {coarse[0].micro} examples now, so that each has one; "
    if config.machine.reduce == "tree" and not coarse:
        yield text + "the same bits (reduce=tree)"
        return
    steps = tape.loosen() if tape is not None else 0
    text += "sums are rounded in another order, so losses agree to about 1e-6 at first, not in bits"
    yield text + (f"; {steps} steps of the journal are compared so" if steps else "")


def processes(count: int) -> str:
    """Return how many, in words."""
    return f"{count} processes" if count > 1 else "1 process"


def saving(world: World, store: Store, saver: Saver | None, config: RunConfig) -> Saver:
    """Return what the conductor saves with."""
    if world.team is None:
        assert saver is not None
        return saver
    every, apart = config.cadence.save_every, config.keep.sharded
    return cast(Saver, TeamSaver(world.team, TeamStore(world.team, store), saver, every, apart))


def witnessed(world: World, witness: Witness | None) -> Witness:
    """Return what the conductor tells each step to."""
    if world.team is None:
        assert witness is not None
        return witness
    return cast(Witness, TeamWitness(world.team, witness))


@contextmanager
def watched(
    world: World, config: RunConfig, path: Path, record: Record, saver: Saver, hear: Interrupts
) -> Iterator[None]:
    """Keep a heartbeat while the block runs, and let the others know what this rank is asked for."""
    team = world.team
    if team is None:
        yield
        return

    def wish() -> int:
        name = hear.received
        return saver.wish() | (Team.stop(signal.Signals[name]) if name else 0)  # type: ignore[attr-defined]

    team.wish, team.heard = wish, 0
    board = path / BOARD if team.leads and team.size > 1 else None
    patience = parse_seconds(config.machine.hang_timeout)
    with team.watch.during(patience, _teller(record), board):
        yield


def _teller(record: Record) -> Callable[[str], None]:
    return lambda text: record.note(text, "warning")


def stragglers(team: Team) -> Iterator[str]:
    """Yield who computed longer than the others since the last call, ever more rarely for each rank."""
    paces, team.pace = team.pace, []
    for rank in slow(paces):
        count = team.late[rank] = team.late.get(rank, 0) + 1
        if count & (count - 1):  # no power of two
            continue
        again = f"; so it was {count} times" if count > 1 else ""
        others = sorted(p for r, p in enumerate(paces) if r != rank)
        usual = others[(len(others) - 1) // 2]
        yield (
            f"rank {rank} is slow: {paces[rank] * 1e3:.0f} ms a step until it has nothing to do but "
            f"to wait, others {usual * 1e3:.0f} ms{again}"
        )
