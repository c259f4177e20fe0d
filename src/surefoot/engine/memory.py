"""Memory of this machine: what this process holds, and what it may still take."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

__all__ = ["allowed", "available", "gpu", "resident", "set_aside"]

# Of a control group: its limit, what it holds, and which row of memory.stat tells files to let go.
_GROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
_NO_LIMIT = 1 << 60  # bytes
_PYTHONS_OWN = 10_000  # objects; some versions freeze a few hundred at their start


@contextmanager
def set_aside() -> Iterator[None]:
    """Inside the block the garbage collector does not look through what is there already.

    Who called us may have frozen objects of theirs. They stay so, since only all can be thawed
    together, and then no more is frozen, since garbage of ours would stay with them.
    """
    theirs = gc.get_freeze_count() > _PYTHONS_OWN
    if not theirs:
        gc.freeze()
    try:
        yield
    finally:
        if not theirs:
            gc.unfreeze()


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    return int(_process(os.getpid()).memory_info().rss)


def available() -> int:
    """Return the bytes of memory that this process may still take: what is there, within its group."""
    limit = allowed()
    there = int(psutil.virtual_memory().available)
    return there if limit is None else min(there, limit)


def allowed(
    root: Path = Path("/sys/fs/cgroup"), table: Path = Path("/proc/self/cgroup")
) -> int | None:
    """Return the bytes that the control groups of this process may still take, None without limit.

    Its own group counts and all around it, whose least decides. What a group holds of files that it
    could let go is not taken.
    """
    lefts = (_left(group) for group in _groups(root, table))
    return min((left for left in lefts if left is not None), default=None)


def _groups(root: Path, table: Path) -> Iterator[Path]:
    """Yield the folders of the groups that hold this process, of both versions of Linux's groups."""
    yield root
    try:
        rows = [line.split(":", 2) for line in table.read_text().splitlines()]
    except OSError:
        return
    for _, kinds, path in (row for row in rows if len(row) == 3):
        if kinds == "" or "memory" in kinds.split(","):
            group = root / "memory" if kinds else root
            yield group
            for part in path.strip("/").split("/"):
                group /= part
                yield group


def _left(group: Path) -> int | None:
    for limit, taken, cached in _GROUP_FILES:
        try:
            most, held = (group / limit).read_text().strip(), int((group / taken).read_text())
            if most == "max" or int(most) > _NO_LIMIT:
                return None
            rows = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            return max(0, int(most) - held + int(rows.get(cached, 0)))
        except (OSError, ValueError):
            continue
    return None


@cache
def _process(pid: int) -> psutil.Process:
    return psutil.Process(pid)


def gpu(device: torch.device) -> dict[str, Any]:
    """Return the name and the bytes of memory of a CUDA device; nothing for another."""
    if device.type != "cuda":
        return {}
    found = torch.cuda.get_device_properties(device)
    return {"gpu": found.name, "gpu_memory": found.total_memory}
