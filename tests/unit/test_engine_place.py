"""How this process is made to compute as decided."""

from __future__ import annotations

import os

import pytest
import torch

from surefoot.engine.place import repeatable
from surefoot.engine.world import open_world


def test_a_processor_is_repeatable_as_it_is() -> None:
    repeatable(torch.device("cpu"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_cuda_is_made_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.utils.deterministic.fill_uninitialized_memory
    try:
        repeatable(torch.device("cuda"))
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled(), "or attention is not"
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_a_device_by_number_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert open_world("cuda:1").device == torch.device("cuda", 1)
    assert chosen == ["cuda:1"], "kernels of Triton run on the current one"
    assert open_world("cuda").device == torch.device("cuda") and chosen == ["cuda:1"]
