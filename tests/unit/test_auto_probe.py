"""How many threads a run gets, measured at its own size, and how much an example keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surefoot import api, recipes
from surefoot.config import flags
from surefoot.config.schema import Machine, RunConfig, ScheduleConfig, Train
from surefoot.data.batch import Batch
from surefoot.engine import Job, Learner, Loss, World
from surefoot.engine.auto import fit, probe
from surefoot.engine.auto.fit import Pins
from surefoot.engine.auto.probe import Probe
from surefoot.engine.plan import prepare
from surefoot.engine.world import open_world

TEXT = str(Path(__file__).parents[1] / "fixtures" / "shakespeare.txt")
PINS = Pins(device="cpu", precision="fp32", threads=1, matmul="default")


def choose(
    monkeypatch: pytest.MonkeyPatch,
    together: float,
    by_onednn: float = 9.9,
    pins: Pins = PINS,
    each: float = 0.001,
    **machine: Any,
) -> tuple[Pins, float, Probe]:
    """Let a pass take 1 s on one thread, and what is given on both."""
    monkeypatch.setattr(probe, "usable_cores", lambda: 2)
    monkeypatch.setattr(Probe, "_may_use_onednn", lambda _, precision: precision == "fp32")
    made = object.__new__(Probe)
    made.config, made.why, made.least = RunConfig(machine=Machine(**machine)), {}, 1

    def seconds(trial: Pins) -> float:
        both = by_onednn if trial.matmul == "onednn" else together
        return both if trial.threads == 2 else 1.0

    monkeypatch.setattr(made, "_seconds", seconds)
    return *made._thread(pins, 12, each), made


@pytest.mark.parametrize(("together", "threads"), [(0.94, 2), (0.96, 1)])
def test_more_threads_must_gain_five_percent(
    monkeypatch: pytest.MonkeyPatch, together: float, threads: int
) -> None:
    pins, each, made = choose(monkeypatch, together)
    assert (pins.threads, pins.matmul) == (threads, "default")
    assert each == (together / 12 if threads == 2 else 0.001)
    assert made.why["threads"].endswith("for 12 examples")


def test_another_library_may_share_its_work_out_better(monkeypatch: pytest.MonkeyPatch) -> None:
    pins, _, made = choose(monkeypatch, together=0.7, by_onednn=0.6)
    assert (pins.threads, pins.matmul) == (2, "onednn")
    assert "2 by oneDNN: 600.0 ms" in made.why["threads"]


def test_a_library_is_tried_in_full_precision_only(monkeypatch: pytest.MonkeyPatch) -> None:
    half = Pins(device="cpu", precision="bf16", threads=1, matmul="default")
    assert choose(monkeypatch, together=0.7, by_onednn=0.1, pins=half)[0].matmul == "default"


def test_a_slow_model_is_timed_with_fewer_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(monkeypatch, together=0.5, each=0.02)[2].size == 5
    assert choose(monkeypatch, together=0.5, each=3.0)[2].size == 1


def test_asked_for_threads_are_not_raced(monkeypatch: pytest.MonkeyPatch) -> None:
    pins, _, made = choose(monkeypatch, together=0.1, threads=1)
    assert pins == PINS and "threads" not in made.why


def kept(checkpointing: bool, layers: int) -> int:
    """Bytes that a probe finds to be kept for an example."""
    recipe = recipes.find("charlm")
    settings = {
        "path": TEXT, "d_model": 48, "num_heads": 4, "num_layers": layers, "context": 64,
        "memory.checkpointing": checkpointing,
    }  # fmt: skip
    given, problems = flags.arguments(settings, recipe.config)
    config = api.settle(recipe, "tiny", [], given, problems).config
    world = open_world("cpu")
    job = recipe.build(config, world)
    prepare(job, config, {})
    made = Probe(config, job, world)
    made.size = 2
    return made._activations(PINS)


def test_of_layers_computed_again_one_is_counted_whole_and_of_others_the_input() -> None:
    layer = (kept(False, 6) - kept(False, 3)) // 3
    few, many = kept(True, 3), kept(True, 6)
    assert many - few == 3 * 64 * 48 * 4  # layers x tokens x width, in fp32
    assert layer < few < 2 * layer and few < kept(False, 3) // 2


class Counted(nn.Module):
    """A line that counts in a buffer how often it is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(20, 1)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        found: Tensor = self.line(x)
        return found


