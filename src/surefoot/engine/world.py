"""Where a run computes: the device, and which of the run's processes this is.

`World` is what a recipe is given to build on. It decides nothing; `fit` decides and `place`
applies the decision. With one process, which is the usual case of several, everything that asks
the others answers at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from surefoot.data.batch import Batch
from surefoot.engine.ranks.team import Team, join, launched
from surefoot.errors import Unsupported

__all__ = ["World", "every_rank", "first_rank", "open_world", "seen_by_all", "why_no_card"]

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """One device, and the hand that moves batches to it; `team` are the processes of the run."""

    device: torch.device
    team: Team | None = None

    @property
    def rank(self) -> int:
        """Which of the processes this is, from 0."""
        return 0 if self.team is None else self.team.rank

    @property
    def size(self) -> int:
        """How many processes share the work."""
        return 1 if self.team is None else self.team.size

    @property
    def leads(self) -> bool:
        """Whether this process writes the run."""
        return self.rank == 0

    def first(self, make: Callable[[], T], what: str = "preparing") -> T:
        """Return what rank 0 makes, on all ranks; what it raises is raised on all."""
        return make() if self.team is None else self.team.first(make, what)

    def each(self, make: Callable[[], T]) -> T:
        """Return what this rank makes; what fails on one rank is raised on all."""
        return make() if self.team is None else self.team.each(make)

    def to(self, batch: Batch) -> Batch:
        """Return `batch` with its arrays as tensors on this device."""
        return Batch({k: self._move(v) for k, v in batch.fields.items()}, batch.weight)

    def _move(self, value: Any) -> torch.Tensor:
        tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(value)
        if self.device.type == "cpu":
            return tensor
        if tensor.is_cuda:  # it was brought here ahead, on another stream (engine/carry.py)
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
            return tensor
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


def open_world(device: str = "auto") -> World:
    """Return the world on `device`: `auto` is the first CUDA device, else MPS, else the CPU.

    Of a group that torchrun started each process gets its own device of the kind. Raises
    Unsupported when a device asked for by name is not there, RunError when the group does not meet.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise Unsupported(f"no such device: {device!r}", fix="auto, cpu, mps, cuda or cuda:N")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu"
    if launched():
        team = join()
        if device.startswith("cuda"):
            device = f"cuda:{team.local}"
    if device.startswith("cuda"):
        _require_cuda(device)
        if ":" in device:  # kernels that are not torch's run on the current one
            torch.cuda.set_device(device)
    if device == "mps" and not _has_mps():
        raise Unsupported(
            "this machine has no MPS device", where="machine.device", fix="--device cpu"
        )
    if not launched():
        return World(torch.device(device))
    team.device = torch.device(device)
    return World(team.device, team)


def first_rank(make: Callable[[bool], T]) -> T:
    """Return what rank 0 makes, on all ranks; `make` is told whether torchrun began them again."""
    if not launched():
        return make(False)
    world = open_world("cpu")
    assert world.team is not None
    again = world.team.again or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    return world.first(lambda: make(again))


def every_rank(make: Callable[[], T]) -> T:
    """Return what is made here; of several ranks all fail where one does."""
    return open_world("cpu").each(make) if launched() else make()


def seen_by_all(folder: Path) -> None:
    """Raise RunError on all ranks unless each sees the `folder` that rank 0 sees."""
    if launched():
        from surefoot.engine.ranks.begin import visible

        team = open_world("cpu").team
        assert team is not None
        visible(team, folder)


def why_no_card() -> str:
    """Return why torch finds no card of NVIDIA's here; "" where none seems to be here."""
    there = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/proc/driver/nvidia/version").exists()
    if there and not torch.version.cuda:
        return "there is an NVIDIA card, and this torch is for processors: install one for CUDA"
    if there:
        return "there is an NVIDIA card that torch cannot use: nvidia-smi says whether its driver is alive"
    if torch.version.cuda:
        return f"torch is built for CUDA {torch.version.cuda} and finds no driver; a processor trains small models"
    return ""


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _require_cuda(device: str) -> None:
    count = torch.cuda.device_count()
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        what = f"there is no CUDA device {index} (torch {torch.__version__} sees {count})"
        why = "" if count else why_no_card()
        fix = "--device cpu, or surefoot doctor"
        raise Unsupported(": ".join(filter(None, (what, why))), where="machine.device", fix=fix)
