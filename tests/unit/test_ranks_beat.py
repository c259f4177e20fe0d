"""Who keeps the others waiting, and how `surefoot top` shows it."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot.config.schema import RunConfig
from surefoot.engine import Job, World
from surefoot.engine.ranks import beat
from surefoot.engine.ranks.beat import behind, slow
from surefoot.engine.ranks.begin import mode
from surefoot.engine.ranks.play import LESSONS, learned, stragglers, teach
from surefoot.engine.ranks.tail import Tail
from surefoot.engine.ranks.team import Team
from surefoot.errors import CheckFailed, Diverged, OutOfResources, Stopped, SurefootError
from surefoot.track.folder import RunFolder
from surefoot.track.ranks import BOARD, lines, read
from surefoot.track.watch import Watch, frame


def beats(*calls: int) -> dict[int, dict[str, Any]]:
    return {
        rank: {"calls": count, "step": 41, "host": "node", "pid": 100 + rank, "time": 0.0}
        for rank, count in enumerate(calls)
    }


def test_who_has_begun_the_least_is_named() -> None:
    said = behind(beats(9, 8, 9), dict.fromkeys(range(3), 0.1), 3, 60)
    assert said == "rank 1 (node, process 101) hangs in step 42 for more than 60 s"


def test_who_does_not_beat_is_named_first() -> None:
    ages = {0: 0.1, 1: 0.2, 2: 30.0}
    assert behind(beats(9, 8, 9), ages, 3, 60).startswith(
        "rank 2 (node, process 102) gives no sign"
    )
    assert behind(beats(9, 8), {0: 0.1, 1: 0.2}, 3, 60).startswith("rank 2 gives no sign of life")


def test_where_all_wait_it_is_the_network() -> None:
    assert "the network between them" in behind(beats(9, 9), {0: 0.1, 1: 0.1}, 2, 60)


@pytest.mark.parametrize(
    ("paces", "found"),
    [([], []), ([1.0], []), ([0.1, 0.1, 0.2], [2]), ([0.1, 0.11], []), ([0.001, 0.004], [])],
)
def test_who_computes_much_longer_is_slow(paces: list[float], found: list[int]) -> None:
    assert slow(paces) == found


def test_a_slow_rank_is_named_ever_more_rarely() -> None:
    team, said = Team(0, 3, 0, torch.device("cpu")), list[str]()
    for _ in range(9):
        team.pace = [0.1, 0.9, 0.1]
        said += stragglers(team)
    assert said[0] == (
        "rank 1 is slow: 900 ms a step until it has nothing to do but to wait, others 100 ms"
    )
    assert [text.partition("; ")[2] for text in said[1:]] == [
        f"so it was {n} times" for n in (2, 4, 8)
    ]
    team.pace = [0.9, 0.1, 0.1]
    assert len(list(stragglers(team))) == 1, "another one is named at once"
    assert team.pace == []


def board(run: Path, count: int, slowest: int, silent: int) -> None:
    found = {
        str(rank): {
            "calls": 9, "step": 41, "time": 100.0 - 60 * (rank == silent), "alone": "",
            "busy": 0.1 + (rank == slowest), "host": "node", "pid": 100 + rank, "device": "cpu",
            "memory": 5_000_000,
        }
        for rank in range(count)
    }  # fmt: skip
    (run / BOARD).write_text(json.dumps({"size": count, "ranks": found}))


def test_top_shows_each_rank(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "charlm", "many", {}, {"max_steps": 400, "segments": []})
    run.update(status="running")
    board(run.path, 3, slowest=1, silent=2)
    with run.lock():
        text = [line.plain for line in frame(Watch(run), 80, 24)]
    shown = [line for line in text if line.startswith("rank ")]
    assert shown[0] == "rank 0  node cpu  step 42, 100 ms  5.0 MB"
    assert "1100 ms" in shown[1] and "silent for 60 s" in shown[2]
    assert [odd for _, odd in lines(read(run.path))] == [False, True, True]


def test_of_very_many_ranks_those_that_stand_out_are_shown(tmp_path: Path) -> None:
    board(tmp_path, 64, slowest=7, silent=40)
    told = [text for text, _ in lines(read(tmp_path))]
    assert told[0] == "64 ranks, 2 of them slow or silent" and len(told) == 3


def test_memory_that_runs_out_twice_at_the_same_step_makes_pieces_smaller(
    tmp_path: Path, toy: Any
) -> None:
    run = RunFolder.create(tmp_path, "charlm", "short", {}, {})
    job = Job(toy, {"main": toy.learner(micro=8)})
    error = OutOfResources("short")
    teach(run, error)  # another shortage, of which nothing is to be learned
    error.__dict__["lesson"] = {"step": 5, "micro": 8}
    for times, micro in ((1, 8), (2, 4), (3, 4)):
        teach(run, error)
        job.learners["main"].micro = 8
        said = list(learned(run, job))
        assert job.learners["main"].micro == micro and len(said) == (times > 1)
    assert said == ["main: out of memory twice at 8 examples a pass, so 4 from here"]
    with (run.path / LESSONS).open("a") as file:
        file.write('{"step": 5, "mi')  # killed while it was written
    teach(run, error)
    job.learners["main"].micro = 8
    assert list(learned(run, job)) == said


@pytest.mark.parametrize("text", ["", "{", "[]", '{"ranks": {}}', '{"ranks": {"0": 1}}'])
def test_a_board_that_is_broken_shows_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / BOARD).write_text(text)
    assert read(tmp_path) == [] and list(lines([])) == []


def test_rank_0_may_take_its_time_alone_as_long_as_it_beats() -> None:
    watch = beat.Watch(Team(1, 2, 1, torch.device("cpu")), 60.0)
    told = {0: {"alone": "evaluating"}}
    watch._seen = {0: (1.0, 100.0)}  # heard at 100
    assert watch._alone(told, 150.0) and not watch._alone(told, 161.0)
    assert not watch._alone({0: {"alone": ""}}, 100.0) and not watch._alone({}, 100.0)


def test_the_rank_with_the_least_room_decides_how_weights_are_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    team = Team(0, 3, 0, torch.device("cpu"))
    monkeypatch.setattr(team, "gather", lambda _: [("a", 8_000), ("a", 9_000), ("b", 2_000)])
    world = World(team.device, team)
    assert mode(RunConfig(), world, 1_600)[0] == "ddp"
    assert mode(RunConfig(), world, 1_601)[0] == "fsdp2", "rank 0 alone would take a replica"
    sizes = [24_000_000_000, 8_000_000_000, 24_000_000_000]
    monkeypatch.setattr(team, "gather", lambda _: [(str(n), size) for n, size in enumerate(sizes)])
    how, why = mode(RunConfig(), world, 7_000_000_000)
    assert how == "fsdp2" and "8.0 GB on rank 1, the least; others have up to 24.0 GB" in why
    monkeypatch.setattr(team, "gather", lambda _: [(str(n), 8_000_000_000) for n in range(3)])
    assert mode(RunConfig(), world, 7_000_000)[1] == "a replica takes 7 MB of 8.0 GB a device"


def test_nothing_keeps_a_process_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    closed, codes = io.StringIO(), list[int]()
    closed.close()  # as when the terminal is gone
    team = Team(0, 2, 0, torch.device("cpu"))
    watch = beat.Watch(team, 1.0, end=codes.append)
    monkeypatch.setattr(sys, "stderr", closed)
    watch._give_up({})
    monkeypatch.undo()
    assert codes == [1]


class Store(dict[str, Any]):
    """What the store at torchrun's address does, in memory."""

    def compare_set(self, key: str, expected: str, wanted: str) -> bytes:
        return bytes(self.setdefault(key, wanted.encode()))

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)


