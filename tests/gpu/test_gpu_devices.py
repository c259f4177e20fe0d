"""On a CUDA device: a group over NCCL, of as many ranks as there are devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TEXT = Path(__file__).resolve().parents[1] / "fixtures" / "shakespeare.txt"


def trained(runs: Path, name: str, ranks: int, *words: str) -> bytes:
    """Train as torchrun would start it; return the weights."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
        "-m", "surefoot", "train", "charlm", "--preset", "tiny", "--data.path", str(TEXT),
        "--name", name, "--runs", str(runs), "--micro-batch-size", "1", "--max-steps", "20",
        "--device", "cuda", "--precision", "fp32", "--compile", "off", "--dropout", "0.1",
        "--ops.cross_entropy", "reference", "--norm", "reference", "--rotary", "reference",
        "--swiglu", "reference", "--quiet", "--no-report", "--no-tensorboard", *words,
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "RANK"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    meta = json.loads((runs / name / "run.json").read_text())
    assert meta["segments"][-1]["ranks"] == ranks
    last = max((runs / name / "checkpoints").glob("step-*"))
    return (last / "main.model.safetensors").read_bytes()


def test_a_group_over_nccl_has_the_same_bits_however_weights_are_held(tmp_path: Path) -> None:
    count = torch.cuda.device_count()
    ddp = trained(tmp_path, "ddp", count, "--parallel", "ddp", "--reduce", "tree")
    split = trained(tmp_path, "fsdp2", count, "--parallel", "fsdp2", "--reduce", "tree")
    assert ddp == split
    if count > 1:
        one = trained(tmp_path, "one", 1, "--parallel", "none", "--reduce", "tree")
        assert ddp == one
