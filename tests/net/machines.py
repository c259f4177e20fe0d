"""Two "machines" on one: network namespaces joined by a cable that can be pulled.

Each has its own loopback, one end of a veth pair and one address; nothing in it can reach anything
else. Needs root and iproute2. What runs in a namespace is found by the kernel, so that a machine
can be switched off: every process in it is killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest

__all__ = ["Machine", "machines", "until"]


def ip(*words: str) -> str:
    """Run `ip`; return what it says."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@dataclass
class Machine:
    """One namespace: `address` is its own, `cable` its network interface."""

    name: str
    address: str
    cable: str
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self, command: Sequence[str], log: Path, env: Mapping[str, str], cwd: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Run `command` on this machine; what it says goes to `log`."""
        settings = {**os.environ, **env, "GLOO_SOCKET_IFNAME": self.cable}
        out: IO[bytes]
        with log.open("ab") as out:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                stdout=out, stderr=subprocess.STDOUT, env=settings, cwd=cwd, start_new_session=True,
            )  # fmt: skip
        self.started.append(process)
        return process

    def switch_off(self) -> None:
        """Kill everything that runs here, at once, as a machine that loses its power."""
        while found := ip("netns", "pids", self.name).split():
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            for process in self.started:
                process.poll()
            time.sleep(0.01)
        for process in self.started:
            process.wait()

    def pull(self) -> None:
        """Pull the cable: packets are lost in both directions, and nobody is told."""
        ip("-n", self.name, "link", "set", self.cable, "down")

    def plug(self) -> None:
        """Put the cable back."""
        ip("-n", self.name, "link", "set", self.cable, "up")


@contextmanager
def machines() -> Iterator[tuple[Machine, Machine]]:
    """Two machines with a cable between them; skips the test where there can be none."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2 (ip)")
    made: list[Machine] = []
    try:
        for number, end in enumerate("ab", 1):
            # An interface has at most 15 letters.
            name = f"sf{os.getpid()}{end}"
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
            made.append(Machine(name, f"10.77.0.{number}", f"sf{os.getpid()}{end}"))
        a, b = made
        try:
            ip("-n", a.name, "link", "add", a.cable, "type", "veth", "peer", "name", b.cable,
               "netns", b.name)  # fmt: skip
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no veth pairs here: {error.stderr.strip()}")
        for one in made:
            ip("-n", one.name, "addr", "add", f"{one.address}/24", "dev", one.cable)
            for link in ("lo", one.cable):
                ip("-n", one.name, "link", "set", link, "up")
        yield a, b
    finally:
        for one in made:
            one.switch_off()
            ip("netns", "del", one.name)


def until(true: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until `true()`; fail the test after `seconds` with `what` did not come."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)
