"""Writes each step into the journal, and says when a resume is proven."""

from __future__ import annotations

from collections.abc import Callable

from surefoot.engine.loop import Happening, Report
from surefoot.engine.tape import Tape
from surefoot.track.record import Record

__all__ = ["Witness"]


class Witness:
    """Compares steps with the tape or appends them; `digest` names the examples of a step."""

    def __init__(self, tape: Tape, record: Record, digest: Callable[[int], int]) -> None:
        self.tape, self.record, self.digest = tape, record, digest
        self._comparing = not tape.caught_up
        self._warned = False

    def write(self, report: Report) -> None:
        """Put one report on the tape. Raises CheckFailed where its bits differ from before."""
        digest = self.digest(report.step - 1)
        for name, reading in report.readings.items():
            for happening in report.happenings:
                if happening.learner == name:
                    self._event(report.step, happening)
            self.tape.step(
                name,
                self.tape.record(
                    name, report.step, micro=reading.micro, digest=digest, seed=report.seed,
                    loss=reading.loss, norm=reading.grad_norm, state=reading.state,
                ),
            )  # fmt: skip
        if (self._comparing or self.tape.compared) and self.tape.caught_up:
            self.tell()
        if self.tape.journal.behind and not self._warned:
            self._warned = True
            self.record.note("the disk refuses the journal; its records wait in memory", "warning")

    def tell(self) -> None:
        """Say, once, over how many steps this resume is proven."""
        proven, near = self.tape.proven, self.tape.compared
        if self._comparing and proven:
            self.record.note(f"resume proven over {proven} step{'s' * (proven > 1)}")
        if near:
            text = f"{near} step{'s' * (near > 1)} computed again in another order of sums"
            self.record.note(f"{text}: losses differ by {self.tape.apart:.1e} at most")
            self.tape.compared = 0
        self._comparing = False

    def _event(self, step: int, what: Happening) -> None:
        left = self.tape.event(what.learner, step, what.event, what.value, what.norm)
        if left:
            self.record.note(f"step {step}: {left}", "warning")
