"""What does not learn is named within twenty updates; what learns is not accused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.config.schema import Optim
from surefoot.data.batch import Batch, Data
from surefoot.engine import Learner, Loss, TrainState, World, steps
from surefoot.engine.watch.life import LATER, STEPS, Life
from surefoot.nn.dropout import Dropout
from surefoot.nn.optim import build_optimisers

CPU = World(torch.device("cpu"))


class Waves:
    """Two numbers and what is to be said of them."""

    fingerprint = "waves/1"

    def __len__(self) -> int:
        return 400

    def batch(self, index: Any, epoch: Any, key: int) -> Batch:
        x = np.stack([np.sin(index * 0.37), np.cos(index * 1.7)], 1).astype(np.float32)
        y = np.stack([x[:, 0] * x[:, 1], x[:, 0] - x[:, 1]], 1)
        return Batch({"x": x, "y": y}, len(index))


def squares(model: nn.Module, batch: Batch) -> Loss:
    return Loss((model(batch.fields["x"]) - batch.fields["y"]).square().sum())


def plain(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))


def examined(
    model: nn.Module, seed: int = 0, optim: Optim | None = None, loss: Callable[..., Loss] = squares
) -> tuple[Learner, list[str]]:
    """Train for twenty steps; return the learner and what was found."""
    data = Data(Waves(), seed, 16)
    optim = optim or Optim(kind="adamw", lr=3e-3)
    learner = Learner(model, loss, build_optimisers(model, optim), limit=STEPS)
    life = Life(learner, CPU.to(data.batch(0)), seed)
    assert life.watch() == []
    said = [life.findings() for _ in steps(TrainState({"main": learner}), data, seed, CPU)]
    assert not any(said[:-1]), "not before it is time"
    assert life.findings() == [], "once"
    return learner, said[-1]


class OnlyDecays(torch.autograd.Function):
    """A kernel whose backward pass was never written."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.zeros_like(gradients[0])


