"""What a person is told when the ranks of a group do not meet."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.ports import reserved

# Time passes from when rank 0 knows that rank 1 has come, which waits until there is a store: how long
# processes take to begin is for the machine to say.
SCRIPT = """
import time
from pathlib import Path
from types import SimpleNamespace
from surefoot.engine.ranks import meet
from surefoot.engine.ranks.team import join
from surefoot.errors import SurefootError

opened, came, begun = Path(SIGNS, "opened"), Path(SIGNS, "came"), time.monotonic()
open_store, Store = meet.open_store, meet.PrefixStore

def open_and_say(seconds, serve=False, size=None):
    while not (serve or opened.exists()):
        time.sleep(0.01)
    store = open_store(seconds, serve, size)
    opened.touch()
    return store

class Watched(Store):
    def get(self, key):
        found = super().get(key)
        if key.endswith("/here/1"):
            came.touch()
        return found

def moment():
    return time.monotonic() if came.exists() else begun

meet.open_store, meet.PrefixStore = open_and_say, Watched
meet.time = SimpleNamespace(monotonic=moment, sleep=time.sleep)
try:
    join(PATIENCE)
except SurefootError as error:
    print(type(error).__name__, error.exit_code, error)
"""


def start(
    signs: Path, port: int, rank: int = 0, machine: int = 3, patience: str = "3s", **more: str
) -> subprocess.Popen[str]:
    environment = {
        **os.environ, **more, "RANK": str(rank), "LOCAL_WORLD_SIZE": str(machine), "WORLD_SIZE": "3", "LOCAL_RANK": str(rank % machine), "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    environment["PYTHONPATH"] = os.pathsep.join([*sys.path, str(Path(__file__).parents[2] / "src")])
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            SCRIPT.replace("PATIENCE", repr(patience)).replace("SIGNS", repr(str(signs))),
        ],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(*parts: subprocess.Popen[str]) -> list[str]:
    found = [part.communicate(timeout=600)[0] for part in parts]
    assert [part.returncode for part in parts] == [0] * len(parts)
    return found


def test_ranks_that_do_not_come_and_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (busy,) = said(start(tmp_path, port))
    assert busy.startswith("RunError 2 the port is in use"), busy
    assert f"127.0.0.1:{port}" in busy and "--rdzv-endpoint" in busy
    with reserved() as port:
        first, second = said(start(tmp_path, port, 0, 1), start(tmp_path, port, 1, 1))
    for told in (first, second):
        assert told.startswith("RunError 2 not all 3 ranks came within 3 s: "), told
        assert (
            f"rank 2 (machine 3 of 3) did not; here are rank 0, 1 ({socket.gethostname()})" in told
        )


def test_a_process_that_ends_before_it_came_is_not_waited_for(tmp_path: Path) -> None:
    """torchrun takes it for done, and would let the others wait until their patience ends."""
    (tmp_path / "2").write_text("75")
    (tmp_path / "1.came").touch()
    (tmp_path / "1").write_text("75")  # of an earlier start
    (tmp_path / "came").touch()  # so that time passes
    notes = {"SUREFOOT_EXIT_NOTES": str(tmp_path), "patience": "10min"}
    with reserved() as port:
        (first,) = said(start(tmp_path, port, 0, **notes))
    who = f"rank 2 ({socket.gethostname()})"
    assert first.startswith(f"Stopped 75 {who} was told to stop before it came"), first
    (tmp_path / "1.came").unlink()
    (tmp_path / "2").write_text("2")
    with reserved() as port:
        (first,) = said(start(tmp_path, port, 0, **notes))
    assert first.startswith(f"SurefootError 2 {who} ended with code 2 before it came"), first
