"""Where and from what code a run was made: plain facts for `run.json`, without torch."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

__all__ = ["describe_machine", "git_state"]

DIFF = 1_000_000  # characters of a diff that is kept beside the run
FILES = 20  # names of files


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


def git_state(path: Path, runs: Path | None = None) -> tuple[dict[str, Any] | None, str]:
    """Return what git knows of the code around `path`, and the diff against the commit.

    The first has `commit`, `dirty`, `changed` and `untracked` (names of files, at most so many;
    those in `runs` do not count), `diff` (a hash of its text) and `kept`: whether the text is
    returned, which it is not when it is too long. None outside of a repository.
    """
    found = (_git(path, "rev-parse", "HEAD", "--show-toplevel") or "").split("\n")
    if len(found) < 2:
        return None, ""
    commit, root = found[0], Path(found[1])
    changed = (_git(root, "diff", "HEAD", "--name-only") or "").splitlines()
    others = (_git(root, "ls-files", "--others", "--exclude-standard") or "").splitlines()
    if runs is not None:
        others = [name for name in others if runs.resolve() not in (root / name).resolve().parents]
    how = ("--no-color", "--no-ext-diff", "--no-textconv")
    diff = _git(root, "diff", "HEAD", *how) or "" if changed else ""
    kept = len(diff) <= DIFF
    return {
        "commit": commit,
        "dirty": bool(changed or others),
        "changed": changed[:FILES],
        "untracked": others[:FILES],
        "diff": hashlib.sha256(diff.encode()).hexdigest()[:16] if diff else None,
        "kept": bool(diff) and kept,
    }, diff if kept else ""


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    name: str | None
    if sys.platform == "darwin":
        name = (_run(["sysctl", "-n", "machdep.cpu.brand_string"]) or "").strip()
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
    # No program that the repository's settings name is run.
    return _run(["git", "-C", str(path), "-c", "core.fsmonitor=false", *words])


def _run(command: list[str]) -> str | None:
    """Return what a program printed; None: it is not there, failed or took too long."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=5,
            check=False,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
