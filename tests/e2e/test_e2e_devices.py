"""One run in two processes, as a person starts it: stopped, killed, and taken up by another number."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

TOY = Path(__file__).resolve().parents[1] / "crash" / "toy.py"
TEXT = Path(__file__).resolve().parents[1] / "fixtures" / "shakespeare.txt"
RECORD = 56  # bytes of a record in the journal
PATIENCE = 600.0  # seconds until a test gives up
QUIET = ["--validate_every", "0", "--sample_every", "0", "--no-report", "--no-tensorboard"]
SMALL = [
    "--preset",
    "tiny",
    "--data.path",
    str(TEXT),
    "--micro-batch-size",
    "2",
    "--compile",
    "off",
    *QUIET,
]


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "surefoot", *words], env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def run(*words: str) -> tuple[int, str]:
    process = start(*words)
    output, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, output


def until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < end, "it does not come that far"
        time.sleep(0.02)


def ranks(process: subprocess.Popen[str]) -> list[Any]:
    found = [c for c in psutil.Process(process.pid).children() if "RANK" in c.environ()]
    return sorted(found, key=lambda child: int(child.environ()["RANK"]))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for runs. Whatever ends a group, it leaves no temporary folder but torch's cache."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setenv("SUREFOOT_RUNS", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(place))
    yield tmp_path
    assert [p.name for p in place.iterdir() if not p.name.startswith("torchinductor_")] == []


def steps(run: Path) -> int:
    journal = run / "journal"
    return journal.stat().st_size // RECORD - 2 if journal.exists() else 0


def test_a_signal_to_one_rank_stops_all_and_one_process_goes_on(runs: Path, surefoot: Any) -> None:
    process = start(
        "train", "charlm", *SMALL, "--devices", "2", "--name", "a", "--max-steps", "999999"
    )
    board = runs / "a" / "ranks.json"
    until(lambda: steps(runs / "a") > 20 and board.exists(), process)
    assert json.loads(board.read_text())["size"] == 2
    ranks(process)[1].send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, output
    assert output.count("stopped by SIGTERM after step") == 1, output
    meta = json.loads((runs / "a" / "run.json").read_text())
    step = meta["step"]
    assert meta["segments"][0]["ranks"] == 2 and meta["segments"][0]["parallel"] == "ddp"
    resumed = surefoot("resume", "a", "--devices", "1", "--max-steps", step + 3).ok().out
    assert "trained by 2 processes so far, by 1 process from here" in resumed
    surefoot("sample", "a", "--prompt", "the", "--tokens", "5").ok()


def listens(process: Any) -> bool:
    """Whether a process has a handler for SIGTERM by now."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) & 1 << (signal.SIGTERM - 1))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_rank_that_is_told_to_stop_before_it_came_ends_all(runs: Path) -> None:
    process = start("train", "charlm", *SMALL, "--devices", "2", "--max-steps", "999999")
    until(lambda: len(ranks(process)) == 2, process)
    victim = ranks(process)[1]
    until(lambda: listens(victim), process)
    victim.terminate()
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, output
    assert "was told to stop" in output and "the same command goes on" in output


@pytest.mark.slow
def test_a_killed_rank_begins_again_and_the_resume_is_proven(runs: Path) -> None:
    process = start(
        "train", "charlm", *SMALL, "--devices", "2", "--name", "b", "--max-steps", "999999",
        "--save_every", "20", "--max-restarts", "1", "--reduce", "tree",
    )  # fmt: skip
    until(lambda: steps(runs / "b") > 50, process)
    victim = ranks(process)[1]
    victim.kill()
    log = runs / "b" / "log.txt"
    until(lambda: "resume proven over" in log.read_text(), process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, output
    assert "stopped by SIGINT after step" in output
    assert f"error: rank 1 ({socket.gethostname()}, process {victim.pid}) is gone: " in output
    code, output = run("resume", "b", "--devices", "3", "--max-steps", str(steps(runs / "b") + 2))
    assert code == 0, output
    assert "the same bits (reduce=tree)" in output


def test_mistakes_are_said_once_and_keep_their_codes(runs: Path) -> None:
    code, output = run("train", "charlm", *SMALL, "--devices", "8")
    assert code == 2, output
    assert output.count("more ranks than micro-batches: 8 ranks cannot share 4") == 1, output
    assert "help: --micro-batch-size 1, or fewer devices" in output
    assert not list(runs.glob("0*")), "nothing is created"
    code, output = run("train", "charlm", *SMALL, "--devices", "2", "--nnodes", "2")
    assert code == 2 and "--rdzv-endpoint" in output


FAULTY = """

_sound = loss


def loss(model, batch):
    import os
    from pathlib import Path

    from surefoot.errors import CheckFailed

    found = _sound(model, batch)
    if os.environ.get("RANK") == "1":
        with Path(__file__).with_name("failed").open("a") as file:
            file.write("failed\\n")
        raise CheckFailed("the numbers of this machine are not to be trusted", fix="mend it")
    return found
"""


def test_what_would_come_again_on_one_rank_is_not_tried_again(runs: Path) -> None:
    recipe = runs / "faulty.py"
    recipe.write_text(TOY.read_text(encoding="utf-8") + FAULTY, encoding="utf-8")
    words = ["train", str(recipe), "--devices", "2", "--max-restarts", "3", "--name", "f"]
    code, output = run(*words)
    assert code == 5, output
    assert (runs / "failed").read_text() == "failed\n", "once"
    said = "failed: the numbers of this machine are not to be trusted"
    assert output.count(said) == 1 and "error: rank 1 of 2 (" in output, output
    meta = json.loads((runs / "f" / "run.json").read_text())
    assert len(meta["segments"]) == 1


@pytest.mark.slow
def test_a_rank_that_is_halted_is_named(runs: Path) -> None:
    process = start(
        "train", "charlm", *SMALL, "--devices", "2", "--name", "c", "--max-steps", "999999",
        "--hang-timeout", "3s",
    )  # fmt: skip
    until(lambda: steps(runs / "c") > 20, process)
    halted = ranks(process)[1]
    halted.suspend()
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, output
    assert f"process {halted.pid}) gives no sign of life any more" in output


@pytest.mark.slow
def test_split_weights_are_written_by_all_and_read_by_one(runs: Path) -> None:
    words = [
        *SMALL,
        "--devices",
        "2",
        "--name",
        "d",
        "--parallel",
        "fsdp2",
        "--keep.sharded",
        "yes",
    ]
    code, output = run("train", "charlm", *words, "--d-model", "64", "--max-steps", "12")
    assert code == 0, output
    last = max((runs / "d" / "checkpoints").glob("step-*"))
    assert (last / "main.1of2.model.safetensors").is_file()
    code, output = run("verify", "d")
    assert code == 0, output
    code, output = run("sample", "d", "--prompt", "the", "--tokens", "5")
    assert code == 0, output
    code, output = run("export", "d", "--to", "pt", "--out", str(runs / "d.pt"))
    assert code == 0 and (runs / "d.pt").stat().st_size > 0, output
    more = ["--max-steps", "15", "--parallel", "ddp", "--devices", "2"]
    code, output = run("resume", "d", *more)
    assert code == 0 and "ddp (asked for)" in output, output
