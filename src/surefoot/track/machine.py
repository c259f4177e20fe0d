"""Where and from what code a run was made: plain facts for `run.json`, without torch."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

__all__ = ["describe_machine", "git_state"]


def describe_machine() -> dict[str, Any]:
    """Return os, cpu (model), cores (usable by this process), memory (bytes), python, host."""
    return {
        "host": platform.node(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": _cores(),
        "memory": psutil.virtual_memory().total,
        "python": platform.python_version(),
    }


def git_state(path: Path) -> dict[str, Any] | None:
    """Return {"commit": hash, "dirty": bool} of the repository around `path`; None outside one."""
    commit = _git(path, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(_git(path, "status", "--porcelain"))}


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    if sys.platform == "darwin":
        name = _run(["sysctl", "-n", "machdep.cpu.brand_string"])
    else:
        name = _cpuinfo()
    return name or platform.processor() or platform.machine()


def _cpuinfo() -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "cpu model"):
            return value.strip()
    return None


def _git(path: Path, *words: str) -> str | None:
    return _run(["git", "-C", str(path), *words])


def _run(command: list[str]) -> str | None:
    """Return what a program printed; None: it is not there, failed or took too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
