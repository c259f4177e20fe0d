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
    join("1s")
except SurefootError as error:
    print(type(error).__name__, error.exit_code, error)
"""


def said(port: int) -> str:
    environment = {
        **os.environ, "RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    environment["PYTHONPATH"] = os.pathsep.join([*sys.path, str(Path(__file__).parents[2] / "src")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_ranks_that_do_not_come_and_a_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        busy = said(port)
    assert busy.startswith("RunError 2 the port is in use"), busy
    assert f"127.0.0.1:{port}" in busy and "--rdzv-endpoint" in busy
    alone = said(port)  # which is free now
    assert alone.startswith("RunError 2 not all 3 ranks came within 1 s"), alone
