"""Every way of every operation against its reference, and that a wrong one is caught."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from surefoot.config.model import GPTConfig
from surefoot.config.schema import Optim
from surefoot.errors import ConfigError
from surefoot.nn.gpt import GPT
from surefoot.nn.optim import build_optimisers
from surefoot.ops import NORM, OPS, SWIGLU, Way, slots
from surefoot.ops.check import check, measure

CPU = torch.device("cpu")
QUICK = [
    (op.name, name)
    for op in OPS.values()
    for name, way in op.ways.items()
    if name != "reference" and not way.slow_start and name != "triton"
]


@pytest.mark.parametrize(("op", "way"), QUICK)
def test_every_way_is_its_reference(op: str, way: str) -> None:
    reason = OPS[op].ways[way].why_not(CPU)
    if reason is not None:
        pytest.skip(reason)
    for finding in check(OPS[op], way, CPU, shapes=5):
        assert finding.fine, finding


def test_every_triton_kernel_is_its_reference() -> None:
    """In a process of its own: Triton decides at its import whether it interprets."""
    pytest.importorskip("triton")
    ops = [op.name for op in OPS.values() if "triton" in op.ways]
    assert all("TRITON_INTERPRET" in str(OPS[op].ways["triton"].why_not(CPU)) for op in ops)
    words = ["ops", "check", *ops, "--device", "cpu", "--shapes", "2", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "surefoot", *words],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "only 0-dimensional arrays" in done.stderr:
        pytest.skip("this Triton's interpreter is older than its numpy (3.6 beside 2.5)")
    assert done.returncode == 0, done.stderr
    found = [f for f in json.loads(done.stdout) if f["way"] == "triton"]
    assert {f["op"] for f in found} == set(ops) and all(f["fine"] for f in found)
    assert {f["dtype"] for f in found} == {"fp64", "fp32", "bf16", "fp16"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", [op.name for op in OPS.values() if "compile" in op.ways])
def test_every_compiled_reference_is_its_reference(op: str) -> None:
    for finding in check(OPS[op], "compile", CPU, shapes=2):
        assert finding.fine, finding


def with_way(way: Way):
    return replace(SWIGLU, ways={**SWIGLU.ways, "mine": way})


class Forgotten(torch.autograd.Function):
    """The gate's own gradient is left out: values are right, gradients are not."""

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return torch.nn.functional.silu(gate) * up

    @staticmethod
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        return grad * up * gate.sigmoid(), grad * torch.nn.functional.silu(gate)


@pytest.mark.parametrize(
    ("call", "caught"),
    [
        (Forgotten.apply, {"fp64", "fp32", "bf16", "fp16"}),
        (lambda g, u: (torch.nn.functional.silu(g.float()) * u.float()).to(g.dtype), {"fp64"}),
        (lambda g, u: torch.nn.functional.silu(g) * u * float("nan"), {"fp64", "fp32", "bf16", "fp16"}),
        (lambda g, u: (torch.nn.functional.silu(g) * u)[..., None], {"fp64", "fp32", "bf16", "fp16"}),
    ],
    ids=["gradient", "fp32 inside", "nan", "shape"],
)  # fmt: skip
def test_a_wrong_way_is_caught(call, caught) -> None:
    found = check(with_way(Way(call, tolerance=1e-5)), "mine", CPU, shapes=2)
    assert {f.dtype for f in found if not f.fine} == caught
    assert all("of " in f.where for f in found)


def test_speed_is_measured_beside_the_reference() -> None:
    found = measure(NORM, CPU, ["reference", "fused"], torch.float32, budget=0.01)
    assert found["reference"].ratio == 1.0
    assert 0 < found["fused"].seconds < 1


def test_every_operation_is_called_by_a_model_or_an_optimiser() -> None:
    sizes = {"d_model": 16, "num_layers": 1, "num_heads": 2, "context": 8, "dropout": 0.1}
    model, other = (GPT(GPTConfig(**sizes, feed_forward=kind), 11) for kind in ("swiglu", "relu2"))
    apart = GPT(GPTConfig(**sizes), 11, border=0)  # documents that do not see each other
    owners = [model, other, apart, *build_optimisers(model, Optim(kind="muon"))]
    assert {slot.op.name for slot in slots(owners)} == set(OPS)
    for slot in slots(owners):
        assert slot.call is slot.op.call
        slot.put(slot.op.ways["reference"].call)
        assert slot.call is slot.op.ways["reference"].call


def test_an_unknown_way_is_told_what_there_is_and_what_cannot_run_here() -> None:
    absent = Way(NORM.call, 1e-5, obstacle=lambda device: "no such chip")
    op = replace(NORM, ways={"reference": NORM.ways["reference"], "absent": absent})
    with pytest.raises(ConfigError) as told:
        op.pick("nosuch", CPU)
    assert told.value.problems[0].fix == "use norm=reference; absent cannot run here: no such chip"
