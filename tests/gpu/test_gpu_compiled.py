"""On a CUDA device: compiled code that loses a gradient is found, and what is right is not accused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surefoot
from surefoot.errors import CheckFailed
from surefoot.nn.norm import RMSNorm

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

TEXT = Path(__file__).resolve().parents[1] / "fixtures" / "shakespeare.txt"
SMALL: dict[str, Any] = {
    "path": TEXT, "d_model": 64, "num_layers": 2, "num_heads": 2, "context": 64, "dropout": 0.1,
    "batch_size": 32, "max_steps": 4, "warmup_steps": 2, "log_every": 1, "validate_every": 0, "sample_every": 0,
    "compile": "on", "device": "cuda", "track.report": False, "track.tensorboard": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Let no test take code that was made for another one."""
    torch._dynamo.reset()


@pytest.mark.parametrize("layout", ["modern", "gpt2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_what_is_right_is_only_in_the_log(precision: str, layout: str, tmp_path: Path) -> None:
    losses: list[list[float]] = []
    for asked in (True, False):
        more: dict[str, Any] = {
            "precision": precision,
            "layout": layout,
            "zero_init": layout == "modern",
            "track.compile_check": asked,
        }
        result = surefoot.train("charlm", runs=tmp_path, new=True, quiet=True, **SMALL, **more)
        log = (result.folder / "log.txt").read_text()
        rows = map(json.loads, (result.folder / "metrics.jsonl").read_text().splitlines())
        losses.append([row["loss"] for row in rows if row["kind"] == "train"])
        told = [line.partition("  ")[2] for line in log.splitlines() if "compiled code" in line]
        print(precision, layout, told)
        assert len(told) == asked
        assert all("compiled code gives the model's gradient, " in line for line in told)
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("zeros", [False, True], ids=["", "behind zeros"])
def test_what_is_lost_is_named(
    zeros: bool, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = RMSNorm.forward

    def losing(self: nn.Module, x: Tensor) -> Tensor:
        found: Tensor = whole(self, x)  # type: ignore[arg-type]
        return found.detach() if torch.compiler.is_compiling() else found

    monkeypatch.setattr(RMSNorm, "forward", losing)
    more: dict[str, Any] = {"precision": precision, "zero_init": zeros}
    with pytest.raises(CheckFailed, match=r"a wrong gradient: .*none at all") as caught:
        surefoot.train("charlm", runs=tmp_path, new=True, quiet=True, **SMALL, **more)
    assert "before step 1, " in str(caught.value.where)
