"""Ways as asked for, from a file of one's own, or measured; and what a run writes down of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from surefoot import trust
from surefoot.config.model import GPTConfig
from surefoot.config.schema import Ops, RunConfig
from surefoot.engine import Job, Learner, Loss
from surefoot.engine.auto import tune
from surefoot.engine.auto.fit import Pins
from surefoot.engine.auto.probe import Probe
from surefoot.engine.own import find, operations_of, pinned
from surefoot.errors import ConfigError, RunError
from surefoot.nn.gpt import GPT
from surefoot.ops import NORM

CPU = torch.device("cpu")
KERNEL = """
from surefoot.ops import Way
def norm(x, weight, eps, kind):
    return (x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight).to(kind)
ways = {"norm": Way(norm, tolerance=1e-5)}
"""


def job(**model: Any) -> Job:
    sizes = {"d_model": 16, "num_layers": 1, "num_heads": 2, "context": 8, **model}
    learner = Learner(GPT(GPTConfig(**sizes), 11), lambda m, b: Loss(m(b)), [])
    return Job(source=SimpleNamespace(), learners={"main": learner})


def test_auto_begins_with_the_standard_and_a_name_is_taken_as_it_is() -> None:
    found, unused = tune.begin(RunConfig(ops=Ops(norm="reference")), job(), CPU)
    assert unused == []
    assert found["norm"] == "reference" and found["attention"] == "sdpa"
    assert "adamw" not in found, "this job has no optimiser"


def test_only_what_is_used_is_raced() -> None:
    probe = object.__new__(Probe)
    probe.config = RunConfig()
    raced = {op for _, _, ways in probe._candidates({"norm": "fused"}) for op in ways}
    assert raced == set()
    used = {"attention": "sdpa", "cross_entropy": "reference"}
    assert {op for _, _, ways in probe._candidates(used) for op in ways} == set(used)


def test_what_is_asked_for_and_used_by_nobody_is_named() -> None:
    found, unused = tune.begin(RunConfig(ops=Ops(adamw="foreach", norm="torch")), job(), CPU)
    assert unused == ["adamw"] and found["norm"] == "torch"


def test_a_way_that_is_clearly_faster_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    made, times = job(), {"reference": 3.0, "fused": 2.0, "torch": 1.0}
    monkeypatch.setattr(tune, "seconds", lambda calls, *_: {way: times[way] for way in calls})
    before = [slot.call for slot in tune._slots(made)]

    def run() -> None:
        made.learners["main"].model(torch.zeros(2, 8, dtype=torch.int64)).sum().backward()

    found, why = tune.choose(made, ["norm"], run, CPU, {"norm": "fused"}, step=10.0)
    assert found == {"norm": "torch"}
    assert "torch 1000.000 (x3)" in why["ops"]
    times["torch"] = 1.7
    assert tune.choose(made, ["norm"], run, CPU, {"norm": "fused"}, step=10.0)[0] == {}
    assert tune.choose(made, ["norm"], run, CPU, {"norm": "fused"}, step=1e6) == ({}, {})
    assert [slot.call for slot in tune._slots(made)] == before, "nothing keeps listening"


def test_a_way_from_a_file_is_pinned_with_its_hash(tmp_path: Path) -> None:
    file = tmp_path / "kernel.py"
    file.write_text(KERNEL)
    trust.name(file)
    name = pinned(str(file))
    assert name.startswith(f"{file}#") and pinned(name) == name
    x = torch.randn(3, 4)
    call = find(NORM, name).pick(name, "cpu")
    assert torch.allclose(
        call(x, torch.ones(4), 1e-6, x.dtype), NORM.call(x, torch.ones(4), 1e-6, x.dtype)
    )
    assert list(operations_of(str(file))) == ["norm"]
    file.write_text(KERNEL + "# changed")
    with pytest.raises(RunError, match="changed since this run began"):
        find(NORM, name)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "cannot read the kernel"),
        ("1/0", "does not import: ZeroDivisionError"),
        ("ways = {'norm': abs}", "no mapping `ways`"),
        ("from surefoot.ops import Way\nways = {'swiglu': Way(abs, 0.1)}", "no way of norm, only of swiglu"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_kernel_is_explained(tmp_path: Path, text: str | None, what: str) -> None:
    file = tmp_path / "kernel.py"
    if text is not None:
        file.write_text(text)
        trust.name(file)
    with pytest.raises(ConfigError, match=what):
        find(NORM, str(file))


def test_ways_of_an_unknown_operation_are_named(tmp_path: Path) -> None:
    file = tmp_path / "kernel.py"
    file.write_text("from surefoot.ops import Way\nways = {'nrm': Way(abs, 0.1)}")
    trust.name(file)
    with pytest.raises(ConfigError, match="no operation: nrm"):
        operations_of(str(file))


def test_pins_of_older_runs_are_read() -> None:
    old = {
        "device": "cpu",
        "attention": "matmul",
        "cross_entropy": "chunked",
        "threads": 2,
        "why": {},
    }
    pins = Pins.read(old)
    assert pins.ops == {"attention": "matmul", "cross_entropy": "chunked"} and pins.threads == 2
    assert Pins.read(pins.as_dict()) == pins
