"""Freed memory stays with the process where glibc allows it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from surefoot.ops.memory import keep_freed_memory

CODE = """
import resource, sys, torch
from surefoot.ops.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()

def faults(repeats):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repeats):
        taken = [torch.ones(200_000) for _ in range(40)]
        taken.clear()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / repeats

faults(20)
print(faults(20))
"""


def page_faults(word):
    # An allocator that gives everything back, whatever the pattern: the worst case for training.
    eager = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-c", CODE, word]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | eager
    )
    return float(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_memory_taken_again_costs_no_page_faults():
    returned, kept = page_faults("returned"), page_faults("kept")
    assert returned > 1000 and kept < returned / 20


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_left_alone(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    assert keep_freed_memory() is False
