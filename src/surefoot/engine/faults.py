"""Recognise a machine that ran out of memory or lost a device, and let go of what a failed step holds."""

from __future__ import annotations

import gc
import traceback

import torch

__all__ = ["UpdateFailed", "device_lost", "out_of_memory", "release"]

# What an allocation failure says besides being an OutOfMemoryError: allocator, driver, cuBLAS,
# cuDNN and the CPU allocator each have their own words.
_SIGNS = (
    "out of memory",
    "cuda error: out of memory",
    "cublas_status_alloc_failed",
    "cublas_status_not_initialized",
    "cudnn_status_alloc_failed",
    "cudnn_status_not_supported",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate",
    "unable to allocate",
    "mps backend out of memory",
    "alloc_cpu",
)
# What drivers say of a device that is gone, as far as this process can tell. Errors of a kernel (an
# assertion, an address that is not there) are not among them: they would come again.
_LOST = (
    "unspecified launch failure",
    "cuda error: unknown error",
    "cuda unknown error",
    "uncorrectable",  # of its memory (ECC), or of the link to another one
    "ecc error",
    "hardware stack error",
    "or a hardware error",
    "launch timed out",
    "fallen off the bus",
    "device lost",
    "gpu is lost",
    "(xid",
    " xid",  # a number of NVIDIA's driver; part of other words
    "no cuda-capable device is detected",
    "device(s) is/are busy or unavailable",
    "driver shutting down",
    "command buffer exited with error",  # MPS
)


class UpdateFailed(Exception):
    """An optimiser was interrupted half-way: its learner must be restored from a checkpoint."""

    def __init__(self, learner: str, step: int, cause: BaseException) -> None:
        super().__init__(f"{learner} at step {step}: {cause}")
        self.learner, self.step, self.cause = learner, step, cause


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that an allocation failed, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


def device_lost(error: BaseException) -> bool:
    """Whether `error` means that a device does not answer any more; this process cannot use it again."""
    text = str(error).lower()
    found = isinstance(error, RuntimeError) and any(sign in text for sign in _LOST)
    return found and not out_of_memory(error)


def release(error: BaseException) -> None:
    """Drop the frames that keep the failed step's tensors alive, and empty device caches.

    An error often carries the one that it replaced, and that one its own frames.
    """
    chain: list[BaseException] = [error]
    for link in chain:
        traceback.clear_frames(link.__traceback__)
        link.__traceback__ = None
        after = (link.__cause__, link.__context__)
        chain += [other for other in after if other is not None and other not in chain]
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
