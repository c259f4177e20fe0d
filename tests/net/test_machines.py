"""Two machines on one: what the network between them does, and who starts again when one is lost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tests.net.machines import Machine, machines, until

# Counts steps that all took part in, and says how many they are; ends when everybody counted to 40.
COUNT = """
import os, sys, time
from datetime import timedelta
import torch, torch.distributed as dist
dist.init_process_group("gloo", timeout=timedelta(seconds=int(sys.argv[2])))
rank, world = dist.get_rank(), dist.get_world_size()
for step in range(1, 41):
    total = torch.tensor(rank + 1.0)
    dist.all_reduce(total)
    assert total.item() == world * (world + 1) / 2
    if rank == 0:
        with open(sys.argv[1], "a") as file:
            print(world, step, file=file, flush=True)
    time.sleep(0.02)
dist.destroy_process_group()
"""


def torchrun(host: Machine, nodes: str, *command: str | Path, restarts: int = 3) -> list[str]:
    """Return the words that join a group whose meeting point is on `host`; see `join`."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", nodes, "--nproc-per-node", "1",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{host.address}:29511", "--rdzv-id", "sf",
        "--max-restarts", str(restarts), "--monitor-interval", "0.1", *map(str, command),
    ]  # fmt: skip


def join(one: Machine, host: Machine, nodes: str, log: Path, *command: str | Path) -> Any:
    """Start one machine's part."""
    words = torchrun(host, nodes, *command)
    conf = f"is_host={one is host},last_call_timeout=1,join_timeout=60"
    where = words.index("--max-restarts")
    words[where:where] = ["--local-addr", one.address, "--rdzv-conf", conf]
    return one.start(words, log, {"OMP_NUM_THREADS": "1"})


def steps(path: Path) -> list[tuple[int, int]]:
    """(how many took part, step) of each step that was counted."""
    text = path.read_text() if path.exists() else ""
    rows = (line.split() for line in text.splitlines())
    return [(int(row[0]), int(row[1])) for row in rows if len(row) == 2]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "count.py"
    path.write_text(COUNT)
    return path


def said(folder: Path) -> str:
    return "\n".join(p.read_text(errors="replace")[-2000:] for p in sorted(folder.glob("*.log")))


def test_they_meet(tmp_path: Path, script: Path) -> None:
    """Without a launcher, which takes half of the time."""
    with machines() as (a, b):
        host = {"MASTER_ADDR": a.address, "MASTER_PORT": "29511", "WORLD_SIZE": "2"}
        command = [sys.executable, str(script), str(tmp_path / "n"), "600"]
        parts = [
            one.start(command, tmp_path / f"{rank}.log", host | {"RANK": str(rank)})
            for rank, one in enumerate((a, b))
        ]
        assert [part.wait(600) for part in parts] == [0, 0], said(tmp_path)
    assert steps(tmp_path / "n") == [(2, n) for n in range(1, 41)]


@pytest.mark.slow
def test_a_machine_that_is_lost_leaves_a_smaller_group(tmp_path: Path, script: Path) -> None:
    count = tmp_path / "n"
    with machines() as (a, b):
        part, _ = [
            join(x, a, "1:2", tmp_path / f"{x.name}.log", script, count, "5") for x in (a, b)
        ]
        until(lambda: (2, 5) in steps(count), 60, "both took part")
        b.switch_off()
        assert part.wait(90) == 0, said(tmp_path)
    found = steps(count)
    assert found[-40:] == [(1, n) for n in range(1, 41)], found


@pytest.mark.slow
def test_a_cable_that_is_put_back_in_time_costs_a_while_only(tmp_path: Path, script: Path) -> None:
    count = tmp_path / "n"
    with machines() as (a, b):
        parts = [join(x, a, "2", tmp_path / f"{x.name}.log", script, count, "60") for x in (a, b)]
        until(lambda: (2, 5) in steps(count), 60, "both took part")
        b.pull()
        before = len(steps(count))
        with pytest.raises(AssertionError):
            until(lambda: len(steps(count)) > before + 2, 2, "a step without a network")
        b.plug()
        assert [part.wait(60) for part in parts] == [0, 0], said(tmp_path)
    assert steps(count) == [(2, n) for n in range(1, 41)], "nobody began again"
