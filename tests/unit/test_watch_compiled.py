"""Compiled code that gives another gradient ends the run; rounding, chance and zeros do not."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tests.unit.test_watch_life import Waves
from torch import Tensor, nn

from surefoot.config.schema import Optim, RunConfig, Track
from surefoot.data.batch import Batch, Data
from surefoot.engine import Learner, Loss, TrainState, World, steps
from surefoot.engine.checksum import bits
from surefoot.engine.watch import compiled as watch
from surefoot.engine.watch.compiled import APART, Compiled
from surefoot.errors import CheckFailed
from surefoot.nn.dropout import Dropout
from surefoot.nn.optim import build_optimisers
from surefoot.track.record import Record

CPU = World(torch.device("cpu"))
ROOM = 1 << 20  # bytes that fit
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


@dataclass
class Said:
    """What was said, and of it what was shown."""

    path: Path = Path("runs/calm")
    all: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)

    def note(self, text: str, level: str = "info", shown: bool = True) -> None:
        self.all.append(text)
        self.shown += [text] * shown


def squares(model: nn.Module, batch: Batch) -> Loss:
    return Loss((model(batch.fields["x"]) - batch.fields["y"]).square().sum())


def as_compiled(factor: float, x: Tensor) -> Tensor:
    """Return `x`, whose gradient a wrong compiler multiplies by `factor`."""
    if torch.compiler.is_compiling():
        return x.detach() + factor * (x - x.detach())
    return x


class Model(nn.Module):
    """Two branches; compiled, the gradient of the second is multiplied by `factor`."""

    def __init__(self, factor: float = 1.0, dropout: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body, self.side = nn.Linear(2, 16), nn.Linear(2, 16)
        self.head, self.dropout = nn.Linear(16, 2), dropout or nn.Identity()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        side = as_compiled(self.factor, self.side(x))
        found: Tensor = self.head(self.dropout(torch.tanh(self.body(x) + side)))
        return found


def compiled(model: nn.Module, precision: str = "fp32", **more: Any) -> Learner:
    learner = Learner(
        model, squares, build_optimisers(model, Optim(kind="adamw", lr=1e-3)), micro=8, **more
    )
    learner.set_precision(precision)
    model.compile(dynamic=False, backend="aot_eager")
    return learner


def check(learner: Learner, memory: int = ROOM, config: RunConfig | None = None) -> Said:
    """Look before the first step; return what was said."""
    said, data, state = Said(), Data(Waves(), 1, 16), TrainState({"main": learner})
    Compiled(config or RunConfig(), CPU, state, cast(Record, said), data, memory).look()
    return said


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("dropout", [None, Dropout(0.3)], ids=["", "keyed"])
def test_what_is_right_is_not_talked_about(precision: str, dropout: nn.Module | None) -> None:
    said = check(compiled(Model(dropout=dropout), precision))
    assert said.shown == []
    assert len(said.all) == 1
    assert said.all[0].startswith("compiled code gives the model's gradient, ")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0, -1.0])
def test_what_is_wrong_is_named(factor: float, precision: str) -> None:
    learner = compiled(Model(factor), precision)
    scale = learner.loss_scale
    with pytest.raises(CheckFailed) as caught:
        check(learner)
    words = {0.0: "none at all", 0.5: "50% apart", 2.0: "50% apart", -1.0: "200% apart"}[factor]
    told = f"side.weight ({words}), side.bias ({words})"
    assert caught.value.what == f"compiled code gives a wrong gradient: {told}"
    assert f"torch {torch.__version__}" in str(caught.value.where)
    assert caught.value.fix == "--compile off; nothing was trained yet"
    assert (learner.precision, learner.loss_scale, learner.clip) == (precision, scale, 1.0)
    assert all(p.grad is None for p in learner.parameters)


def test_later_another_way_out_is_told() -> None:
    learner = compiled(Model(0.0))
    learner.step = 7
    with pytest.raises(CheckFailed) as caught:
        check(learner)
    assert "before step 8" in str(caught.value.where)
    assert str(caught.value.fix).startswith("surefoot resume calm --fork --compile off")


def test_many_are_counted() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for part in self.parts:
                x = x + as_compiled(0.0, part(x))
            return x

    with pytest.raises(CheckFailed, match=r"parts.1.weight \(none at all\) and 3 more of 6\n"):
        check(compiled(Deep()))


class Centred(nn.Module):
    """Takes away what is the same in all columns, as a LayerNorm does."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True)


