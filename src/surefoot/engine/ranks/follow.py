"""What ranks have in place of the run's files, which rank 0 alone reads at will and writes.

All ranks run the same conductor, so that they do the same things in the same order. What only a
look at the disk or the clock can tell, rank 0 tells the others; what is to be written, the others
leave to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from surefoot.engine.codec import write_tensors
from surefoot.engine.journal import Kind, Record
from surefoot.engine.ranks.team import SAVE, Team
from surefoot.engine.saver import Saver
from surefoot.engine.state import Payload, TrainState
from surefoot.engine.store import Checkpoint, Store
from surefoot.engine.tape import Tape
from surefoot.engine.witness import Witness
from surefoot.track.record import Record as Rows

__all__ = ["Silence", "TeamSaver", "TeamStore", "TeamWitness"]


class TeamStore:
    """The checkpoints of the run, as rank 0 sees them."""

    def __init__(self, team: Team, store: Store) -> None:
        self.team, self._store = team, store
        self.folder = store.folder

    def checkpoints(self) -> list[Checkpoint]:
        """Return what `Store.checkpoints` returns on rank 0."""
        return self.team.first(self._store.checkpoints, "looking at the checkpoints")

    def newest(self) -> tuple[Checkpoint, Payload, list[str]] | tuple[None, None, list[str]]:
        """Return what `Store.newest` returns on rank 0; each rank reads it for itself."""
        checkpoint, payload, aside = self._chosen(self._store.newest)
        if checkpoint is None or payload is None:
            return None, None, aside
        return checkpoint, payload, aside

    def chosen(
        self, choose: Callable[[], tuple[Checkpoint, Payload] | None]
    ) -> tuple[Checkpoint, Payload] | None:
        """Return the checkpoint that rank 0 chooses, and its contents."""

        def three() -> tuple[Checkpoint | None, Payload | None, list[str]]:
            return (*(choose() or (None, None)), [])

        checkpoint, payload, _ = self._chosen(three)
        return None if checkpoint is None or payload is None else (checkpoint, payload)

    def _chosen(
        self, choose: Callable[[], tuple[Checkpoint | None, Payload | None, list[str]]]
    ) -> tuple[Checkpoint | None, Payload | None, list[str]]:
        mine: list[Payload | None] = [None]

        def choice() -> tuple[Checkpoint | None, list[str]]:
            checkpoint, mine[0], aside = choose()
            return checkpoint, aside

        checkpoint, aside = self.team.first(choice, "reading a checkpoint")
        if checkpoint is None:
            return None, None, aside
        payload = self.team.each(lambda: mine[0] or checkpoint.read())
        return checkpoint, payload, aside


class TeamSaver:
    """Saves when all agree; rank 0 has the `saver` that writes, the others none."""

    def __init__(
        self, team: Team, store: TeamStore, saver: Saver | None, every: int | str, apart: bool
    ) -> None:
        self.team, self.store, self._saver, self._every = team, store, saver, every
        self._apart = apart

    @property
    def pinned(self) -> Collection[int]:
        """Steps whose checkpoints must stay."""
        return () if self._saver is None else self._saver.pinned

    @pinned.setter
    def pinned(self, steps: Collection[int]) -> None:
        if self._saver is not None:
            self._saver.pinned = steps

    @property
    def stall(self) -> float:
        """Seconds that training has waited for saves."""
        return 0.0 if self._saver is None else self._saver.stall

    def wish(self) -> int:
        """Return SAVE when the clock of rank 0 says so, or a save that failed is tried again."""
        return SAVE if self._saver is not None and self._saver.due(-1) else 0

    def due(self, step: int) -> bool:
        """Whether all save now."""
        every = self._every
        by_step = isinstance(every, int) and every > 0 and step % every == 0
        return by_step or bool(self.team.heard & SAVE)

    def save(self, state: TrainState, *, metric: float | None = None, **facts: Any) -> None:
        """Save on rank 0, in the background; where weights are split, all ranks give theirs."""
        self.team.heard &= ~SAVE
        self.wait()  # the copies of the last save are written over
        if self._apart and any(x.split for x in state.learners.values()):
            self._save_apart(state, metric, facts)
            return
        still = state.still(self.team)
        if self._saver is not None:
            self._saver.save(state, still=still, metric=metric, **facts)

    def _save_apart(self, state: TrainState, metric: float | None, facts: Any) -> None:
        """Let every rank write its own rows; rank 0 seals all of it, or nothing."""
        files = state.parts()

        def write(staging: Path | None) -> dict[str, tuple[int, str]]:
            place = self.team.told(staging)
            written: dict[str, tuple[int, str]] = {}
            failed: OSError | None = None
            try:
                if place is not None:
                    for name, tensors in files.items():
                        written[name] = write_tensors(place / name, tensors)
            except OSError as error:
                failed = error
            found = self.team.gather((written, failed))
            for _, why in found:
                if why is not None:
                    raise why
            return {name: entry for entries, _ in found for name, entry in entries.items()}

        if self._saver is None:
            with suppress(OSError):  # rank 0 tells it, and tries again
                write(None)
            return
        reached: list[bool] = []

        def led(staging: Path) -> dict[str, tuple[int, str]]:
            reached.append(True)
            return write(staging)

        small = Payload({}, state.payload().small, copied=True)
        self._saver.save(state, still=small, metric=metric, write=led, **facts)
        if not reached:  # the disk refused before it began: the others wait to be told
            with suppress(OSError):
                write(None)

    def tidy(self, pinned: Collection[int]) -> None:
        """Let old checkpoints go."""
        if self._saver is not None:
            self._saver.tidy(pinned)

    def wait(self) -> None:
        """Wait for the save in flight, on rank 0."""
        if self._saver is not None:
            self._saver.wait()

    def checkpoint_of(self, name: str, step: int) -> tuple[Checkpoint, Payload] | None:
        """Return the newest checkpoint that holds this learner at `step`, and its contents."""
        saver = self._saver
        return self.store.chosen(lambda: saver.checkpoint_of(name, step) if saver else None)

    def forget_after(self, checkpoint: Checkpoint) -> None:
        """Remove the checkpoints of what is undone."""
        if self._saver is not None:
            self._saver.forget_after(checkpoint)

    def complaint(self) -> str | None:
        """Return what went wrong since the last call."""
        return None if self._saver is None else self._saver.complaint()

    def finish(self) -> None:
        """Wait for the save in flight; all ranks raise what rank 0 raises."""
        saver = self._saver
        self.team.first(lambda: saver.finish() if saver else None, "saving")


class _TeamTape:
    """The journal, which rank 0 writes; the others know which events lie ahead."""

    def __init__(self, team: Team, tape: Tape | None) -> None:
        self.team, self.tape = team, tape
        self._events: dict[tuple[str, int], list[Record]] = {}
        self._share()

    def _share(self) -> None:
        found = self.team.told(None if self.tape is None else self.tape.events())
        self._events = found or {}

    @property
    def proven(self) -> int:
        return 0 if self.tape is None else self.tape.proven

    def told(self, learner: str, step: int) -> list[Record]:
        if self.tape is not None:
            return self.tape.told(learner, step)
        return [r for r in self._events.get((learner, step), ()) if r.kind is Kind.EVENT]

    def places(self) -> dict[str, Any]:
        return {} if self.tape is None else self.tape.places()

    def event(self, *args: Any) -> str | None:
        return None if self.tape is None else self.tape.event(*args)

    def rewind(self, places: Mapping[str, Any]) -> None:
        if self.tape is not None:
            self.tape.rewind(places)
        self._share()


class TeamWitness:
    """The witness of rank 0, or nobody."""

    def __init__(self, team: Team, witness: Witness | None) -> None:
        self._witness = witness
        self.tape = cast(Tape, _TeamTape(team, witness.tape if witness else None))

    def write(self, report: Any) -> None:
        """Put a report on the tape."""
        if self._witness is not None:
            self._witness.write(report)

    def tell(self) -> None:
        """Say over how many steps this resume is proven."""
        if self._witness is not None:
            self._witness.tell()


class Silence:
    """A record that nobody keeps."""

    superseded = 0

    def __init__(self, path: Path) -> None:
        self.path = path

    def row(self, *_: Any, **__: Any) -> None:
        """Leave it to rank 0."""

    at = sample = picture = note = rewind = sync = close = row

    @classmethod
    def of(cls, path: Path) -> Rows:
        """Return one in place of a record in `path`."""
        return cast(Rows, cls(path))
