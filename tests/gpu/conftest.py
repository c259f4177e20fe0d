"""Every check on a device begins as if it were alone, whatever ran before it in this process."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def as_found() -> Iterator[None]:
    """Take back what a run turned on for its process, and the memory that it left to the allocator."""
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
