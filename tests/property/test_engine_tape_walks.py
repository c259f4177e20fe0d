"""Random lives of a run: whatever happens to it, honest work never fails its own proof."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.engine.journal import Event
from surefoot.engine.tape import Tape

SIZE = 56
LAST = 40

# One process: which checkpoint it goes on from (0 the newest), how many steps it lives, in which
# of them memory runs out, after how many steps it saves; and what happens to the file afterwards.
processes = st.tuples(
    st.integers(0, 2), st.integers(1, 15), st.sets(st.integers(1, LAST), max_size=2),
    st.integers(1, 5), st.sampled_from(["nothing", "flip", "cut", "lose"]), st.floats(0, 1),
)  # fmt: skip


class Life:
    """A run of one learner whose numbers depend on the step and the micro-batch alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.saved: list[tuple[int, int, dict[str, Any]]] = [(0, 8, {})]
        self.harmed = False

    def process(self, back: int, count: int, short: set[int], every: int) -> None:
        start, micro, places = self.saved[max(0, len(self.saved) - 1 - back)]
        del self.saved[max(1, len(self.saved) - back) :]
        tape = Tape(self.path, "run", ["main"], places)
        ahead = tape.ahead
        assert self.harmed or not tape.notes
        for step in range(start + 1, min(start + count, LAST) + 1):
            micro = self.step(tape, step, micro, step in short)
            if step % every == 0:
                self.saved.append((step, micro, tape.places()))
        taken = min(start + count, LAST) - start
        assert short or self.harmed or tape.proven == min(ahead, taken), "all of it was compared"
        tape.close()

    def step(self, tape: Tape, step: int, micro: int, short: bool) -> int:
        for record in tape.told("main", step):
            assert record.code == Event.MICRO and (self.harmed or record.value < micro)
            micro = int(record.value)
            tape.event("main", step, Event.MICRO, micro)
        if short and micro > 1:
            micro //= 2
            tape.event("main", step, Event.MICRO, micro)
        values = {"micro": micro, "digest": step, "seed": step, "loss": step / micro, "norm": 1.0}
        tape.step("main", tape.record("main", step, state=step * micro, **values))
        return micro

    def harm(self, how: str, where: float) -> None:
        """Damage the journal between two processes."""
        size = self.path.stat().st_size
        self.harmed |= how != "nothing"
        if how == "flip" and size > SIZE:
            data = bytearray(self.path.read_bytes())
            data[SIZE + int(where * (size - SIZE - 1))] ^= 4
            self.path.write_bytes(data)
        elif how == "cut":
            os.truncate(self.path, int(where * size))
        elif how == "lose":
            self.path.unlink()


@settings(max_examples=150, deadline=None)
@given(st.lists(processes, min_size=2, max_size=8))
def test_an_honest_run_never_fails_its_proof(lives: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        life = Life(Path(folder) / "journal")
        for back, count, short, every, harm, where in lives:
            life.process(back, count, short, every)
            life.harm(harm, where)


@settings(max_examples=80, deadline=None)
@given(st.lists(processes, min_size=2, max_size=8))
def test_without_damage_events_are_never_forgotten(lives: list[Any]) -> None:
    """Then the micro-batch of a step never grows again, in whatever process it is computed."""
    with tempfile.TemporaryDirectory() as folder:
        life = Life(Path(folder) / "journal")
        smallest = dict.fromkeys(range(LAST + 1), 8)
        for back, count, short, every, _, _ in lives:
            life.process(back, count, short, every)
            for step, micro, _ in life.saved:
                assert micro <= smallest[step]
                smallest[step] = micro