class Broken(nn.Module):
    """A small model with one fault."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.encoder, self.decoder = nn.Linear(2, 16), nn.Linear(16, 2)
        self.act, self.branch = nn.ReLU(), nn.Linear(2, 2)
        self.fault = fault
        if fault == "dead ReLU":
            nn.init.constant_(self.encoder.bias, -100.0)

    def forward(self, x: Tensor) -> Tensor:
        side = self.branch(x)
        found = self.decoder(self.act(self.encoder(x)))
        if self.fault == "detached branch":
            side = side.detach()
        if self.fault == "dead branch":
            side = side * 0
        if self.fault == "backward that only decays":
            return OnlyDecays.apply(found + side)  # type: ignore[no-any-return, no-untyped-call]
        return (found + side) * (0 if self.fault == "zero output" else 1)


ALL = [f"{m}.{p}" for m in ("encoder", "decoder", "branch") for p in ("weight", "bias")]


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (
            "backward that only decays",
            [f"{n} receives no gradient" + "; it only decays" * ("weight" in n) for n in ALL]
            + ["the loss of 16 training examples does not fall"],
        ),
        (
            "dead ReLU",
            ["encoder.weight receives no gradient; it only decays",
             "encoder.bias receives no gradient", "decoder.weight receives no gradient",
             "act (ReLU) gives zero for all inputs"],
        ),
        ("detached branch", ["branch.weight receives no gradient", "branch.bias receives no"]),
        ("dead branch", ["branch.weight receives no gradient", "branch.bias receives no"]),
        (
            "zero output",
            [*(f"{n} receives no gradient" for n in ALL),
             "outputs are identical for all inputs", "does not fall"],
        ),
    ],
)  # fmt: skip
def test_faults_are_named(fault: str, named: list[str]) -> None:
    _, found = examined(Broken(fault))
    for text in named:
        assert any(text in said for said in found), (text, found)
    innocent = {"detached branch", "dead branch"} & {fault}
    assert not innocent or not any("coder" in said for said in found)


def test_outputs_that_ignore_their_inputs() -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(2, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).mean(0, keepdim=True).expand(len(x), -1))  # type: ignore[no-any-return]

    _, found = examined(Deaf())
    assert found == ["outputs are identical for all inputs"]


def test_an_optimiser_that_ignores_gradients() -> None:
    class Decay:
        def __init__(self, params: list[Tensor]) -> None:
            self.param_groups: list[dict[str, Any]] = [{"params": params, "lr": 1e-3, "peak": 1e-3}]
            self.state: dict[Any, Any] = {}

        @torch.no_grad()
        def step(self) -> None:
            for parameter in self.param_groups[0]["params"]:
                parameter.mul_(0.99)

    model, data = plain(), Data(Waves(), 0, 16)
    learner = Learner(model, squares, [Decay(list(model.parameters()))], limit=STEPS)
    life = Life(learner, CPU.to(data.batch(0)), 0)
    life.watch()
    for _ in steps(TrainState({"main": learner}), data, 0, CPU):
        found = life.findings()
    assert "0.weight only decays, though it receives a gradient" in found
    learner = Learner(plain(), squares, [Decay([])], limit=STEPS)
    life = Life(learner, CPU.to(data.batch(0)), 0)
    life.watch()
    for _ in steps(TrainState({"main": learner}), data, 0, CPU):
        found = life.findings()
    assert "0.weight does not move, though it receives a gradient" in found
    assert any("does not fall" in said for said in found)


def test_parameters_that_are_frozen_are_no_fault() -> None:
    model = plain()
    model[0].weight.requires_grad_(False)
    assert examined(model)[1] == []


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_what_learns_is_not_accused(kind: Any) -> None:
    class Many(nn.Module):  # several outputs, dropout, scalars, a head that begins with zeros
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.body, self.drop, self.scale = (
                plain(seed),
                Dropout(0.3),
                nn.Parameter(torch.ones(1)),
            )
            nn.init.zeros_(self.body[2].weight)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            found = self.drop(self.body(x)) * self.scale
            return {"product": found[:, :1], "difference": found[:, 1:]}

    def loss(model: nn.Module, batch: Batch) -> Loss:
        found, wanted = model(batch.fields["x"]), batch.fields["y"]
        first = F.mse_loss(found["product"], wanted[:, :1], reduction="sum")
        return Loss(first + F.mse_loss(found["difference"], wanted[:, 1:], reduction="sum"))

    for seed in range(10):
        assert examined(Many(seed), seed, Optim(kind=kind), loss)[1] == [], seed


def test_looking_changes_nothing() -> None:
    watched, found = examined(plain())
    assert not found
    model = plain()
    learner = Learner(model, squares, build_optimisers(model, Optim(kind="adamw")), limit=STEPS)
    for _ in steps(TrainState({"main": learner}), Data(Waves(), 0, 16), 0, CPU):
        pass
    for mine, theirs in zip(watched.parameters, learner.parameters, strict=True):
        assert torch.equal(mine, theirs)
    assert watched.model.training


@pytest.mark.parametrize(("sign", "accused"), [(1.0, False), (-1.0, True)])
def test_predictions_are_compared_with_their_mean(sign: float, accused: bool) -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(sign * torch.tensor([[0.0, 0.0], [1.0, -1.0]]))
        model.bias.zero_()
    learner = Learner(model, squares, build_optimisers(model, Optim()), updates=LATER)
    life = Life(learner, CPU.to(Data(Waves(), 0, 32).batch(0)), 0)
    life.watch()
    found = life.findings()
    assert bool(found) == accused
    assert all("no better than one answer for all inputs" in said for said in found)
    assert life.done and life.findings() == []


def test_a_loss_without_outputs_is_not_judged() -> None:
    model = plain()

    def loss(model: Any, batch: Batch) -> Loss:
        hidden = F.linear(batch.fields["x"], model[0].weight, model[0].bias).relu()
        return Loss((F.linear(hidden, model[2].weight, model[2].bias) - 1).square().sum())

    learner, found = examined(model, loss=loss)
    assert found == []
    life = Life(learner, CPU.to(Data(Waves(), 0, 16).batch(0)), 0)
    assert all(np.isnan(value) for value in life.constant())