def test_nothing_is_left_of_the_probe_in_buffers(toy: Any) -> None:
    """Else a run would begin otherwise where its answers are remembered, and each time a little."""
    model = Counted()
    calls: list[int] = []

    def loss(model: nn.Module, batch: Batch) -> Loss:
        calls.append(len(batch.fields["x"]))
        return Loss((model(batch.fields["x"]) - batch.fields["y"]).square().sum())

    learner = Learner(model, loss, [torch.optim.AdamW(model.parameters())])
    config = RunConfig(train=Train(batch_size=8), machine=Machine(compile="off", threads=1))
    fit.choose(config, Job(toy, {"main": learner}), World(torch.device("cpu")), 10, None)
    assert calls
    assert model.calls == 0


@pytest.mark.parametrize("batch", [8, 9])
@pytest.mark.parametrize("room", [1 << 30, 1])
def test_a_model_that_takes_no_single_example_is_given_more(
    toy: Any, batch: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BatchNorm1d; also where memory is for one alone, and where two do not cut the batch."""
    monkeypatch.setattr(probe, "_free_memory", lambda _: room)
    model = nn.Sequential(nn.Linear(20, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    passes: list[int] = []

    def loss(model: nn.Module, batch: Batch) -> Loss:
        passes.append(len(batch.fields["x"]))
        return Loss((model(batch.fields["x"]) - batch.fields["y"]).square().sum())

    learner = Learner(model, loss, [torch.optim.AdamW(model.parameters())])
    config = RunConfig(train=Train(batch_size=batch), machine=Machine(compile="off"))
    pins, _ = fit.choose(config, Job(toy, {"main": learner}), World(torch.device("cpu")), 10, None)
    fit_there = {8: (8, 4, 2), 9: (9, 3)}[batch]  # which of them is fastest, the clock says
    assert pins.micro_batch_size in (fit_there if room > 1 else fit_there[-1:])
    assert passes[:2] == [1, 2]
    assert min(passes[1:]) == 2


def test_what_works_with_no_number_of_examples_is_said(toy: Any) -> None:
    def loss(model: nn.Module, batch: Batch) -> Loss:
        raise ValueError(f"{len(batch.fields['x'])} examples are of no use")

    model = nn.Linear(20, 1)
    learner = Learner(model, loss, [torch.optim.AdamW(model.parameters())])
    for size, tried in (1, 1), (8, 2):
        config = RunConfig(train=Train(batch_size=size))
        with pytest.raises(ValueError, match=f"{tried} examples are of no use"):
            Probe(config, Job(toy, {"main": learner}), World(torch.device("cpu"))).answer()


def tried(toy: Any, seconds: float, steps: int) -> tuple[int, list[str]]:
    """How many passes a probe takes of a model whose pass takes so long, and what it says."""
    now, told = [0.0], []

    def loss(model: nn.Module, batch: Batch) -> Loss:
        now[0] += seconds
        return Loss((model(batch.fields["x"]) - batch.fields["y"]).square().sum())

    model = nn.Linear(20, 1)
    learner = Learner(model, loss, [torch.optim.AdamW(model.parameters())])
    config = RunConfig(
        train=Train(batch_size=2, max_steps=steps),
        schedule=ScheduleConfig(warmup_steps=0),
        machine=Machine(micro_batch_size=1, threads=1),
    )
    made = Probe(config, Job(toy, {"main": learner}), World(torch.device("cpu")), told.append)
    made.clock, made.deadline = lambda: now[0], probe._BUDGET
    made.answer()
    return round(now[0] / seconds), told


def test_of_a_slow_model_each_trial_is_one_pass_and_a_person_hears_why(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first, what it keeps, bf16, oneDNN, and which operations it has."""
    monkeypatch.setattr(Probe, "_may_use_onednn", lambda _, precision: precision == "fp32")
    passes, told = tried(toy, 75.0, 1000)
    assert passes == 5
    assert len(told) == 1 and "took 75 s" in told[0]
    assert tried(toy, 75.0, 3)[0] == 4  # of a run of six such passes
    many, silent = tried(toy, 0.2, 1000)
    assert many > 5 and not silent
