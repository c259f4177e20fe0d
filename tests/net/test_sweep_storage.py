"""Several workers and one storage: a killed worker's trial is taken up where its checkpoint is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import PINS, QUICK, TEXT
from tests.mortal import mortal
from tests.net.postgres import postgres

FIXED = [word for name, value in (PINS | QUICK).items() for word in (f"--{name}", str(value))]
STEPS, PATIENCE = 80, 600.0  # seconds until a test gives up
SETTINGS = [
    "--preset", "tiny", "--path", str(TEXT), "--max-steps", str(STEPS), *FIXED,
    "--save-every", "5", "--validate-every", "40", "--workers", "0", "--name", "s",
]  # fmt: skip
OTHER_HOST = ("unshare", "--uts", "sh", "-c", 'hostname other && exec "$@"', "sh")


@pytest.fixture(params=["journal", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("optuna")
    if request.param == "journal":
        yield f"journal:///{tmp_path}/shared/sweep.journal"
        return
    with postgres() as url:
        yield url


def run(*words: str, runs: Path, before: tuple[str, ...] = (), **more: str) -> Any:
    return subprocess.Popen(
        [*before, sys.executable, "-m", "surefoot", *words, "--runs", str(runs)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **more}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def said(process: Any) -> str:
    out: str = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, out
    return out


Here = Callable[..., str]


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str]) -> Here:
    """Runs a command in this process, which has imported everything already."""
    from surefoot.cli import main

    def call(*words: str, runs: Path) -> str:
        capfd.readouterr()
        code = main([*words, "--runs", str(runs)])
        captured = capfd.readouterr()
        assert code == 0, captured.out + captured.err
        return captured.out

    return call


def trials(here: Here, runs: Path, *storage: str) -> list[dict[str, Any]]:
    told = here("sweep", "show", "s", "--json", *storage, runs=runs)
    found: list[dict[str, Any]] = json.loads(told)["trials"]
    return sorted(found, key=lambda trial: trial["trial"])


def killed_and_taken_up(
    here: Here, storage: str, runs: Path, before: tuple[str, ...] = (), **more: str
) -> None:
    """Kill one of two workers in the middle of a trial; the other one ends them all."""
    recipe, marker = mortal(runs.parent)
    sweep = ["sweep", str(recipe), *SETTINGS, "--grid", "lr=1e-2,1e-3"]
    here(*sweep, "--storage", storage, runs=runs)
    work = ["sweep", "work", "s", "--storage", storage]
    marker.touch()
    first = run(*work, runs=runs, before=before, **more)
    out = first.communicate(timeout=PATIENCE)[0]
    assert first.returncode == -signal.SIGKILL and not marker.exists(), out
    trial = runs / "sweeps" / "s" / "runs" / "trial-001"
    at = json.loads((trial / "run.json").read_text())
    assert at["status"] == "running" and not at["step"], "it died in the middle"
    told = said(run(*work, runs=runs, **more))
    assert "goes on with trial-001" in told

    found = trials(here, runs, "--storage", storage)
    assert [trial["state"] for trial in found] == ["done"] * 2
    segments = []
    for number in (1, 2):
        folder = runs / "sweeps" / "s" / "runs" / f"trial-{number:03d}"
        meta = json.loads((folder / "run.json").read_text())
        segments.append(len(meta["segments"]))
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        steps = [row["step"] for row in rows if row["kind"] == "train"]
        assert steps == list(range(1, STEPS + 1)), "each step once"
        assert meta["status"] == "done"
    assert segments == [2, 1], "nothing was done twice"
    assert json.loads((trial / "run.json").read_text())["segments"][1]["step"] >= 10

    # The same as a sweep that nobody disturbed.
    alone = runs.parent / "alone"
    here(*sweep, runs=alone)
    here("sweep", "work", "s", runs=alone)
    calm = trials(here, alone)
    assert [trial["values"] for trial in found] == [trial["values"] for trial in calm]


def test_a_killed_workers_trial_is_taken_up(here: Here, storage: str, tmp_path: Path) -> None:
    killed_and_taken_up(here, storage, tmp_path / "runs")


@pytest.mark.slow
def test_of_a_worker_on_another_machine(here: Here, storage: str, tmp_path: Path) -> None:
    """Nobody can look for its process: it is missed when its heart stood still."""
    probe = subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False)
    if os.geteuid() != 0 or probe.returncode:
        pytest.skip("needs root to pretend to be another machine")
    killed_and_taken_up(here, storage, tmp_path / "runs", OTHER_HOST, SUREFOOT_GRACE="4")


@pytest.mark.slow
def test_two_workers_at_once_share_a_search(here: Here, storage: str, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    words = ["--search", "6", "--space", "lr=1e-4..1e-1", "--prune", "off"]
    here("sweep", "charlm", *SETTINGS, *words, "--storage", storage, runs=runs)
    both = [run("sweep", "work", "s", "--storage", storage, runs=runs) for _ in range(2)]
    told = [said(worker) for worker in both]
    found = trials(here, runs, "--storage", storage)
    assert [trial["trial"] for trial in found] == [1, 2, 3, 4, 5, 6]
    assert all(trial["state"] == "done" for trial in found)
    assert len({trial["settings"]["optim.lr"] for trial in found}) == 6
    counts = [out.count("val_loss") for out in told]
    assert sum(counts) >= 6 and min(counts) > 0, "both took part"
    for number in range(1, 7):
        folder = runs / "sweeps" / "s" / "runs" / f"trial-{number:03d}"
        assert len(json.loads((folder / "run.json").read_text())["segments"]) == 1
