"""What a person is told when the ranks of a group do not meet."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

SCRIPT = """
from surefoot.engine.ranks.team import join
from surefoot.errors import SurefootError
try:
    join("3s")
except SurefootError as error:
    print(type(error).__name__, error.exit_code, error)
"""


def start(port: int, rank: int = 0, machine: int = 3) -> subprocess.Popen[str]:
    environment = {
        **os.environ, "RANK": str(rank), "LOCAL_WORLD_SIZE": str(machine), "WORLD_SIZE": "3", "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    environment["PYTHONPATH"] = os.pathsep.join([*sys.path, str(Path(__file__).parents[2] / "src")])
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, text=True
    )


def said(*parts: subprocess.Popen[str]) -> list[str]:
    found = [part.communicate(timeout=60)[0] for part in parts]
    assert [part.returncode for part in parts] == [0] * len(parts)
    return found


def test_ranks_that_do_not_come_and_a_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (busy,) = said(start(port))
    assert busy.startswith("RunError 2 the port is in use"), busy
    assert f"127.0.0.1:{port}" in busy and "--rdzv-endpoint" in busy
    first, second = said(start(port, 0, 1), start(port, 1, 1))  # the port is free now
    for told in (first, second):
        assert told.startswith("RunError 2 not all 3 ranks came within 3 s: "), told
        assert (
            f"rank 2 (machine 3 of 3) did not; here are rank 0, 1 ({socket.gethostname()})" in told
        )
