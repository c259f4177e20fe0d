"""What every page of results says: the command, the date and the machine, and which goals are met."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path

import psutil
import torch

__all__ = ["goal", "heading", "write"]

_PEERS = ("transformers", "accelerate", "lightning", "llama-cpp-python")


def heading(title: str, command: str, about: str = "") -> list[str]:
    """Return the first lines of a page of results; `about` is the program's own description."""
    found = [f"{p} {importlib.metadata.version(p)}" for p in _PEERS if _installed(p)]
    given = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    words = " ".join([f"python {command}", *given])
    return [
        f"# {title}",
        "",
        f"`{words}` on {time.strftime('%Y-%m-%d')}: {_processor()}, {os.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GB, torch {torch.__version__}, Python "
        f"{platform.python_version()}{''.join(', ' + f for f in found)}; load average at the "
        f"start {os.getloadavg()[0]:.1f} (where that is above the number of cores, other programs took part, and "
        "only processor time and ratios say something).",
        "",
        *([about.split("\n\n", 2)[2].rpartition(" Writes")[0], ""] if about else []),
    ]


def goal(
    what: str, measured: float, bound: float, least: bool = True, unit: str = "x",
    floor: float | None = None,
) -> str:  # fmt: skip
    """Return a line that says whether `measured` reaches `bound`, and if not, by how much."""
    sign, met = ("at least", measured >= bound) if least else ("at most", measured <= bound)
    verdict = "met" if met else f"**missed by {abs(bound - measured):.3g} {unit}**"
    if not met and floor is not None:
        below = floor - measured if least else measured - floor
        owed = f"**missed by {below:.3g} {unit}**" if below > 0 else "met"
        verdict += f"; floor {floor:g} {unit}: {owed}"
    return f"- goal: {what}, {sign} {bound:g} {unit}; measured {measured:.3g} {unit}: {verdict}"


def write(name: str, page: list[str]) -> None:
    """Print a page of results and keep it as benchmarks/results/NAME.md."""
    text = "\n".join(page).rstrip() + "\n"
    folder = Path(__file__).resolve().parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


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
