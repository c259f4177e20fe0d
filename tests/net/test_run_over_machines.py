"""A run over two machines: the bits of one, also when a machine or the network between them is lost."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.e2e.conftest import PINS, QUICK, TEXT
from tests.net.machines import Machine, machines, until

pytestmark = pytest.mark.slow

PORT, STEPS = 29512, 120
HELD = {k: v for k, v in (PINS | QUICK).items() if k not in ("micro-batch-size",)}
FIXED = [word for name, value in HELD.items() for word in (f"--{name}", str(value))]
RUN = [
    "train", "charlm", "--preset", "tiny", "--path", str(TEXT), "--max-steps", str(STEPS), *FIXED,
    "--batch-size", "8", "--micro-batch-size", "2", "--save-every", "10", "--reduce", "tree",
    "--validate-every", "40", "--name", "r",
]  # fmt: skip


def join(
    one: Machine,
    host: Machine,
    nodes: str,
    runs: Path,
    *more: str,
    log: Path,
    before: Sequence[str] = (),
) -> Any:
    """Start one machine's part of the run."""
    conf = f"is_host={int(one is host)},last_call_timeout=1,join_timeout=90"
    words = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", nodes, "--nproc-per-node", "1",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{host.address}:{PORT}", "--rdzv-id", "r",
        "--local-addr", one.address, "--rdzv-conf", conf, "--max-restarts", "3",
        "--monitor-interval", "0.1", "-m", "surefoot", *RUN, "--runs", str(runs), *more,
    ]  # fmt: skip
    return one.start([*before, *words], log / f"{one.name}.log", {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process makes of it."""
    from surefoot.cli import main

    runs = tmp_path_factory.mktemp("alone")
    assert main([*RUN, "--quiet", "--runs", str(runs)]) == 0
    return left(runs)


def left(runs: Path) -> dict[str, Any]:
    """What a run left: its rows without times and places, and the bytes of its last weights."""
    run = runs / "r"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "kind", "loss", "grad_norm", "val_loss")
    weights = {
        p.name: p.read_bytes()
        for p in max((run / "checkpoints").iterdir()).glob("*.model.safetensors")
    }
    assert weights, sorted(p.name for p in max((run / "checkpoints").iterdir()).iterdir())
    return {
        "rows": [{k: row[k] for k in kept if k in row} for row in rows if row["kind"] != "event"],
        "weights": weights,
    }


def said(folder: Path) -> str:
    return "\n".join(p.read_text(errors="replace")[-9000:] for p in sorted(folder.glob("*.log")))


def step(runs: Path) -> int:
    """How far the run is, as its record says."""
    path = runs / "r" / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


def meta(runs: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((runs / "r" / "run.json").read_text())
    return found


def test_two_machines_make_the_bits_of_one(tmp_path: Path, alone: dict[str, Any]) -> None:
    runs = tmp_path / "runs"
    with machines() as (a, b):
        parts = [join(one, a, "2", runs, log=tmp_path) for one in (a, b)]
        assert [part.wait(120) for part in parts] == [0, 0], said(tmp_path)
    assert left(runs) == alone
    assert [s.get("ranks") for s in meta(runs)["segments"]] == [2]


@pytest.mark.parametrize("power", [False, True], ids=["killed", "without power"])
def test_a_lost_machine_leaves_the_other_to_go_on(
    tmp_path: Path, alone: dict[str, Any], power: bool
) -> None:
    """Without power nobody says goodbye: the silence is noticed, and the run goes on."""
    runs = tmp_path / "runs"
    with machines() as (a, b):
        part, _ = [
            join(one, a, "1:2", runs, "--hang-timeout", "8s", log=tmp_path) for one in (a, b)
        ]
        until(lambda: step(runs) >= 25, 90, "step 25")
        if power:
            b.pull()
        b.switch_off()
        assert part.wait(180) == 0, said(tmp_path)
    first, *others = meta(runs)["segments"]
    assert first["ranks"] == 2 and others and others[-1].get("ranks", 1) == 1
    assert others[-1]["step"] >= 10, "from the last checkpoint"
    assert left(runs) == alone
    log = (runs / "r" / "log.txt").read_text()
    assert "resume proven over" in log, log


def test_a_cable_that_comes_back_in_time_costs_a_while(
    tmp_path: Path, alone: dict[str, Any]
) -> None:
    runs = tmp_path / "runs"
    with machines() as (a, b):
        parts = [join(one, a, "2", runs, "--hang-timeout", "60s", log=tmp_path) for one in (a, b)]
        until(lambda: step(runs) >= 20, 90, "step 20")
        b.pull()
        at = step(runs)
        with pytest.raises(AssertionError):
            until(lambda: step(runs) > at + 12, 3, "steps without a network")
        b.plug()
        assert [part.wait(120) for part in parts] == [0, 0], said(tmp_path)
    assert len(meta(runs)["segments"]) == 1, "nobody began again"
    assert left(runs) == alone


def test_a_machine_that_comes_back_is_taken_in_again(tmp_path: Path, alone: dict[str, Any]) -> None:
    """torchrun counts restarts for each machine apart; the ranks find each other all the same."""
    runs = tmp_path / "runs"
    with machines() as (a, b):
        part, _ = [join(one, a, "1:2", runs, log=tmp_path) for one in (a, b)]
        until(lambda: step(runs) >= 15, 90, "step 15")
        b.switch_off()
        until(lambda: len(meta(runs)["segments"]) > 1, 90, "the other one goes on alone")
        back = join(b, a, "1:2", runs, log=tmp_path)
        assert part.wait(180) == 0, said(tmp_path)
        back.wait(60)
    ranks = [segment.get("ranks", 1) for segment in meta(runs)["segments"]]
    assert ranks[:2] == [2, 1] and set(ranks[2:]) <= {1, 2}, ranks
    assert left(runs) == alone


def test_a_process_that_dies_on_one_machine_begins_all_anew(
    tmp_path: Path, alone: dict[str, Any]
) -> None:
    runs = tmp_path / "runs"
    with machines() as (a, b):
        parts = [join(one, a, "2", runs, log=tmp_path) for one in (a, b)]
        until(lambda: step(runs) >= 15, 90, "step 15")
        (worker,) = [p for p in psutil.Process(parts[1].pid).children() if p.pid]
        worker.kill()
        assert [part.wait(120) for part in parts] == [0, 0], said(tmp_path)
    assert [segment["ranks"] for segment in meta(runs)["segments"]] == [2, 2]
    assert left(runs) == alone
    assert "resume proven over" in (runs / "r" / "log.txt").read_text()


def test_a_folder_that_is_not_shared_is_refused(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    elsewhere = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {runs} && exec "$@"', "sh"]
    with machines() as (a, b):
        parts = [
            join(one, a, "2", runs, log=tmp_path, before=elsewhere if one is b else ())
            for one in (a, b)
        ]
        codes = [part.wait(120) for part in parts]
    assert 0 not in codes, said(tmp_path)
    told = " ".join(said(tmp_path).split())
    assert "the run's folder is not shared: rank 1" in told, told
    assert "--runs on a disk that all nodes mount" in told
    assert step(runs) == 0
