"""A run says by name what does not learn in it, and trains on just the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.e2e.conftest import PINS

# What recipes of tests begin with: numbers, and what a job is built of.
NUMBERS = """
from dataclasses import dataclass
from typing import Any
from surefoot import Batch, Recipe, RunConfig
class Numbers:
    fingerprint = "numbers/1"
    def __len__(self): return 64
    def batch(self, index, epoch, key):
        import numpy as np
        x = np.sin(index[:, None] * np.array([0.3, 1.1])).astype("float32")
        return Batch({"x": x}, len(index))
def build(config, world):
    import torch
    from surefoot import Job, Learner, Loss
    from surefoot.nn.optim import build_optimisers
"""
RECIPE = (
    NUMBERS
    + """
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(config.train.seed)
            self.body, self.side = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        def forward(self, x): return self.body(x) + self.side(x).detach()
    def loss(model, batch):
        return Loss((model(batch.fields["x"]) - batch.fields["x"].flip(1)).square().sum())
    model = Model()
    return Job(Numbers(), {"main": Learner(model, loss, build_optimisers(model, config.optim))})
recipe = Recipe(name="detached", summary="a fault", config=RunConfig, build=build)
"""
)


def rows(runs: Path, name: str) -> list[dict[str, Any]]:
    """Return what a run recorded, but for what the clock says."""
    found = map(json.loads, (runs / name / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in row.items() if k not in ("time", "tokens_per_s", "examples_per_s")}
        for row in found
        if row["kind"] == "train"
    ]


def test_a_detached_branch_is_named_and_the_numbers_stay(surefoot: Any, tmp_path: Path) -> None:
    (tmp_path / "detached.py").write_text(RECIPE)
    pins = [str(w) for key, value in PINS.items() for w in (f"--{key}", value)]
    more = ["--max-steps", "24", "--warmup-steps", "2", "--batch-size", "8", "--log-every", "1"]
    off = ["--track.tensorboard", "no", "--track.report", "no"]
    words = ["train", tmp_path / "detached.py", *pins, *more, *off, "--runs", tmp_path]
    said = surefoot(*words, "--name", "looked").ok()
    log = (tmp_path / "looked" / "log.txt").read_text()
    for name in ("side.weight", "side.bias"):
        assert f"step 20: {name} receives no gradient" in log
        assert f"{name} receives no gradient" in said.out + said.err
    assert "body" not in "".join(x for x in log.splitlines() if "step 20:" in x)
    silent = surefoot(*words, "--name", "unlooked", "--life-check", "no").ok()
    assert "gradient" not in silent.err + (tmp_path / "unlooked" / "log.txt").read_text()
    assert rows(tmp_path, "looked") == rows(tmp_path, "unlooked")
