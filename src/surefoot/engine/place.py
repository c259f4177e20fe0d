"""Apply decisions to a learner: threads, library paths, precision, kernels, compilation."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch

from surefoot.engine.heap import keep_freed_memory
from surefoot.engine.learner import Learner
from surefoot.engine.own import find
from surefoot.errors import Unsupported
from surefoot.ops import slots
from surefoot.ops.compiler import keep_code, set_threads
from surefoot.track.machine import describe_machine

__all__ = [
    "Decisions",
    "MatmulPath",
    "apply",
    "compile_in_place",
    "matmul_path",
    "reads_past_mkl",
    "repeatable",
]

# Without it Intel's library promises nothing from run to run. It is read at the first product.
os.environ.setdefault("MKL_CBWR", "AUTO")

# Older torch looks for it at the first product, and then never again.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# Segments that grow leave fewer gaps between tensors. It is read at the first allocation.
if sys.platform == "linux" and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


class Decisions(Protocol):
    """The part of the pins that is applied to a learner."""

    @property
    def device(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def matmul(self) -> str: ...
    @property
    def ops(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class MatmulPath:
    """A CPU library for fp32 matrix products: torch's default, or oneDNN."""

    name: str

    def use(self) -> None:
        """Route fp32 products of this process through it."""
        flag: Any = getattr(torch.backends.mkldnn, "matmul", None)
        if flag is not None and hasattr(flag, "fp32_precision"):
            flag.fp32_precision = "bf16" if self.name == "onednn" else "none"

    def accurate(self) -> bool:
        """Whether products through it are true fp32 here.

        oneDNN takes the permission to use bf16 only where it is faster, which on some processors
        is nowhere: there it computes in fp32, and twice as fast as the default on AMD's.
        """
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(128, 128, generator=generator) for _ in range(2))
        exact = a.double() @ b.double()
        self.use()
        try:
            error = ((a @ b).double() - exact).norm() / exact.norm()
        finally:
            matmul_path("default").use()
        return bool(error < 2e-6)


@cache
def reads_past_mkl() -> bool:
    """Whether writing should read fp32 weights without Intel's library: on AMD's processors.

    A rule and no race, so that the same weights and seed write the same text on one machine.
    """
    there = torch.backends.mkldnn.is_available()
    return there and "AMD" in describe_machine()["cpu"]


def matmul_path(name: str) -> MatmulPath:
    """Return the path called `name`."""
    return MatmulPath(name)


def apply(learner: Learner, pins: Decisions) -> None:
    """Make this process and `learner` compute as decided; compiling is a step of its own.

    Raises Unsupported when a kernel that was asked for by name cannot run here, RunError when the
    file that it came from changed.
    """
    set_threads(pins.threads)
    if torch.device(pins.device).type == "cpu":
        keep_freed_memory()
    repeatable(torch.device(pins.device))
    matmul_path(pins.matmul).use()
    learner.set_precision(pins.precision)
    for slot in slots((learner.model, *learner.optimisers)):
        way = pins.ops.get(slot.op.name, slot.op.standard)
        slot.put(find(slot.op, way).pick(way, pins.device))


def repeatable(device: torch.device) -> None:
    """On CUDA, take kernels that add in a fixed order; elsewhere they do anyway.

    Without it the backward pass of fused attention adds in the order of the day, and no resume
    could be proven. An operation that has no such kernel then raises RuntimeError with its name.
    """
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    settings: Any = torch.utils.deterministic
    settings.fill_uninitialized_memory = False  # finds bugs of others, and costs


def compile_in_place(learner: Learner) -> None:
    """Compile the model's forward; parameter names stay as they are.

    Each shape of a batch gets code of its own. Code for any shape would be made at the second one
    that a process meets, so that its bits depended on when the process began. Raises Unsupported
    when torch cannot compile here.
    """
    try:
        keep_code(learner.device.type)
        learner.model.compile(dynamic=False)
    except RuntimeError as error:
        raise Unsupported(f"cannot compile: {error}", fix="--machine.compile off") from error
