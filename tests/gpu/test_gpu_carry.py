"""On a CUDA device: batches that are brought ahead are the same batches, and a run is watched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import surefoot as package

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TEXT = str(Path(__file__).parents[1] / "fixtures" / "shakespeare.txt")


def test_batches_brought_ahead_change_no_bit(tmp_path: Path) -> None:
    weights = []
    for threads in (0, 1, 3):
        result = package.train(
            "charlm", preset="tiny", path=TEXT, runs=tmp_path, quiet=True, new=True, max_steps=30,
            **{
                "machine.prefetch_threads": threads, "machine.micro_batch_size": 4,
                "machine.device": "cuda", "machine.compile": "off",
                "track.report": False, "track.tensorboard": False,
            },
        )  # fmt: skip
        last = max(result.folder.glob("checkpoints/step-*"))
        weights.append((last / "main.model.safetensors").read_bytes())
    assert weights[0] == weights[1] == weights[2]


def test_a_run_tells_of_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surefoot.engine.watch.monitor.EVERY", 0.05)
    result = package.train(
        "charlm", preset="tiny", path=TEXT, runs=tmp_path, quiet=True, max_steps=100,
        **{"machine.device": "cuda", "track.report": False, "track.tensorboard": False},
    )  # fmt: skip
    rows = [json.loads(line) for line in (result.folder / "system.jsonl").open()]
    seen = rows[-1]
    assert seen["gpu_bytes"] > 0 and seen["gpu_reserved_bytes"] >= seen["gpu_bytes"]
    assert seen["gpu_free_bytes"] > 0 and seen["gpu_other_bytes"] >= 0
    assert 0 <= seen["gpu_fragments"] <= 1
