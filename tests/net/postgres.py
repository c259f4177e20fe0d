"""A PostgreSQL of a test's own: a temporary folder, a free port on loopback, gone afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.ports import reserved

__all__ = ["postgres"]

ANYONES = tempfile.gettempdir()  # when a test runs it is one that only its user may enter


def program(name: str) -> Path | None:
    """Find a program of the server, which distributions keep out of the PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = [place / name for place in places if (place / name).exists()]
    here = shutil.which(name)
    return found[0] if found else Path(here) if here else None


@contextmanager
def postgres() -> Iterator[str]:
    """Start a server and yield its address; skips where there is none. It refuses to be root."""
    initdb, server = program("initdb"), program("postgres")
    pytest.importorskip("psycopg")
    if initdb is None or server is None:
        pytest.skip("no PostgreSQL on this machine (Debian: apt-get install postgresql)")
    who: dict[str, Any] = {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="sf-postgres-", dir=ANYONES) as folder:
        if who:
            shutil.chown(folder, "nobody")
        data, log = Path(folder) / "data", Path(folder) / "log"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **who}
        words = [
            "-D",
            str(data),
            "-A",
            "trust",
            "-U",
            "me",
            "--no-sync",
            "-E",
            "UTF8",
            "--no-locale",
        ]
        subprocess.run([str(initdb), *words], check=True, **quiet)
        with reserved() as port:
            words = [
                "-D", str(data), "-p", str(port), "-k", folder, "-c", "listen_addresses=127.0.0.1",
            ]  # fmt: skip
            with log.open("wb") as out:
                process = subprocess.Popen(
                    [str(server), *words, "-c", "fsync=off"], **{**quiet, "stderr": out}
                )
            try:
                _answers(port, process, log)
                yield f"postgresql+psycopg://me@127.0.0.1:{port}/postgres"
            finally:
                process.terminate()
                process.wait()


def _answers(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg

    end = time.monotonic() + 300
    while True:
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="me", dbname="postgres").close()
        except psycopg.OperationalError:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        else:
            return
