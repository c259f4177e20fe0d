"""A sweep that is killed twice loses nothing: the same trials with the same values come of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.mortal import mortal

from surefoot.track.lock import holder

TEXT = Path(__file__).resolve().parents[1] / "fixtures" / "shakespeare.txt"
SETTINGS = [
    "--path", str(TEXT), "--device", "cpu", "--precision", "fp32", "--threads", "1", "--matmul",
    "default", "--compile", "off", "--attention", "sdpa", "--cross-entropy", "reference", "--norm",
    "fused", "--rotary", "fused", "--swiglu", "reference", "--keyed-dropout", "table",
    "--micro-batch-size", "8", "--prefetch-threads", "0", "--warmup-steps", "2", "--max-steps",
    "40", "--log-every", "10", "--validate-every", "20", "--sample-every", "0", "--save-every", "5",
    "--no-track.tensorboard", "--no-track.report",
]  # fmt: skip
PATIENCE = 600.0  # seconds until a test gives up


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "surefoot", "sweep", *words]


def wait_for(what: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def killed(words: list[str], marker: Path, place: Path) -> None:
    """Start a command that dies with its worker, which trains the run in `place`."""
    marker.touch()
    done = subprocess.run(words, stdout=subprocess.DEVNULL, check=False)
    assert done.returncode == -signal.SIGKILL and not marker.exists()
    wait_for(lambda: holder(place) is None)
    meta = json.loads((place / "run.json").read_text(encoding="utf-8"))
    assert meta["status"] == "running", "it died in the middle"


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # nobody may have asked how it ended
    except psutil.NoSuchProcess:
        return False


def journal(run: Path) -> int:
    try:
        return (run / "journal").stat().st_size
    except OSError:
        return 0


def results(runs: Path, name: str) -> list[dict[str, Any]]:
    words = command("show", name, "--runs", str(runs), "--json")
    found = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    keys = ("trial", "state", "settings", "values", "step")
    return [{key: trial[key] for key in keys} for trial in found["trials"]]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("SUREFOOT_STORAGE", raising=False)
    return tmp_path / "runs"


@pytest.mark.parametrize("kind", ["files", pytest.param("database", marks=pytest.mark.slow)])
def test_killed_twice_it_loses_nothing(runs: Path, tmp_path: Path, kind: str) -> None:
    if kind == "database":
        pytest.importorskip("optuna")
        draw = ["--search", "3", "--space", "lr=1e-4..1e-2", "--prune", "off"]
    else:
        draw = ["--grid", "lr=1e-2,1e-3,1e-4"]
    recipe, marker = mortal(tmp_path, parent=True)
    first = command(str(recipe), "--preset", "tiny", *SETTINGS)
    start = [*first, *draw, "--runs", str(runs), "--name"]
    subprocess.run([*start, "whole"], check=True, stdout=subprocess.DEVNULL)
    place = runs / "sweeps" / "cut" / "runs"
    killed([*start, "cut"], marker, place / "trial-001")
    resume = command("resume", "cut", "--runs", str(runs))
    killed(resume, marker, place / "trial-002")
    done = json.loads((place / "trial-001" / "run.json").read_text(encoding="utf-8"))
    assert done["status"] == "done" and len(done["segments"]) == 2, "it was gone on with"
    subprocess.run(resume, check=True, stdout=subprocess.DEVNULL)
    assert results(runs, "cut") == results(runs, "whole")
    assert len(list(place.iterdir())) == 3


def test_workers_end_when_their_parent_is_killed(runs: Path) -> None:
    start = command("charlm", "--preset", "tiny", *SETTINGS, "--grid", "lr=1e-2,1e-3", "--runs")
    words = [*start, str(runs), "--name", "cut", "--max-steps", "100000"]
    place = runs / "sweeps" / "cut" / "runs" / "trial-001"
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as parent:
        wait_for(lambda: journal(place) > 1000)
        workers = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    assert workers
    wait_for(lambda: not any(map(lives, workers)))
    assert json.loads((place / "run.json").read_text(encoding="utf-8"))["status"] == "stopped"


def test_a_trial_that_kills_its_processes_fails_and_the_sweep_goes_on(
    runs: Path, tmp_path: Path
) -> None:
    """A recipe that kills the process it runs in, for one of two points."""
    recipe = tmp_path / "deadly.py"
    recipe.write_text(
        "import os, signal\n"
        "from dataclasses import replace\n"
        "from surefoot.recipes import find\n"
        "charlm = find('charlm')\n"
        "def build(config, world):\n"
        "    if config.model.d_ff == 48:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return charlm.build(config, world)\n"
        "recipe = replace(charlm, name='deadly', build=build)\n",
        encoding="utf-8",
    )
    words = command(str(recipe), "--preset", "tiny", *SETTINGS, "--grid", "d_ff=48,64", "--runs")
    told = subprocess.run([*words, str(runs)], check=True, capture_output=True, text=True)
    assert "trial 1: its process died of SIGKILL; it is tried again" in told.stderr
    assert "trial 1 failed: its process died of SIGKILL, 2 times" in told.stderr
    assert [t["state"] for t in results(runs, "last")] == ["done", "failed"]
