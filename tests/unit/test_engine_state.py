"""What a checkpoint holds, and that it comes back exactly."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

from surefoot.engine import World, steps
from surefoot.engine.checksum import WINDOW, checksum
from surefoot.engine.named import moments, restore_moments, restore_weights, weights
from surefoot.engine.state import Payload, Snapshot, TrainState, _wait
from surefoot.errors import CheckpointError

WORLD = World(torch.device("cpu"))


def trained(toy: Any, count: int = 3, **changes: Any) -> TrainState:
    ema = changes.pop("ema", None)
    state = TrainState({"main": toy.learner(**changes)})
    state.learners["main"].average_with(ema)
    for report in steps(state, toy.data(), 1, WORLD):
        if report.step == count:
            break
    return state


def kept(state: TrainState) -> Payload:
    return copy.deepcopy(state.payload())


@pytest.mark.parametrize("ema", [None, 0.9])
def test_the_payload_names_everything(toy: Any, ema: float | None) -> None:
    payload = trained(toy, ema=ema).payload()
    files = {"main.model.safetensors", "main.optim.safetensors"}
    assert set(payload.tensors) == files | ({"main.ema.safetensors"} if ema else set())
    names = {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert set(payload.tensors["main.model.safetensors"]) == names
    assert "0.weight/exp_avg_sq" in payload.tensors["main.optim.safetensors"]
    assert json.loads(json.dumps(payload.small)) == payload.small
    assert payload.small["learners"]["main"]["step"] == 3


def test_a_payload_refers_and_a_snapshot_copies(toy: Any) -> None:
    state = trained(toy)
    snapshot = Snapshot()
    first = snapshot.take(state.payload())
    weight = first.tensors["main.model.safetensors"]["0.weight"]
    assert weight.data_ptr() != state.learners["main"].parameters[0].data_ptr()
    again = snapshot.take(state.payload())
    assert again.tensors["main.model.safetensors"]["0.weight"].data_ptr() == weight.data_ptr()
    state.learners["main"].memory["x"] = [1]
    taken = snapshot.take(state.payload())
    state.learners["main"].memory["x"].append(2)
    assert taken.small["learners"]["main"]["memory"]["x"] == [1]


def test_restoring_refuses_what_does_not_fit(toy: Any) -> None:
    payload = kept(trained(toy))
    wider = TrainState({"main": toy.learner(width=17)})
    with pytest.raises(CheckpointError) as failed:
        wider.restore(payload)
    assert "0.weight: float32 [16, 20] in the checkpoint, float32 [17, 20] in the model" in str(
        failed.value
    )
    payload.tensors["main.model.safetensors"]["0.weight"] = torch.zeros(16, 20, dtype=torch.double)
    payload.tensors["main.model.safetensors"]["other"] = torch.zeros(1)
    del payload.tensors["main.model.safetensors"]["3.bias"]
    with pytest.raises(CheckpointError) as failed:
        TrainState({"main": toy.learner()}).restore(payload)
    for words in ("3.bias: not in the checkpoint", "other: not in the model", "float64 [16, 20]"):
        assert words in str(failed.value)


@pytest.mark.parametrize("file", ["main.model.safetensors", "main.optim.safetensors"])
def test_restoring_refuses_half_a_learner(toy: Any, file: str) -> None:
    payload = kept(trained(toy))
    del payload.tensors[file]
    with pytest.raises(CheckpointError, match=f"lacks {file} of learner main"):
        TrainState({"main": toy.learner()}).restore(payload)


def test_restoring_refuses_small_state_with_a_gap(toy: Any) -> None:
    payload = kept(trained(toy))
    del payload.small["learners"]["main"]["lr_factor"]
    with pytest.raises(CheckpointError, match="lacks lr_factor of learner main"):
        TrainState({"main": toy.learner()}).restore(payload)


def test_an_average_that_is_asked_for_must_be_there(toy: Any) -> None:
    payload = kept(trained(toy))
    learner = toy.learner()
    learner.average_with(0.9)
    with pytest.raises(CheckpointError, match=r"lacks main\.ema\.safetensors"):
        TrainState({"main": learner}).restore(payload)


def test_a_learner_that_is_not_here_is_named_and_a_new_one_starts_at_zero(toy: Any) -> None:
    payload = kept(trained(toy))
    with pytest.raises(CheckpointError, match="a learner that is not in this run: main"):
        TrainState({"other": toy.learner()}).restore(payload)
    both = TrainState({"main": toy.learner(), "new": toy.learner(width=8)})
    both.restore(payload)
    assert (both.learners["main"].step, both.learners["new"].step, both.step) == (3, 0, 0)
    assert both.due() == ["new"]


def test_moments_of_an_unknown_parameter_are_refused(toy: Any) -> None:
    learner = trained(toy).learners["main"]
    saved = copy.deepcopy(moments(learner))
    restore_moments(learner, saved)
    with pytest.raises(CheckpointError, match="a parameter that is not trained: gone"):
        restore_moments(learner, {"gone/exp_avg": torch.zeros(1)})


def test_frozen_parameters_are_inputs_and_buffers_are_state(toy: Any) -> None:
    model = toy.model()
    model[0].bias.requires_grad_(False)
    model.register_buffer("seen", torch.zeros(2))
    model.register_buffer("scratch", torch.zeros(2), persistent=False)
    found = weights(model)
    assert "seen" in found and "0.bias" not in found and "scratch" not in found
    restore_weights(model, {name: t + 1 for name, t in found.items()})
    assert torch.equal(model.seen, torch.ones(2))


def test_the_checksum_feels_one_bit_of_anything(toy: Any) -> None:
    learner = trained(toy, ema=0.9).learners["main"]
    before = int(checksum(learner, 3))
    assert before == int(checksum(learner, 99)), "a small model is in it whole, at every step"
    held = [*learner.parameters, *learner.average.values(), *moments(learner).values()]
    for tensor in held:
        flat = tensor.detach().reshape(-1)
        old = flat[-1].clone()
        flat[-1] = torch.nextafter(old, torch.tensor(float("inf")))
        assert int(checksum(learner, 3)) != before
        flat[-1] = old
    assert int(checksum(learner, 3)) == before


def test_the_checksum_of_a_large_model_moves_over_all_of_it(toy: Any) -> None:
    learner = toy.learner(width=5000)
    count = sum(p.numel() for p in learner.parameters)
    assert count > 3 * WINDOW
    rounds = -(-count // WINDOW)
    before = [int(checksum(learner, step)) for step in range(rounds)]
    for parameter in learner.parameters:
        for place in (0, parameter.numel() // 2, -1):
            flat = parameter.detach().view(-1)
            old = flat[place].clone()
            flat[place] = torch.nextafter(old, torch.tensor(float("inf")))
            assert [int(checksum(learner, step)) for step in range(rounds)] != before
            flat[place] = old


def test_copies_are_waited_for_on_the_device_that_they_come_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waited.append(str(device)))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    _wait([torch.device(name) for name in ("cpu", "cuda:1", "mps")])
    assert waited == ["cuda:1", "mps"], "a thread that saves begins on the first device"
