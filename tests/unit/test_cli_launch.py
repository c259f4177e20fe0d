"""What processes of a group leave for the one that launched them."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest
from torch.distributed import TCPStore
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from surefoot.cli import launch, main
from surefoot.cli.launch import _apart, _ended
from surefoot.errors import Diverged, Stopped
from surefoot.track import exits
from surefoot.track.exits import NOTES, note


def left(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_code_that_ended_an_earlier_start_does_not_outlive_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(NOTES, str(tmp_path))
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "3")
    assert note(1) == 1 and note(5) == 0, "1 is tried again"
    assert left(tmp_path) == {"1": "5"}
    monkeypatch.setenv("RANK", "2")  # begun again, it may have another
    assert main(["--version"]) == 0 and left(tmp_path) == {}
    assert main(["train", "no-such-recipe"]) == 0 and left(tmp_path) == {"1": "2"}


def test_what_is_no_code_is_no_note(tmp_path: Path) -> None:
    """A process may be killed while it writes."""
    for name, text in (("0", ""), ("2", "75"), ("10", "5"), ("3.new", "2"), ("4", "7x")):
        (tmp_path / name).write_text(text)
    assert exits.left(tmp_path) == [75, 5]


def test_who_ended_before_it_came_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exits.missed() == {} and not exits.told(), "nobody launched this process"
    monkeypatch.setenv(NOTES, str(tmp_path))
    for place, comes in ((0, False), (1, True), (2, False)):
        monkeypatch.setenv("LOCAL_RANK", str(place))
        if comes:
            exits.came()
        note(75)
    assert exits.missed() == {0: 75, 2: 75}
    monkeypatch.setenv("LOCAL_RANK", "1")
    exits.afresh()
    note(2)
    assert exits.missed() == {0: 75, 1: 2, 2: 75}, "begun again, it has not come yet"


def test_what_a_launcher_is_told_its_processes_hear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NOTES, str(tmp_path))
    assert not exits.told()
    exits.tell(tmp_path)
    assert exits.told() and exits.left(tmp_path) == [], "it is no code"
    exits.tell(tmp_path / "gone")  # the group has ended meanwhile: nobody is left to hear it


def test_a_launcher_that_was_told_to_stop_is_obeyed_by_who_begins_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a process that hears it, the launcher ends; processes that begin later find it."""
    monkeypatch.setattr(psutil.Process, "children", lambda _: [])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped by SIGTERM"), launch._passed_on(tmp_path):
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), launch._passed_on(tmp_path):
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.setenv(NOTES, str(tmp_path))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr("surefoot.cli.train.run", lambda *_: pytest.fail("it began"))
    assert main(["train", "charlm"]) == 0 and exits.left(tmp_path) == [75]


def test_an_error_that_would_come_again_is_final_whatever_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(NOTES, str(tmp_path))
    monkeypatch.setenv("RANK", "0")

    def diverge(verb: str, words: list[str]) -> int:
        raise Diverged("10 non-finite steps in a row")

    monkeypatch.setattr("surefoot.cli.train.run", diverge)
    assert main(["train", "charlm"]) == 0 and left(tmp_path) == {"0": "1"}


@pytest.mark.parametrize(
    ("found", "noted", "told", "code"),
    [
        (0, [], False, 0),
        (0, [5, 5], False, 5),
        (0, [75, 75], False, 75),  # a signal to one of them
        (1, [75], False, 1),  # torchrun stopped it, because another was killed
        (1, [75], True, 75),
        (1, [], True, 75),
        (1, [75, 2], False, 2),
        (0, [75, 2], False, 2),  # rank 0 stopped, because another would not come
        (4, [], False, 4),
    ],
)
def test_the_code_of_a_group(found: int, noted: list[int], told: bool, code: int) -> None:
    assert _ended(found, noted, told) == code


@pytest.mark.parametrize(
    ("ended", "code"), [(-signal.SIGTERM, 75), (-signal.SIGKILL, 1), (-signal.SIGSEGV, 1), (4, 4)]
)
def test_a_rank_that_is_told_to_stop_before_it_listens_is_stopped(ended: int, code: int) -> None:
    """Python has no handler of ours in the first third of a second of a process."""
    first = ProcessFailure(local_rank=1, pid=7, exitcode=ended, error_file="<N/A>")
    first.timestamp = 1

    def start(*words: str) -> None:
        raise ChildFailedError("surefoot", {1: first})

    found = launch._run(start, ["train", "charlm"], {}, list)
    assert found == code and _ended(found, [75], False) == code


def test_machines_that_do_not_meet_are_told_by_name() -> None:
    group = {"min_nodes": 3, "rdzv_configs": {"join_timeout": 60}}
    assert _apart(TimeoutError(), group, ["a", "b"]) == "of 3 machines only a, b came within 60 s"
    assert _apart(TimeoutError(), group, []) == "not all of 3 came within 60 s"
    assert _apart(ConnectionError("refused\nframes"), group, ["a"]) == "refused"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rdzv-endpoint", "here"], "--rdzv-endpoint here: expected HOST:PORT"),
        (["--rdzv-endpoint", ":29400"], "--rdzv-endpoint :29400: expected HOST:PORT"),
        (["--rdzv-endpoint", "here:99999"], "--rdzv-endpoint here:99999: expected HOST:PORT"),
        (["--rdzv-endpoint", "he re:1"], "--rdzv-endpoint he re:1: expected HOST:PORT"),
        (["--nnodes", "2:1"], "--nnodes 2:1: expected a number, or a range like 1:2"),
        (["--nnodes", "0:1"], "--nnodes 0:1: expected a number, or a range like 1:2"),
        (["--max-restarts", "-1"], "--max-restarts -1: expected 0 or more"),
        (["--hang-timeout", "0s"], "machine.hang_timeout: expected a time longer than 0"),
    ],
)
def test_what_torchrun_would_stumble_over_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ["--preset", "tiny", "--devices", "2", "--nnodes", "2", "--rdzv-endpoint", "here:29400"]
    assert main(["train", "charlm", *usual, *words]) == 2
    assert said in capsys.readouterr().err


def test_a_program_that_listens_and_never_answers_ends_the_launcher(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = threading.Event()
    codes: list[int] = []
    monkeypatch.setattr(launch, "_STORE", 0.3)
    monkeypatch.setattr(launch, "_exit", lambda code: (codes.append(code), ended.set()))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        with launch._announced(place) as came:
            assert ended.wait(600) and codes == [2] and came() == []
    assert f"another program listens at {place}" in capsys.readouterr().err


def test_who_meets_leaves_a_name() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with launch._announced(f"127.0.0.1:{store.port}") as came:
        end = time.monotonic() + 600
        while not came() and time.monotonic() < end:
            time.sleep(0.01)
        assert came() == [socket.gethostname()]
