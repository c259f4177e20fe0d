"""The journal as a tape: while old records lie ahead they are compared, afterwards appended to.

Each learner has its own place on the tape, saved with every checkpoint. A resume starts at that
place, so the steps since the checkpoint are compared bit for bit with what they gave before, and
events (skips, halved micro-batches, rollbacks) are repeated where they happened.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surefoot.engine.journal import Event, Journal, Kind, Record, float_bits
from surefoot.errors import CheckFailed

__all__ = ["Tape"]

NEAR = 1e-2  # relative difference of two losses that may be rounding, in half precision, too


@dataclass
class _Reel:
    """One learner's part of the tape.

    The next record continues number `last`, which `mark` names. `astray`: the file ends with
    records of this learner that do not continue it, so a BRANCH must come before the next one.
    """

    id: int
    last: int = 0
    known: Record | str = ""  # the record there, or its mark; a mark is made only when asked for
    ahead: deque[tuple[int, Record]] = field(default_factory=deque)
    astray: bool = False
    proven: int = 0
    before: dict[int, Record] = field(default_factory=dict)  # steps that need not be equal in bits
    events: list[Record] = field(default_factory=list)  # among them

    @property
    def mark(self) -> str:
        return self.known if isinstance(self.known, str) else self.known.mark(self.last)

    def take(self) -> Record:
        self.last, record = self.ahead.popleft()
        self.known = record
        return record

    def load(self, records: Iterable[tuple[int, Record | None]]) -> None:
        """Collect what continues `last`, following branches; stop at a hole until one heals it."""
        for number, record in records:
            if record is None:
                self.astray = True
            elif record.learner != self.id or record.kind is Kind.SEGMENT:
                continue
            elif record.kind is Kind.BRANCH:
                self._turn(record)
            elif not self.astray:
                self.ahead.append((number, record))

    def _turn(self, branch: Record) -> None:
        """Drop what the branch does not continue; where it continues nothing of ours, skip it."""
        known = [(self.last, self.mark), *((n, r.mark(n)) for n, r in self.ahead)]
        origins = [_branch(self.id, branch.step, *place) for place in known]
        self.astray = not any(branch.same(origin) for origin in origins)
        while not self.astray and not branch.same(origins.pop()):
            self.ahead.pop()


def _branch(learner: int, step: int, last: int, mark: str) -> Record:
    """The record that says what the next one continues, though other records lie between."""
    return Record(Kind.BRANCH, step, learner, digest=int(mark or "0", 16), value=float(last))


class Tape:
    """The journal at `path`, positioned at `places` (what `places()` returned at a save).

    A learner keeps the number that it got in the journal when it first appeared. Raises
    CheckpointError for a journal of the future, OSError when the disk refuses.
    """

    def __init__(self, path: Path, run: str, names: list[str], places: Mapping[str, Any]) -> None:
        self.names = names
        self.journal = Journal(path, run)
        self.notes = list(self.journal.notes)
        self._before = 0  # steps proven before the last rewind
        self.compared, self.apart = 0, 0.0  # steps that were near, and the largest difference
        self._reels: dict[str, _Reel] = {}
        self.rewind(places)

    def rewind(self, places: Mapping[str, Any]) -> None:
        """Go to `places`: what was recorded after them lies ahead again."""
        self._before = self.proven
        self._reels = self._mount(places)
        # A reel that is astray from the start may find its continuation anywhere.
        begins = {name: 0 if reel.astray else reel.last for name, reel in self._reels.items()}
        records = list(self.journal.records(min(begins.values())))
        damaged = sum(record is None for _, record in records)
        for name, reel in self._reels.items():
            reel.load(r for r in records if r[0] > begins[name])
        if damaged:
            self.notes.append(f"journal: {damaged} damaged records; not all steps can be compared")

    def _mount(self, places: Mapping[str, Any]) -> dict[str, _Reel]:
        reels: dict[str, _Reel] = {}
        used = [int(place[0]) for place in places.values()]
        for name in self.names:
            if name not in places:
                used.append(max(used, default=-1) + 1)
                reels[name] = _Reel(used[-1])
                continue
            number, last, mark = places[name]
            reels[name] = self._place(int(number), int(last), str(mark))
        return reels

    def _place(self, learner: int, last: int, mark: str) -> _Reel:
        """A reel at record `last`, if that is still the record that the checkpoint knew."""
        if last == 0:
            return _Reel(learner)
        found = None
        if 0 < last <= self.journal.count:
            found = next(self.journal.records(last - 1), (0, None))[1]
        if found is not None and found.mark(last) == mark:
            return _Reel(learner, last, mark)
        self.notes.append("journal: it does not hold what led to the checkpoint")
        return _Reel(learner, last, mark, astray=True)

    def loosen(self) -> int:
        """Let what lies ahead be near and not equal, and be written anew; return how many steps.

        Events are repeated all the same. For a run that goes on with another number of processes.
        """
        for reel in self._reels.values():
            steps = [r for _, r in reel.ahead if r.kind is Kind.STEP]
            events = [(n, r) for n, r in reel.ahead if r.kind is Kind.EVENT]
            reel.before = {r.step: r for r in steps}
            reel.astray = reel.astray or bool(reel.ahead)
            reel.events = [r for _, r in events]
            reel.ahead.clear()
        return max(len(reel.before) for reel in self._reels.values())

    @property
    def ahead(self) -> int:
        """Steps that lie ahead and will be compared when they are computed again."""
        counts = [sum(r.kind is Kind.STEP for _, r in x.ahead) for x in self._reels.values()]
        return max(counts)

    @property
    def caught_up(self) -> bool:
        """Whether no step lies ahead any more."""
        reels = self._reels.values()
        loose = any(reel.before for reel in reels)
        return not (loose or any(r.kind is Kind.STEP for x in reels for _, r in x.ahead))

    @property
    def proven(self) -> int:
        """Steps compared so far, all equal; of several learners, those of the one with most."""
        return self._before + max((reel.proven for reel in self._reels.values()), default=0)

    def places(self) -> dict[str, Any]:
        """Return the place of each learner as plain values, to be saved with a checkpoint."""
        return {name: [reel.id, reel.last, reel.mark] for name, reel in self._reels.items()}

    def begin(self, step: int) -> None:
        """Record that a process begins, going on from `step`."""
        self.journal.append(Record(Kind.SEGMENT, step))

    def told(self, learner: str, step: int) -> list[Record]:
        """Return the event records that the tape holds for this learner just ahead, at `step`."""
        reel = self._reels[learner]
        found = [record for record in reel.events if record.step == step]
        for _, record in reel.ahead:
            if record.kind is not Kind.EVENT or record.step != step:
                break
            found.append(record)
        return found

    def events(self) -> dict[tuple[str, int], list[Record]]:
        """Return all event records that lie ahead, by learner and step."""
        found: dict[tuple[str, int], list[Record]] = {}
        for name, reel in self._reels.items():
            for _, record in reel.ahead:
                if record.kind is Kind.EVENT:
                    found.setdefault((name, record.step), []).append(record)
            for record in reel.events:
                found.setdefault((name, record.step), []).append(record)
        return found

    def event(
        self, learner: str, step: int, event: Event, value: float, norm: float = 0.0
    ) -> str | None:
        """Compare or append an event.

        A smaller micro-batch than the tape tells is no failure, for this machine may have less
        memory: the tape is left there, and a sentence about it is returned.
        """
        reel = self._reels[learner]
        record = Record(Kind.EVENT, step, reel.id, int(event), norm=norm, value=value)
        if not reel.ahead:
            self._append(reel, record)
            return None
        if reel.ahead[0][1].same(record):
            reel.take()
            return None
        if event is not Event.MICRO:
            raise _differs(learner, step, "an event", event.name, _name(reel.ahead[0][1]))
        lost = sum(r.kind is Kind.STEP for _, r in reel.ahead)
        reel.ahead.clear()
        reel.astray = True
        self._append(reel, record)
        return f"{lost} recorded steps cannot be compared: they were computed in larger pieces"

    def step(self, learner: str, record: Record) -> None:
        """Compare a computed step with the tape, or append it.

        Raises CheckFailed that names the first quantity whose bits differ.
        """
        reel = self._reels[learner]
        if not reel.ahead:
            if (earlier := reel.before.pop(record.step, None)) is not None:
                self._near(learner, earlier, record)
            self._append(reel, record)
            return
        expected = reel.take()
        if expected.kind is not Kind.STEP:
            raise _differs(learner, record.step, "an event", "none", _name(expected))
        for what in ("step", "digest", "micro", "seed", "value"):
            if getattr(expected, what) != getattr(record, what):
                was, now = int(getattr(expected, what)), int(getattr(record, what))
                raise _differs(learner, record.step, _WORDS.get(what, what), now, was)
        for what in ("loss", "norm"):
            was, now = float_bits(getattr(expected, what)), float_bits(getattr(record, what))
            if was != now:
                raise _differs(
                    learner, record.step, _WORDS[what],
                    f"{getattr(record, what):.9g} (bits {now:08x})",
                    f"{getattr(expected, what):.9g} (bits {was:08x})",
                )  # fmt: skip
        reel.proven += 1

    def _near(self, learner: str, was: Record, now: Record) -> None:
        """Compare two computations of a step that add in another order.

        The first of them begins with the same weights, so its loss must be the same but for rounding;
        what comes after may drift. Raises CheckFailed.
        """
        if was.digest != now.digest:
            raise _differs(learner, now.step, _WORDS["digest"], now.digest, was.digest)
        apart = abs(was.loss - now.loss) / max(abs(was.loss), 1e-30)
        if not self.compared and apart > NEAR:
            raise _differs(learner, now.step, _WORDS["loss"], f"{now.loss:.9g}", f"{was.loss:.9g}")
        self.compared += 1
        self.apart = max(self.apart, apart if apart == apart else 0.0)

    def record(self, learner: str, step: int, **values: Any) -> Record:
        """Build a step record of this learner; see `Record.of_step`."""
        return Record.of_step(step, self._reels[learner].id, **values)

    def _append(self, reel: _Reel, record: Record) -> None:
        if reel.astray:
            self.journal.append(_branch(reel.id, record.step, reel.last, reel.mark))
            reel.astray = False
        reel.last, reel.known = self.journal.append(record), record

    def sync(self) -> None:
        """Put the journal on the disk. Raises OSError when it cannot be."""
        self.journal.sync()

    def close(self) -> None:
        """Sync, as far as the disk allows, and close the journal."""
        self.journal.close()


_WORDS = {
    "digest": "which examples", "norm": "gradient norm", "loss": "loss",
    "micro": "examples a pass", "value": "state checksum",
}  # fmt: skip


def _name(record: Record) -> str:
    return Event(record.code).name if record.kind is Kind.EVENT else "none"


def _differs(learner: str, step: int, what: str, now: object, was: object) -> CheckFailed:
    return CheckFailed(
        f"resume is not exact: {what} of step {step} was {was}, is now {now}",
        where=f"learner {learner}, step {step}, the first that differs",
    )
