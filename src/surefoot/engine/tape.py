"""The journal as a tape: while old records lie ahead they are compared, afterwards appended to.

Each learner has its own place on the tape, saved with every checkpoint. A resume starts at that
place, so the steps since the checkpoint are compared bit for bit with what they gave before, and
events (skips, halved micro-batches, rollbacks) are repeated where they happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from surefoot.engine.journal import Event, Journal, Kind, Record, float_bits, read
from surefoot.errors import CheckFailed

__all__ = ["Tape"]


@dataclass
class _Reel:
    """One learner's records from its place on; `ahead` counts those not yet compared."""

    place: int = 0
    records: list[Record | None] = field(default_factory=list)
    next: int = 0

    @property
    def ahead(self) -> int:
        return len(self.records) - self.next

    def take(self) -> Record | None:
        self.next += 1
        self.place += 1
        return self.records[self.next - 1]

    def peek(self) -> Record | None:
        return self.records[self.next] if self.ahead else None


class Tape:
    """The journal at `path`, positioned at `places` (records consumed, by learner).

    `names` orders the learners; a learner's number in the journal is its place in that order.
    """

    def __init__(self, path: Path, run: str, names: list[str], places: Mapping[str, int]) -> None:
        self.names = names
        self.journal = Journal(path, run)
        self.notes = list(self.journal.notes)
        self.proven = 0
        self.rewind(places)

    def rewind(self, places: Mapping[str, int]) -> None:
        """Go to `places`: what was recorded after them lies ahead again."""
        self._reels = {n: _Reel(places.get(n, 0)) for n in self.names}
        seen = dict.fromkeys(self.names, 0)
        damaged = 0
        for record in read(self.journal.path, self.journal.run):
            if isinstance(record, int):
                damaged += 1
                continue
            if record.kind is Kind.SEGMENT or record.learner >= len(self.names):
                continue
            name = self.names[record.learner]
            seen[name] += 1
            if seen[name] > self._reels[name].place:
                self._reels[name].records.append(record)
        if damaged:
            self.notes.append(f"journal: {damaged} damaged records; steps there cannot be proven")
            self._forget_ahead()
        for name, reel in self._reels.items():
            if seen[name] < reel.place:
                self.notes.append(f"journal: {reel.place - seen[name]} records missing; no proof there")
                reel.place = seen[name]

    def _forget_ahead(self) -> None:
        """With holes in the tape nothing after them can be aligned; go on without proof."""
        for reel in self._reels.values():
            reel.place += reel.ahead
            reel.records, reel.next = [], 0

    @property
    def ahead(self) -> int:
        """Steps that lie ahead and will be compared when they are computed again."""
        steps = (r for reel in self._reels.values() for r in reel.records[reel.next :])
        return sum(1 for r in steps if r is not None and r.kind is Kind.STEP)

    def places(self) -> dict[str, int]:
        """Return the place of each learner, to be saved with a checkpoint."""
        return {name: reel.place for name, reel in self._reels.items()}

    def begin(self, step: int) -> None:
        """Record that a process begins, going on from `step`."""
        self.journal.append(Record(Kind.SEGMENT, step))

    def told(self, learner: str, step: int) -> list[tuple[Event, float]]:
        """Return the events that the tape holds for this learner just ahead, at `step`."""
        reel = self._reels[learner]
        found = []
        for record in reel.records[reel.next :]:
            if record is None or record.kind is not Kind.EVENT or record.step != step:
                break
            found.append((Event(record.code), record.value))
        return found

    def event(self, learner: str, step: int, event: Event, value: float) -> None:
        """Compare or append an event."""
        record = Record(Kind.EVENT, step, self._number(learner), int(event), value=value)
        expected = self._pass(learner, record)
        if expected is not None and expected != record:
            raise self._differs(learner, step, "an event", expected, record)

    def step(self, learner: str, record: Record) -> None:
        """Compare a computed step with the tape, or append it.

        Raises CheckFailed that names the first quantity whose bits differ.
        """
        expected = self._pass(learner, record)
        if expected is None:
            return
        for what in ("kind", "step", "digest", "micro", "seed"):
            if getattr(expected, what) != getattr(record, what):
                raise self._differs(learner, record.step, what, expected, record)
        for what in ("loss", "norm"):
            if float_bits(getattr(expected, what)) != float_bits(getattr(record, what)):
                raise self._differs(learner, record.step, what, expected, record)
        self.proven += 1

    def record(self, learner: str, step: int, **values: float) -> Record:
        """Build a step record of this learner."""
        return Record(Kind.STEP, step, self._number(learner), **values)  # type: ignore[arg-type]

    def _pass(self, learner: str, record: Record) -> Record | None:
        reel = self._reels[learner]
        if reel.ahead:
            return reel.take()
        self.journal.append(record)
        reel.place += 1
        return None

    def _number(self, learner: str) -> int:
        return self.names.index(learner)

    @staticmethod
    def _differs(learner: str, step: int, what: str, was: Record, now: Record) -> CheckFailed:
        names = {"digest": "which examples", "norm": "gradient norm", "loss": "loss"}
        field_ = what if hasattr(was, what) else "value"
        old, new = getattr(was, field_), getattr(now, field_)
        return CheckFailed(
            f"resume is not exact: {names.get(what, what)} of step {step} was {old!r}, is now {new!r}",
            where=f"learner {learner}, first differing step {step}, step record expected {was.step}",
        )

    def sync(self) -> None:
        """Put the journal on the disk."""
        self.journal.sync()

    def close(self) -> None:
        """Sync and close the journal."""
        self.journal.close()