@pytest.mark.parametrize("centred", [False, True], ids=["", "centred"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_layer_behind_zeros_is_judged_before_the_first_step(
    precision: str, centred: bool
) -> None:
    """It has no gradient at all then, however it is computed; numbers all alike would not do."""

    def learner(factor: float) -> Learner:
        model = Model(factor)
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.head.bias)
        if centred:
            model.head = nn.Sequential(model.head, Centred())  # type: ignore[assignment]
        return compiled(model, precision)

    assert check(learner(1.0)).shown == []
    with pytest.raises(CheckFailed, match=r"gradient: side.weight \(none at all\), side.bias"):
        check(learner(0.0))


def test_zeros_are_back_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bit, also where two parameters share memory and where one is all negative zeros."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.same = Model(), nn.Linear(2, 16)
            nn.init.zeros_(self.inner.body.weight)
            self.same.weight = nn.Parameter(self.inner.body.weight.detach())
            self.sign, self.none = nn.Parameter(torch.tensor([-0.0])), nn.Parameter(torch.empty(0))

        def forward(self, x: Tensor) -> Tensor:
            return cast(Tensor, self.inner(x) + self.same(x).mean() * self.sign + self.none.sum())

    learner = compiled(Tied())
    asked: list[bool] = []
    seen: list[list[bool]] = []
    learner.before_change = lambda: asked.append(bool(learner.model.inner.body.weight.any()))  # type: ignore[union-attr, arg-type]
    before = [p.detach().clone() for p in learner.parameters]

    def interrupted(self: Compiled, name: str, learner: Learner) -> str:
        seen.append([bool(p.any()) for p in learner.parameters])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Compiled, "_compare", interrupted)
        with pytest.raises(KeyboardInterrupt):
            check(learner)
    found = dict(zip(learner.names, seen[0], strict=True))
    assert [name for name, some in found.items() if not some] == ["sign", "none"]
    assert asked[0] is False, "who still reads the state is waited for first"
    check(learner)
    for mine, was in zip(learner.parameters, before, strict=True):
        assert torch.equal(mine.view(torch.int32), was.view(torch.int32))


def test_a_parameter_that_is_not_used_is_not_missed() -> None:
    model = Model()
    model.idle = nn.Linear(2, 2)
    assert check(compiled(model)).shown == []


