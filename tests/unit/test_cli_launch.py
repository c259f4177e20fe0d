"""What processes of a group leave for the one that launched them."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from surefoot.cli import launch, main
from surefoot.cli.launch import _apart, _ended
from surefoot.errors import Diverged
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
        (4, [], False, 4),
    ],
)
def test_the_code_of_a_group(found: int, noted: list[int], told: bool, code: int) -> None:
    assert _ended(found, noted, told) == code


def test_machines_that_do_not_meet_are_told_by_name() -> None:
    group = {"min_nodes": 3, "rdzv_configs": {"join_timeout": 60}}
    assert _apart(TimeoutError(), group, ["a", "b"]) == "of 3 machines only a, b came within 60 s"
    assert _apart(TimeoutError(), group, []) == "not all of 3 came within 60 s"
    assert _apart(ConnectionError("refused\nframes"), group, ["a"]) == "refused"


def test_an_endpoint_without_a_port_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--preset", "tiny", "--devices", "2", "--nnodes", "2", "--rdzv-endpoint", "here"]
    assert main(["train", "charlm", *words]) == 2
    assert "--rdzv-endpoint here: expected HOST:PORT" in capsys.readouterr().err


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
            assert ended.wait(30) and codes == [2] and came() == []
    assert f"another program listens at {place}" in capsys.readouterr().err


def test_who_meets_leaves_a_name() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with launch._announced(f"127.0.0.1:{store.port}") as came:
        end = time.monotonic() + 30
        while not came() and time.monotonic() < end:
            time.sleep(0.01)
        assert came() == [socket.gethostname()]
