"""What every page of results says first: the command, the date and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path

import psutil
import torch

__all__ = ["heading"]

_PEERS = ("transformers", "accelerate", "lightning")


def heading(title: str, command: str) -> list[str]:
    """Return the first lines of a page of results."""
    found = [f"{p} {importlib.metadata.version(p)}" for p in _PEERS if _installed(p)]
    words = " ".join([f"python {command}", *sys.argv[1:]])
    return [
        f"# {title}",
        "",
        f"`{words}` on {time.strftime('%Y-%m-%d')}: {_processor()}, {os.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GB, torch {torch.__version__}, Python "
        f"{platform.python_version()}{''.join(', ' + f for f in found)}; load average at the "
        f"start {os.getloadavg()[0]:.1f} (above the number of cores, other programs took part and "
        "only processor time and ratios say something).",
        "",
    ]


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "processor")
    extras = [f for f in ("avx512_bf16", "amx_bf16") if any(f in x for x in lines)]
    return f"{name} ({', '.join(extras)})" if extras else name