class Attention(nn.Module):
    """The bias of its keys cancels in the softmax: all that is left of its gradient is rounding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(10)
        self.query, self.key = nn.Linear(2, 32), nn.Linear(2, 32)
        self.value = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key = self.query(x) * 4, self.key(x)
        if torch.compiler.is_compiling():  # the same, added in another order
            scores = query @ (x @ self.key.weight.T).T + (query @ self.key.bias)[:, None]
        else:
            scores = query @ key.T
        found: Tensor = scores.softmax(-1) @ self.value(x)
        return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_all_rounding_is_not_judged(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = compiled(Attention(), precision)
    looked: list[float] = []
    apart = Compiled._apart

    def seen(self: Compiled, *told: Any) -> Any:
        found = apart(self, *told)
        looked.append(watch._share(found[learner.names.index("key.bias")]))
        return found

    monkeypatch.setattr(Compiled, "_apart", seen)
    assert check(learner).shown == []
    assert looked[0] > APART, "else the test would show nothing"
    assert len(looked) == 3, "whole, for it mixes examples, and in another precision"


class Pooling(nn.Module):
    """Numbers, one or many, that are added to all scores, so that nothing but rounding comes back to them.

    Where it is `rough`, only compiled code rounds them to bf16, and the model itself to fp32.
    """

    def __init__(self, rough: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.score, self.value = nn.Linear(2, 32 if rough else 1), nn.Linear(2, 2)
        self.rough = rough

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            scores = self.score(x) * 0.5 + self.score(x * 1.01) * 0.5
        elif self.rough:
            scores = x @ self.score.weight.T * 0.7 + x @ self.score.weight.T * 0.3 + self.score.bias
        else:
            scores = self.score(x)
        pooled = (scores.softmax(0).T @ x).mean(0)
        return cast(Tensor, self.value(x + pooled))


def test_code_that_rounds_more_than_the_model_is_not_accused() -> None:
    for step in range(3):
        learner = compiled(Pooling(rough=True), "bf16")
        learner.step = step
        assert check(learner).shown == []


class Idle(nn.Module):
    """A parameter without a gradient, which compiled code gives a little one, or a large one."""

    def __init__(self, given: float) -> None:
        super().__init__()
        self.inner, self.idle = Model(), nn.Parameter(torch.ones(()))
        self.given = given

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x)
        if torch.compiler.is_compiling():
            found = found + self.given * (self.idle - self.idle.detach())
        return found


def test_what_the_model_gives_nothing_must_get_nothing_but_dust() -> None:
    assert check(compiled(Idle(1e-9))).shown == []
    with pytest.raises(CheckFailed, match=r"gradient: idle \(100% apart\)"):
        check(compiled(Idle(1.0)))


def test_chance_accuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one batch says, seven others must say as well, if they have anything to say."""
    asked: list[int] = []
    verdicts = [{0, 1}, {0}, {0, 1}, set()]
    some, none = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)

    def far(self: Compiled, name: str, learner: Learner, ahead: int) -> Any:
        asked.append(ahead)
        return [some, some, *[none] * 4], verdicts[min(ahead, 3)], False

    monkeypatch.setattr(Compiled, "_far", far)
    assert check(compiled(Model())).shown == []
    assert asked == [0, 1, 2, 3]
    verdicts[3:] = [{0, 1}]
    with pytest.raises(CheckFailed, match=r"gradient: body.weight \(100% apart\)\n"):
        check(compiled(Model()))
    assert asked[4:] == list(range(watch.BATCHES))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_number_that_is_all_rounding_is_not_accused(precision: str) -> None:
    for step in range(4):
        learner = compiled(Pooling(), precision)
        learner.step = step
        assert check(learner).shown == []