def watch_of(rank: int, store: Any, codes: list[int] | None = None) -> Any:
    end = (lambda _: None) if codes is None else codes.append
    watch = beat.Watch(Team(rank, 3, rank, torch.device("cpu")), 1.0, end=end)
    watch._store = store
    return watch


def test_a_code_and_words_are_told_whatever_a_rank_ended_with() -> None:
    errors = (
        (SystemExit("in words"), 1, ""), (SystemExit(3), 3, ""), (KeyboardInterrupt(), 130, ""),
        (OutOfResources("x"), 4, "x"), (ValueError("y"), 1, "ValueError: y"), (75, 75, ""),
    )  # fmt: skip
    for error, code, text in errors:
        told = watch_of(1, Store()).fail(error)
        assert (told.rank, told.code, told.text) == (1, code, text)


def test_who_fails_first_decides_how_all_end(monkeypatch: pytest.MonkeyPatch) -> None:
    store, codes = Store(), list[int]()
    first = CheckFailed("the journal differs", where="step 7")
    watch_of(1, store).fail(first)
    assert watch_of(2, store).fail(SurefootError("another rank is gone")).code == 5
    follower = watch_of(0, store, codes)
    said = follower.gone("Connection closed by peer")
    assert said.exit_code == 5 and str(said).startswith("rank 1 of 3 (")
    assert "failed: the journal differs\n  where: step 7" in str(said)
    monkeypatch.setattr(beat, "GRACE", 0.0)
    monkeypatch.setattr(beat, "LEAVE", 0.0)
    follower._follow()
    watch_of(1, store, codes)._follow()
    assert codes == [5], "those that do not end by themselves, and not the one that failed"
    with follower.during(1.0, lambda _: None, None):
        pass
    follower._follow()
    assert codes == [5], "rank 0 may take its time for the report of a run that is over"


