"""The journal as a tape: compared while old records lie ahead, appended to afterwards."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from surefoot.engine.journal import Event, Kind, read
from surefoot.engine.tape import Tape
from surefoot.errors import CheckFailed

SIZE = 56


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def tape_at(path: Path, places: dict[str, Any], names: Sequence[str] = ("main",)) -> Tape:
    return Tape(path, "run", list(names), places)


def play(tape: Tape, steps: Sequence[int], name: str = "main", **values: Any) -> dict[str, Any]:
    """Take steps whose numbers follow from the step alone; return the places afterwards."""
    for step in steps:
        known = {"micro": 4, "digest": step, "seed": 1, "loss": 1 / step, "norm": 0.5, "state": 7}
        tape.step(name, tape.record(name, step, **known | values))
    return tape.places()


def kinds(path: Path) -> list[tuple[Kind, int]]:
    return [(r.kind, r.step) for _, r in read(path) if r is not None]


def test_what_is_appended_is_compared_the_next_time(path: Path) -> None:
    tape = tape_at(path, {})
    at = play(tape, [1, 2, 3])
    play(tape, [4, 5])
    tape.close()
    again = tape_at(path, at)
    assert again.ahead == 2 and again.proven == 0 and again.notes == []
    play(again, [4, 5, 6])
    assert again.ahead == 0 and again.proven == 2
    again.close()
    assert kinds(path) == [(Kind.STEP, step) for step in range(1, 7)]


@pytest.mark.parametrize(("change", "words"), [
    ({"loss": 0.2500001}, r"loss of step 4 was 0.25 \(bits 3e800000\), is now 0.2500001"),
    ({"loss": math.nan}, "loss of step 4 was 0.25 .* is now nan"),
    ({"norm": -0.5}, "gradient norm of step 4"), ({"digest": 9}, "which examples of step 4"),
    ({"micro": 2}, "examples a pass of step 4"), ({"seed": 2}, "seed of step 4"),
    ({"state": 8}, "state checksum of step 4 was 7, is now 8"),
])  # fmt: skip
def test_the_first_difference_is_named(path: Path, change: dict[str, Any], words: str) -> None:
    tape = tape_at(path, {})
    at = play(tape, [1, 2, 3])
    play(tape, [4])
    tape.close()
    again = tape_at(path, at)
    with pytest.raises(CheckFailed, match=words) as failed:
        play(again, [4], **change)
    assert failed.value.exit_code == 5 and failed.value.where == (
        "learner main, step 4, the first that differs"
    )
    again.close()


def test_events_are_told_and_compared(path: Path) -> None:
    tape = tape_at(path, {})
    at = play(tape, [1])
    tape.event("main", 2, Event.MICRO, 2.0)
    tape.event("main", 2, Event.SKIP, math.nan, norm=math.inf)
    play(tape, [2])
    tape.close()
    again = tape_at(path, at)
    told = again.told("main", 2)
    assert [(r.code, r.value) for r in told[:1]] == [(Event.MICRO, 2.0)]
    assert told[1].code == Event.SKIP and math.isnan(told[1].value) and told[1].norm == math.inf
    assert again.told("main", 3) == []
    for record in told:
        event = Event(record.code)
        assert again.event("main", 2, event, record.value, record.norm) is None
    assert again.told("main", 2) == []
    play(again, [2])
    assert again.proven == 1
    again.close()


def test_an_event_that_was_not_there_differs(path: Path) -> None:
    tape = tape_at(path, {})
    play(tape, [1, 2])
    tape.close()
    again = tape_at(path, {})
    play(again, [1])
    with pytest.raises(CheckFailed, match="an event of step 2 was none, is now SKIP"):
        again.event("main", 2, Event.SKIP, 0.0)
    again.close()


def test_an_event_that_is_missing_differs(path: Path) -> None:
    tape = tape_at(path, {})
    tape.event("main", 1, Event.SKIP, 0.0)
    play(tape, [1])
    tape.close()
    again = tape_at(path, {})
    with pytest.raises(CheckFailed, match="an event of step 1 was SKIP, is now none"):
        play(again, [1])
    again.close()


def test_smaller_pieces_than_told_leave_the_tape_on_a_branch(path: Path) -> None:
    tape = tape_at(path, {})
    at = play(tape, [1])
    play(tape, [2, 3, 4])
    tape.close()
    smaller = tape_at(path, at)
    play(smaller, [2])
    said = smaller.event("main", 3, Event.MICRO, 2.0)
    assert said == "2 recorded steps cannot be compared: they were computed in larger pieces"
    play(smaller, [3, 4, 5], micro=2)
    smaller.close()
    # The next resume follows the branch: it is told of the event, and all is compared.
    third = tape_at(path, at)
    assert third.ahead == 4
    play(third, [2])
    assert [r.value for r in third.told("main", 3)] == [2.0]
    assert third.event("main", 3, Event.MICRO, 2.0) is None
    play(third, [3, 4, 5, 6], micro=2)
    assert third.proven == 4
    third.close()


def test_a_checkpoint_on_a_left_branch_sees_that_branch_alone(path: Path) -> None:
    tape = tape_at(path, {})
    at = play(tape, [1])
    inside = play(tape, [2])
    play(tape, [3])
    tape.close()
    other = tape_at(path, at)
    other.event("main", 2, Event.MICRO, 2.0)
    play(other, [2, 3, 4], micro=2)
    other.close()
    left = tape_at(path, inside)
    assert left.ahead == 1
    play(left, [3, 4])
    left.close()
    assert left.proven == 1
    resumed = tape_at(path, inside)
    assert resumed.ahead == 2, "its continuation is found again"
    resumed.close()


def damage(path: Path, number: int) -> None:
    data = bytearray(path.read_bytes())
    data[number * SIZE + 9] ^= 0x40
    path.write_bytes(data)


def test_damage_before_the_place_does_not_matter(path: Path) -> None:
    tape = tape_at(path, {})
    at = play(tape, [1, 2, 3])
    play(tape, [4, 5])
    tape.close()
    damage(path, 2)
    again = tape_at(path, at)
    assert again.ahead == 2 and again.notes == []
    again.close()


def test_damage_ahead_ends_the_proof_there_and_heals(path: Path) -> None:
    tape = tape_at(path, {})
    at = play(tape, [1])
    play(tape, [2, 3, 4, 5])
    tape.close()
    damage(path, 3)
    again = tape_at(path, at)
    assert again.ahead == 1
    assert again.notes == ["journal: 1 damaged records; not all steps can be compared"]
    play(again, [2, 3, 4, 5, 6])
    assert again.proven == 1
    again.close()
    third = tape_at(path, at)
    assert third.ahead == 5, "the branch around the hole is followed"
    play(third, [2, 3, 4, 5, 6])
    third.close()


@pytest.mark.parametrize("kept", [1, 3])
def test_a_journal_that_ends_before_the_checkpoint_gives_no_proof(path: Path, kept: int) -> None:
    tape = tape_at(path, {})
    early = play(tape, [1, 2])
    late = play(tape, [3, 4, 5])
    tape.close()
    os.truncate(path, (kept + 1) * SIZE)
    again = tape_at(path, late)
    assert again.ahead == 0
    assert again.notes == ["journal: it does not hold what led to the checkpoint"]
    newest = play(again, [6, 7, 8])
    play(again, [9])
    again.close()
    after = tape_at(path, newest)
    assert after.ahead == 1 and after.notes == []
    after.close()
    # The older checkpoint does not mistake the new records for its own.
    older = tape_at(path, early)
    assert older.ahead == (1 if kept == 3 else 0)
    older.close()
    # And the one it was resumed from finds them again, though what led to it is lost.
    same = tape_at(path, late)
    assert same.ahead == 4
    play(same, [6, 7, 8, 9])
    same.close()
    stranger = tape_at(path, {"main": [0, 5, "00112233aabbccdd"]})
    assert stranger.ahead == 0
    stranger.close()


def test_going_back_in_one_process(path: Path) -> None:
    tape = tape_at(path, {})
    at = play(tape, [1, 2])
    play(tape, [3, 4])
    tape.rewind(at)
    assert tape.ahead == 2
    play(tape, [3])
    tape.rewind(at)
    assert tape.proven == 1 and tape.ahead == 2
    play(tape, [3, 4, 5])
    assert tape.proven == 3
    tape.close()
    assert kinds(path) == [(Kind.STEP, step) for step in range(1, 6)]


def test_learners_have_places_of_their_own_and_keep_their_numbers(path: Path) -> None:
    two = tape_at(path, {}, ["m", "z"])
    play(two, [1, 2], "m")
    play(two, [1], "z")
    at = two.places()
    play(two, [3], "m")
    two.close()
    assert {name: place[0] for name, place in at.items()} == {"m": 0, "z": 1}
    three = tape_at(path, at, ["a", "m", "z"])
    assert {name: place[0] for name, place in three.places().items()} == {"a": 2, "m": 0, "z": 1}
    assert three.ahead == 1
    play(three, [1], "a")
    play(three, [3], "m")
    play(three, [2], "z")
    assert three.proven == 1
    three.close()


def test_the_beginning_of_a_process_is_a_record_of_nobody(path: Path) -> None:
    tape = tape_at(path, {})
    tape.begin(0)
    at = play(tape, [1])
    tape.close()
    again = tape_at(path, at)
    again.begin(1)
    play(again, [2])
    again.close()
    third = tape_at(path, {})
    assert third.ahead == 2
    play(third, [1, 2])
    third.close()
    assert kinds(path) == [
        (Kind.SEGMENT, 0), (Kind.STEP, 1), (Kind.SEGMENT, 1), (Kind.STEP, 2),
    ]  # fmt: skip