class Noisy(nn.Module):
    """Noise that a compiler draws otherwise: every call of compiled code has other numbers."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            torch.rand(3)
        return x * (torch.rand_like(x) > 0.5)


def test_random_numbers_of_a_models_own_are_not_judged() -> None:
    said = check(compiled(Model(dropout=Noisy())))
    assert len(said.shown) == 1
    assert "is not known: the model draws random numbers" in said.shown[0]


def test_a_gradient_that_never_comes_is_missed_whatever_is_drawn() -> None:
    with pytest.raises(CheckFailed, match=r"side.weight \(none at all\), side.bias"):
        check(compiled(Model(0.0, Noisy())))


def test_what_is_not_finite_is_not_judged() -> None:
    model = Model()
    with torch.no_grad():
        model.body.bias.fill_(float("nan"))
    for precision in ("fp32", "fp16"):
        said = check(compiled(model, precision))
        assert ["it is not finite" in text for text in said.all] == [True]


def test_a_scale_that_overflows_is_tried_smaller() -> None:
    for factor in (1.0, 0.0):
        learner = compiled(Model(factor), "fp16")
        learner.loss_scale = scale = 2.0**24
        if factor:
            assert check(learner).shown == []
        else:
            with pytest.raises(CheckFailed, match=r"side\.weight"):
                check(learner)
        assert learner.loss_scale == scale


def test_memory_that_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = compiled(Model(0.0))
    said = check(learner, memory=1 << 60)
    assert len(said.shown) == 1
    assert "is not known: uncompiled, a step may take " in said.shown[0]

    def full() -> Any:
        raise torch.OutOfMemoryError("out of memory")

    for place, name in ((learner, "uncompiled"), (watch, "bits")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, lambda *_: full())
            said = check(learner)
        assert ["memory ran out" in text for text in said.shown] == [True]
        assert learner.clip == 1.0
    with pytest.raises(CheckFailed):
        check(learner)


def test_who_does_not_ask_is_not_told() -> None:
    config = RunConfig(track=Track(compile_check=False))
    assert check(compiled(Model(0.0)), config=config).all == []
    learner = compiled(Model(0.0))
    learner.model._compiled_call_impl = None
    assert check(learner).all == [], "nothing is compiled"


@pytest.mark.parametrize("micro", [1, 2, 3, 4, 6, 8, 16])
def test_without_the_compiler_some_examples_stand_for_all(micro: int) -> None:
    """As many times less memory; with their own dropout, and never one alone if there are more."""
    learner, passed = compiled(Model(dropout=Dropout(0.3))), []
    learner.micro = micro

    def loss(model: nn.Module, batch: Batch) -> Loss:
        passed.append((len(batch.fields["x"]), batch.weight, len(batch.fields["x"].unique(dim=0))))
        return squares(model, batch)

    learner.loss = loss
    assert check(learner).shown == []
    some = {4: 2, 8: 2, 16: 4}.get(micro, micro)
    assert passed == [(micro, micro, some), (some, some, some)], "and not once more as a whole"


def test_no_code_is_made_but_the_runs_own() -> None:
    """Of a batch that lies in memory by columns too, and with a number for all examples."""

    class Columns(Waves):
        def batch(self, index: Any, epoch: Any, key: int) -> Batch:
            found = super().batch(index, epoch, key)
            fields = {k: np.asfortranarray(v) for k, v in found.fields.items()}
            return Batch({**fields, "shift": np.float32(0.5)[None]}, found.weight)

    class Shifted(Model):
        def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
            return super().forward(x) + (0.0 if shift is None else shift)

    def made(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def loss(model: nn.Module, batch: Batch) -> Loss:
        x, y, shift = (batch.fields[k] for k in ("x", "y", "shift"))
        return Loss((model(x, shift) - y).square().sum())

    graphs: list[Any] = []
    learner = compiled(Shifted(), limit=2)
    learner.loss = loss
    learner.model.compile(dynamic=False, backend=made)
    state, data = TrainState({"main": learner}), Data(Columns(), 1, 16)
    said = Said()
    Compiled(RunConfig(), CPU, state, cast(Record, said), data, ROOM).look()
    assert said.shown == []
    assert len(list(steps(state, data, 1, CPU))) == 2
    assert len(graphs) == 1


class Counting(nn.Module):
    """Writes into its buffers whenever it is called, and begins with zeros of two kinds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.norm = nn.Linear(2, 4), nn.BatchNorm1d(4)
        self.head, self.scale = nn.Linear(4, 2), nn.Parameter(-torch.zeros(2))
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.norm(self.inner(x)))
        return found * (1 + self.scale)


def test_nothing_is_left_of_a_look() -> None:
    """Parameters, buffers, generators, gradients and what comes are as they would be."""
    found = {}
    for asked in (True, False):
        learner = compiled(Counting(), limit=3)
        state, data = TrainState({"main": learner}), Data(Waves(), 1, 16)
        before = {n: t.clone() for n, t in learner.model.state_dict().items()}
        random.seed(1)
        config = RunConfig(track=Track(compile_check=asked))
        Compiled(config, CPU, state, cast(Record, Said()), data, ROOM).look()
        for name, tensor in learner.model.state_dict().items():
            assert torch.equal(bits(tensor), bits(before[name])), name
        rows = [r.readings["main"] for r in steps(state, data, 1, CPU)]
        found[asked] = [(r.loss, r.grad_norm, r.state) for r in rows]
    assert found[True] == found[False]
    assert len(found[True]) == 3
