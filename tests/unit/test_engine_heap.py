"""Freed memory stays with the process where glibc allows it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from surefoot.engine import heap
from surefoot.engine.heap import keep_freed_memory

CODE = """
import resource, sys, torch
from surefoot.engine import Learner, Loss
from surefoot.engine.auto.fit import Pins
from surefoot.engine.place import apply

if sys.argv[1] == "kept":  # as every run does it
    learner = Learner(torch.nn.Linear(1, 1), lambda model, batch: Loss(model(batch)), [])
    apply(learner, Pins(device="cpu", precision="fp32", threads=1, matmul="default"))

def faults(repeats):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repeats):
        taken = [torch.ones(200_000) for _ in range(40)]
        taken.clear()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / repeats

faults(20)
print(faults(20))
"""


def page_faults(word: str) -> float:
    # An allocator that gives everything back, whatever the pattern: the worst case for training.
    eager = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-c", CODE, word]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | eager
    )
    return float(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_memory_taken_again_costs_a_run_no_page_faults() -> None:
    returned, kept = page_faults("returned"), page_faults("kept")
    assert returned > 1000 and kept < returned / 20


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert keep_freed_memory.__wrapped__() is False


LONG = """
import torch
from surefoot.engine.heap import keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6

keep_freed_memory()
before = resident()
taken = [torch.ones(10_000_000) for _ in range(8)]  # 40 MB each
taken = taken[::4]  # what stays lies between what was freed
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_blocks_of_long_rows_go_back_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", LONG], capture_output=True, text=True, check=True)
    assert 80 <= float(done.stdout) < 120


HOLES = """
import torch
from surefoot.engine.heap import give_back, keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6

keep_freed_memory()
taken = [torch.ones(500_000) for _ in range(100)]  # 200 MB
taken = taken[::10]  # what stays lies between what was freed
before = resident()
give_back()
print(before - resident(), all(bool(t.eq(1).all()) for t in taken))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_free_memory_between_what_stays_can_be_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    returned, whole = done.stdout.split()
    assert float(returned) > 150 and whole == "True"


def test_where_memory_cannot_be_kept_there_is_none_to_give_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heap, "keep_freed_memory", lambda: False)
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: pytest.fail("asked the C library"))
    heap.give_back()
