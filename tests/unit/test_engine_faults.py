"""Memory that runs out is recognised and let go; a look leaves no trace; a disk speaks in words."""

from __future__ import annotations

import errno
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot.engine.disk import refusals, room_for
from surefoot.engine.faults import device_lost, out_of_memory, release
from surefoot.engine.look import look_at
from surefoot.errors import OutOfResources, RunError

FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError(),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronous"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't "
                 "allocate memory: you tried to allocate 400000000000 bytes."),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
    RuntimeError("Cannot allocate memory"),
]  # fmt: skip
OTHER = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"),
    KeyError("memory"), RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("maxid of the index is out of range"), ValueError("GPU is lost"),
]  # fmt: skip


GONE = [
    torch.AcceleratorError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered\nCompile with ..."),
    RuntimeError("CUDA error: unknown error"), RuntimeError("GPU is lost (Xid 79)"),
    RuntimeError("CUDA error: no CUDA-capable device is detected"),
]  # fmt: skip


@pytest.mark.parametrize("error", GONE, ids=str)
def test_every_way_to_say_that_a_device_is_gone(error: Exception) -> None:
    assert device_lost(error) and not out_of_memory(error)


@pytest.mark.parametrize("error", [*FULL, *OTHER], ids=str)
def test_a_device_that_answers_is_not_lost(error: Exception) -> None:
    assert not device_lost(error)


@pytest.mark.parametrize("error", FULL, ids=str)
def test_every_way_to_say_that_memory_is_full(error: Exception) -> None:
    assert out_of_memory(error)


@pytest.mark.parametrize("error", OTHER, ids=str)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not out_of_memory(error)


def test_a_real_allocation_that_cannot_be() -> None:
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**60)
    assert out_of_memory(failed.value)


def test_releasing_lets_go_of_what_the_failed_frames_held() -> None:
    class Held:
        pass

    watch: list[Any] = []

    def inner() -> None:
        held = Held()
        watch.append(weakref.ref(held))
        raise KeyError("first")

    def outer() -> None:
        held = Held()
        watch.append(weakref.ref(held))
        try:
            inner()
        except KeyError as error:
            raise RuntimeError("out of memory") from error

    gc.disable()
    try:
        try:
            outer()
        except RuntimeError as error:
            kept = error
        assert all(ref() is not None for ref in watch)
        release(kept)
        assert all(ref() is None for ref in watch), "also of the error behind the error"
    finally:
        gc.enable()


def test_a_look_that_ran_out_of_memory_begins_anew_from_the_same_key(toy: Any) -> None:
    learner, draws = toy.learner(), []

    def look(model: Any) -> float:
        draws.append(float(torch.rand(())))
        assert not model.training and not torch.is_grad_enabled()
        if len(draws) == 1:
            raise MemoryError
        return draws[-1]

    assert look_at(learner, 5, look) == draws[1] == draws[0]
    assert learner.model.training and torch.is_grad_enabled()


def test_a_look_that_never_fits_ends_in_words(toy: Any) -> None:
    def look(model: Any) -> float:
        raise RuntimeError("CUDA error: out of memory")

    with pytest.raises(OutOfResources, match="while looking at the model: CUDA error"):
        look_at(toy.learner(), 5, look)


def test_another_error_of_a_look_is_not_hidden(toy: Any) -> None:
    def look(model: Any) -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        look_at(toy.learner(), 5, look)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_speaks_in_words(number: int) -> None:
    run = Path("runs/some")
    with pytest.raises(OutOfResources, match="the disk refuses: no") as failed, refusals(run):
        raise OSError(number, "no", "/there/journal")
    assert "surefoot resume some" in str(failed.value)
    assert failed.value.where == "/there/journal" and failed.value.exit_code == 4


def test_an_error_that_is_not_the_disks_goes_through() -> None:
    with pytest.raises(FileNotFoundError), refusals(Path("runs/some")):
        raise FileNotFoundError(errno.ENOENT, "gone")


def test_a_plan_larger_than_the_disk_is_refused(tmp_path: Path) -> None:
    room_for(tmp_path / "runs" / "not yet", 1000)
    with pytest.raises(RunError, match=r"needs 1000000 TB of disk"):
        room_for(tmp_path / "runs", 10**18)