def test_a_rank_whose_launcher_is_gone_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append(number))
    watch, parent = watch_of(1, Store()), os.getppid()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert watch._orphaned(parent + 1) == parent and sent == [], (
        "started by a script that has ended"
    )
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "r")
    assert watch._orphaned(parent) == parent and sent == []
    assert watch._orphaned(parent + 1) == parent and sent == [signal.SIGTERM]


def test_what_would_come_again_is_marked_so() -> None:
    store = Store()
    watch_of(2, store).fail(Diverged("10 non-finite steps in a row"))
    said = watch_of(1, store).gone("Broken pipe")
    assert said.exit_code == 1 and said.final
    watch_of(0, other := Store()).fail(75)
    assert isinstance(watch_of(1, other).gone("Broken pipe"), Stopped)


def test_who_is_gone_is_named_by_those_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beat, "SILENT", 30.0)
    monkeypatch.setattr(beat, "BEAT", 0.01)
    for rank, dead, speaks in ((0, 2, False), (1, 0, True), (2, 0, False)):
        watch = watch_of(rank, Store())
        watch._beats = beats(9, 9, 9)
        now = time.monotonic()
        watch._seen = {r: (1.0, now - 60.0 * (r == dead)) for r in range(3)}
        said = watch.gone("Connection reset by peer")
        name = f"rank {dead} (node, process {100 + dead}) is gone: Connection reset by peer"
        assert said.what == name
        assert getattr(said, "speaks", False) is speaks, "the lowest speaks where rank 0 cannot"
    monkeypatch.setattr(beat, "SILENT", 0.0)
    assert "its store cannot be reached" in str(watch_of(1, None).gone("Timed out"))


def test_numbers_of_a_step_travel_without_fp64_on_the_device() -> None:
    team = Team(0, 1, 0, torch.device("mps"))
    tail = Tail(team, 1)
    tail.send(0, 3, torch.tensor(7), [[torch.tensor(1.5), torch.tensor(0.25)]], 1)
    told = tail.told()
    assert (told.weight, told.states, told.values.tolist()) == (3, [7], [[1.5, 0.25]])
