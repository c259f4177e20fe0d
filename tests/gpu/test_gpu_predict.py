"""On a CUDA device: what was foreseen without it is what its allocator says, and the verdict holds.

    python -m pytest tests/gpu/test_gpu_predict.py -q

Prints a table of both.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import gelu, group_norm, layer_norm, softplus

from surefoot import api, recipes
from surefoot.config import flags
from surefoot.data.batch import Data
from surefoot.engine import faults
from surefoot.engine.auto.fit import Pins
from surefoot.engine.foresee.cards import find_place
from surefoot.engine.foresee.on_card import WIDENED
from surefoot.engine.foresee.predict import Need, predict
from surefoot.engine.loop import steps
from surefoot.engine.place import apply, repeatable
from surefoot.engine.plan import prepare
from surefoot.engine.state import TrainState
from surefoot.engine.world import open_world
from surefoot.errors import OutOfResources

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TEXT = str(Path(__file__).parents[1] / "fixtures" / "shakespeare.txt")
BASE = {
    "path": TEXT, "d_model": 512, "num_heads": 8, "num_layers": 6, "context": 256,
    "batch_size": 24, "dropout": 0.0,
}  # fmt: skip
AGAIN = {"memory.checkpointing": True}
CASES: dict[str, tuple[str, dict[str, Any], str, int | None, dict[str, str]]] = {
    # name: recipe, settings, precision, examples at once, ways of operations
    "modern, bf16": ("charlm", BASE, "bf16", None, {}),
    "modern, fp16": ("charlm", BASE, "fp16", None, {}),
    "modern, fp32": ("charlm", BASE, "fp32", None, {}),
    "in pieces": ("charlm", BASE, "bf16", 6, {}),
    "gpt2 layout": ("charlm", {**BASE, "layout": "gpt2"}, "bf16", None, {}),
    "llama layout": ("charlm", {**BASE, "qk_norm": False}, "bf16", None, {}),
    "adamw": ("charlm", {**BASE, "optim.kind": "adamw"}, "bf16", 6, {}),
    "grouped queries": ("charlm", {**BASE, "num_kv_heads": 2}, "bf16", None, {}),
    "average": ("charlm", {**BASE, "ema": 0.9}, "bf16", 12, {}),
    "dropout": ("charlm", {**BASE, "dropout": 0.1}, "bf16", 12, {}),
    "long rows": ("charlm", {**BASE, "context": 512, "batch_size": 8}, "bf16", None, {}),
    "wide": ("charlm", {**BASE, "d_model": 1024, "batch_size": 8}, "bf16", None, {}),
    "deep": ("charlm", {**BASE, "num_layers": 20, "batch_size": 8}, "bf16", None, {}),
    "plain attention": ("charlm", BASE, "bf16", 12, {"attention": "matmul"}),
    "layers again": ("charlm", {**BASE, **AGAIN}, "bf16", None, {}),
    "layers again, in pieces": ("charlm", {**BASE, **AGAIN, "dropout": 0.1}, "bf16", 6, {}),
    "two learners": ("multiply", {"d_model": 256, "batch_size": 512}, "bf16", None, {}),
}
WITHIN = 0.015
MEMORY = 3e9  # bytes of the device that the verdict is tried with


@pytest.fixture(scope="module", autouse=True)
def warm() -> Iterator[None]:
    """Let cuBLAS take its workspaces, in this thread and in that of the backward pass."""
    repeatable(torch.device("cuda"))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        a = torch.ones(256, 256, device="cuda", dtype=dtype, requires_grad=True)
        torch.nn.functional.linear(a, a).sum().backward()
    del a
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def settled(recipe: str, settings: dict[str, Any]) -> tuple[Any, Any]:
    found = recipes.find(recipe)
    given, problems = flags.arguments(settings, found.config)
    assert not problems
    return found, api.settle(found, "tiny", [], given).config


def foreseen(
    recipe: str, settings: dict[str, Any], precision: str, micro: int | None, ops: dict[str, str]
) -> Need:
    found, config = settled(recipe, settings)
    place = find_place("this", None)
    pins = Pins("cpu", precision=precision, ops=ops)
    return predict(found, config, pins, micro=micro, block=place.block, processors=place.processors)


def taken(
    recipe: str, settings: dict[str, Any], precision: str, micro: int | None, ops: dict[str, str]
) -> int:
    """Return the most bytes of tensors in the third of three real steps."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    found, config = settled(recipe, settings)
    world = open_world("cuda")
    job = found.build(config, world)
    prepare(job, config, {})
    for learner in job.learners.values():
        apply(learner, Pins("cuda", precision=precision, ops=ops))
        learner.micro = micro
    data = Data(job.source, config.train.seed, config.train.batch_size)
    going = steps(TrainState(job.learners), data, 1, world)
    reports = list(islice(going, 2))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    reports.append(next(going))
    assert not any(report.happenings for report in reports), "memory ran out"
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("case", CASES)
def test_peak(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    need = foreseen(*CASES[case])
    real = taken(*CASES[case])
    with capsys.disabled():
        error = need.peak / real - 1
        print(
            f"\n{case:<18}{need.peak / 1e6:>10.1f} MB foreseen{real / 1e6:>10.1f} MB taken{error:>+8.2%}",
            end=" ",
        )
    assert need.peak == pytest.approx(real, rel=WITHIN)


def test_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    """The largest batch that is said to fit fits, and one of 1.15 times as many examples does not."""
    settings = {**BASE, "num_layers": 4}
    held = torch.cuda.memory_allocated()  # workspaces
    fragments = 1.03  # segments that grow leave little between tensors

    def peak(examples: int) -> int:
        return foreseen("charlm", settings | {"batch_size": examples}, "bf16", None, {}).peak

    few, more = peak(64), peak(128)
    slope = (more - few) / 64
    examples = int(64 + ((MEMORY - held) / fragments - few) / slope)
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(MEMORY / whole)
    try:
        sizes = [settings | {"batch_size": n} for n in (examples, int(1.15 * examples))]
        most = taken("charlm", sizes[0], "bf16", None, {})
        with capsys.disabled():
            print(f"\n{examples} examples: {most / 1e6:.0f} of {MEMORY / 1e6:.0f} MB", end=" ")
        with pytest.raises((torch.OutOfMemoryError, OutOfResources, AssertionError)) as caught:
            taken("charlm", sizes[1], "bf16", None, {})
        assert "memory" in str(caught.value).lower() or faults.out_of_memory(caught.value)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_autocast_widens_what_is_foreseen() -> None:
    """The functions that a play on a processor widens are those that CUDA does."""
    x = torch.ones(4, 8, device="cuda", dtype=torch.bfloat16)
    calls = {
        "pow": lambda: torch.pow(x, 3.0), "__pow__": lambda: x**2, "layer_norm": lambda: layer_norm(x, (8,)),
        "group_norm": lambda: group_norm(x, 2), "logsumexp": lambda: x.logsumexp(-1), "softplus": lambda: softplus(x),
    }  # fmt: skip
    with torch.autocast("cuda", torch.bfloat16):
        for name in WIDENED:
            call = calls.get(name, lambda name=name: getattr(torch, name)(x))
            assert call().dtype == torch.float32, name
        assert torch.tanh(x).dtype == gelu(x).dtype == torch.bfloat16
