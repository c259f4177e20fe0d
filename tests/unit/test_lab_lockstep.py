"""Two implementations in lockstep: equal ones are equal, planted faults are found where they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot import api, recipes, trust
from surefoot.config import flags
from surefoot.errors import CheckFailed, ConfigError, DataError
from surefoot.lab import trace
from surefoot.lab.lockstep import Lockstep, lockstep
from surefoot.lab.side import Side

TEXT = Path(__file__).resolve().parents[1] / "fixtures" / "shakespeare.txt"
BASE = {
    "path": TEXT, "d_model": 16, "num_layers": 2, "device": "cpu", "precision": "fp32",
    "threads": 1, "matmul": "default", "compile": "off", "micro_batch_size": 4, "dropout": 0.1,
    "prefetch_threads": 0, "attention": "sdpa", "cross_entropy": "reference", "norm": "fused",
    "rotary": "fused", "swiglu": "reference", "keyed_dropout": "table",
}  # fmt: skip
RECIPE = recipes.find("charlm")


def config(**settings: Any) -> Any:
    given, problems = flags.arguments({**BASE, **settings}, RECIPE.config)
    return api.settle(RECIPE, "tiny", [], given, problems).config


def side(label: str = "a", **settings: Any) -> Side:
    return Side(label, RECIPE, config(**settings), None)


def walk(count: int = 3, tethered: bool = True, **settings: Any) -> Lockstep:
    a = side()
    return lockstep(a, Side("b", RECIPE, config(**settings), None), count, tethered=tethered)


def kernel(folder: Path, text: str) -> str:
    path = folder / "kernel.py"
    path.write_text(f"import torch\nfrom surefoot.ops import NORM, SWIGLU, Way\n{text}")
    trust.name(path)
    return str(path)


def test_the_same_twice_is_the_same_to_the_bit() -> None:
    a, b = side(), side("b")
    found = lockstep(a, b, 3, tethered=False)
    assert found.identical and found.first is None and found.steps == 3
    assert found.tracks["main"].weights == 0.0
    assert found.memory[0] == found.memory[1] > 0 and found.growth == 0
    assert all(spent > 0 for spent in found.seconds)
    for learner in (a.job.learners["main"], b.job.learners["main"]):
        assert not {"update", "accumulate", "gradient_norm"} & vars(learner).keys()


def test_another_way_is_within_the_tolerance_and_b_follows() -> None:
    a, b = side(), side("b", attention="reference")
    with torch.no_grad():
        b.job.learners["main"].parameters[0].zero_()  # what b began with does not matter
    found = lockstep(a, b, 3, tethered=True)
    assert found.first is None and not found.identical
    assert 0 < max(e for _, e in found.tracks["main"].gradient) < 1e-5
    assert found.growth > 0.02, "the reference keeps more for backward"
    for mine, other in zip(a.job.learners["main"].parameters, b.job.learners["main"].parameters):
        assert torch.equal(mine, other)


def test_a_wrong_forward_is_named_by_its_layer(tmp_path: Path) -> None:
    wrong = "ways = {'norm': Way(lambda x, w, e, k: NORM.call(x, w, e, k) * 1.01, 1e-5)}"
    found = walk(norm=kernel(tmp_path, wrong))
    assert found.first is not None
    assert (found.first.step, found.first.phase) == (1, "forward")
    assert found.first.layer == "blocks.0.norm1.compute"
    assert found.first.error == pytest.approx(0.01, rel=1e-3)
    assert len(found.tracks["main"].loss) == 3, "it goes on"


def test_a_wrong_backward_is_named_by_its_gradient(tmp_path: Path) -> None:
    wrong = """
class Decay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        return SWIGLU.call(gate, up)
    @staticmethod
    def backward(ctx, grad):
        return 0 * grad, 0 * grad
ways = {"swiglu": Way(Decay.apply, 1e-5)}
"""
    found = walk(swiglu=kernel(tmp_path, wrong))
    assert found.first is not None and found.first.phase == "backward"
    assert found.first.layer.startswith("blocks.1.mlp."), "the last block is the first in backward"
    assert found.first.error == pytest.approx(1.0)


def test_a_kernel_that_gives_nan_is_named(tmp_path: Path) -> None:
    wrong = "ways = {'norm': Way(lambda x, w, e, k: NORM.call(x, w, e, k) * float('nan'), 1e-5)}"
    found = walk(norm=kernel(tmp_path, wrong))
    assert found.first is not None and found.first.layer == "blocks.0.norm1.compute"


def test_another_update_of_equal_gradients_is_named() -> None:
    found = walk(weight_decay=0.5)
    assert found.first is not None
    assert (found.first.step, found.first.phase) == (1, "update")
    assert walk(adamw="reference").first is None


def test_free_walkers_drift_and_say_so() -> None:
    found = walk(count=8, tethered=False, norm="reference")
    assert 0 < found.tracks["main"].weights < 0.1
    apart = lockstep(side(), side("b", norm="reference"), 4, tethered=False, tolerance=1e-9)
    assert apart.first is not None and apart.first.step <= 4


def test_what_cannot_be_compared_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        walk(batch_size=4, d_model=32, val_ratio=0.3)
    assert len(caught.value.problems) == 3


def test_every_auto_of_b_is_what_it_became_in_a() -> None:
    a = side(norm="torch")
    asked = config(
        norm="auto", threads="auto", precision="auto", compile="auto", micro_batch_size="auto"
    )
    b = a.settled(asked)
    assert b.ops.norm == "torch" and b.machine.threads == 1 and b.machine.precision == "fp32"
    assert b.machine.compile == "off" and b.machine.micro_batch_size == 4


def test_a_trace_is_kept_and_holds(tmp_path: Path) -> None:
    path = tmp_path / "charlm.trace.json"
    trace.write(trace.record(side(), 12), path)
    known = trace.read(path)
    assert trace.compare(side(), known, 0.0) == 12
    assert not trace.changed_since(known)
    assert {"0", "10", "12"} == known["weights"].keys()
    assert known["settings"]["ops.norm"] == "fused"
    with pytest.raises(CheckFailed, match=r"step 1: .* blocks.0.norm1.compute"):
        trace.compare(side(norm="reference"), known, 0.0)
    short = {**known, "learners": {"main": {**known["learners"]["main"]}}, "weights": {}}
    short["learners"]["main"]["steps"] = short["learners"]["main"]["steps"][:2]
    assert trace.compare(side(norm="reference"), short, 1e-4) == 2
    with pytest.raises(CheckFailed, match=r"the weight .* is another"):
        trace.compare(side(seed=2), known, 1e-4)
    with pytest.raises(CheckFailed, match="the data is not that of the trace"):
        trace.compare(side(val_ratio=0.3), known, 0.0)


def test_one_bit_of_a_later_step_is_found() -> None:
    known = trace.record(side(), 4)
    loss = float.fromhex(known["learners"]["main"]["steps"][2][0])
    known["learners"]["main"]["steps"][2][0] = (loss * (1 + 2**-23)).hex()
    with pytest.raises(CheckFailed, match="step 3: the loss is another"):
        trace.compare(side(), known, 0.0)


@pytest.mark.parametrize("text", [None, "[]", "{", json.dumps({"format": 1})])
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "trace.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(
        DataError, match="this is no trace" if text else "cannot read the trace: No such"
    ):
        trace.read(path)
