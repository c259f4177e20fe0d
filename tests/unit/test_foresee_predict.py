"""Two steps played without contents need to the byte what two real ones need."""

import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from surefoot import api, recipes
from surefoot.config import flags
from surefoot.config.fields import changed
from surefoot.engine.auto.fit import Pins
from surefoot.engine.auto.ledger import Ledger
from surefoot.engine.foresee.cards import Place
from surefoot.engine.foresee.outlook import _at, changes, look_ahead, rescue
from surefoot.engine.foresee.predict import Known, Need, predict
from surefoot.engine.foresee.stretch import stretch

TEXT = str(Path(__file__).parents[1] / "fixtures" / "shakespeare.txt")
GPT = {"path": TEXT, "d_model": 48, "num_heads": 4, "num_layers": 2, "context": 24, "batch_size": 6}
OWN = {"path": TEXT, "vocab_size": 300}
AGAIN = {"memory.checkpointing": True}
EVERY = Known()  # what the tests of one configuration have played
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # name: recipe, settings, pins and micro
    "qwen3 layout": ("charlm", GPT, {}),
    "llama layout": ("charlm", {**GPT, "qk_norm": False}, {}),
    "grouped queries": ("charlm", {**GPT, "num_kv_heads": 2}, {"micro": 2}),
    "gpt2 layout": ("charlm", {**GPT, "layout": "gpt2"}, {}),
    "bf16": ("charlm", GPT, {"precision": "bf16", "micro": 2}),
    "fp16": ("charlm", {**GPT, "layout": "gpt2"}, {"precision": "fp16", "micro": 3}),
    "adamw": ("charlm", {**GPT, "optim.kind": "adamw"}, {"micro": 1}),
    "dropout": ("charlm", {**GPT, "dropout": 0.1}, {"micro": 3}),
    "average": ("charlm", {**GPT, "ema": 0.9}, {}),
    "plain attention": ("charlm", GPT, {"ops": {"attention": "matmul"}}),
    "attention in tiles": ("charlm", {**GPT, "context": 160}, {"ops": {"attention": "tiles"}}),
    "layers again": ("charlm", {**GPT, **AGAIN}, {}),
    "layers again, dropout": ("charlm", {**GPT, **AGAIN, "dropout": 0.1}, {"micro": 3}),
    "layers again, bf16": ("charlm", {**GPT, **AGAIN}, {"precision": "bf16", "micro": 2}),
    "layers again, gpt2, loss in chunks": (
        "gpt",
        {**OWN, **AGAIN, "layout": "gpt2", "tie_embeddings": True, "zero_init": False},
        {
            "precision": "bf16",
            "micro": 4,
            "ops": {"cross_entropy": "chunked", "attention": "tiles"},
        },
    ),
    "loss in chunks": ("gpt", OWN, {"ops": {"cross_entropy": "chunked"}}),
    "gpt": ("gpt", OWN, {"precision": "bf16", "micro": 2}),
    "two learners": ("multiply", {}, {}),
    "two learners in pieces": ("multiply", {}, {"precision": "bf16", "micro": 4}),
}


def play(recipe: str, settings: dict[str, Any], how: dict[str, Any], real: bool) -> Need:
    found = recipes.find(recipe)
    given, problems = flags.arguments(settings, found.config)
    config = api.settle(found, "tiny", [], given, problems).config
    how = dict(how)
    micro = how.pop("micro", None)
    return predict(found, config, Pins("cpu", **how), micro=micro, real=real)


@pytest.mark.parametrize("case", CASES)
def test_prediction_is_the_real_step_to_the_byte(case: str) -> None:
    foreseen, real = play(*CASES[case], real=False), play(*CASES[case], real=True)
    assert foreseen.peak == real.peak > foreseen.state > foreseen.weights > 0
    assert foreseen.parts == real.parts
    assert foreseen.flops == real.flops > 0
    assert sum(foreseen.parts.values()) == foreseen.peak


DEEP: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "muon": ({"d_model": 64, "context": 48}, {"precision": "bf16", "micro": 1}),
    "average": ({"ema": 0.9, "num_kv_heads": 2}, {"precision": "bf16", "micro": 3}),
    "layers again": (
        {"memory.checkpointing": True, "d_model": 64, "context": 48},
        {"precision": "bf16", "micro": 2},
    ),
    "gpt2 layout, wide, so that updates take most": (
        {"layout": "gpt2", "optim.kind": "adamw", "d_model": 192, "context": 16},
        {"micro": 1},
    ),
}


@pytest.mark.parametrize("case", DEEP)
def test_deep_models_are_counted_from_a_few_layers(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, how = DEEP[case]
    layers = 17
    asked = ("charlm", {**GPT, **settings, "num_layers": layers}, how)
    counted = play(*asked, real=False)
    monkeypatch.setattr("surefoot.engine.foresee.predict.WORTH", layers + 1)
    played = play(*asked, real=False)
    assert (counted.peak, counted.parts) == (played.peak, played.parts)
    assert (counted.state, counted.parameters) == (played.state, played.parameters)
    assert counted.flops == played.flops
    assert sum(w.nbytes for w in counted.updates) == sum(w.nbytes for w in played.updates)


def test_what_is_no_straight_line_is_played_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Any = ("charlm", {**GPT, "num_layers": 12}, {})
    counted = play(*asked, real=False)
    monkeypatch.setattr("surefoot.engine.foresee.predict.stretch", lambda *_: None)
    played = play(*asked, real=False)
    assert (counted.peak, counted.parts) == (played.peak, played.parts)
    assert len(played.passes) == len(counted.passes) and played.phases[0] == counted.phases[0]


def test_where_the_shallowest_are_no_straight_line_more_layers_are_played(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: Any = ("charlm", {**GPT, "num_layers": 12}, {})
    counted, seen = play(*asked, real=False), []

    def bent(few: Any, played: int, depth: int) -> Any:
        seen.append(played)
        return None if played < 6 else stretch(few, played, depth)

    monkeypatch.setattr("surefoot.engine.foresee.predict.stretch", bent)
    assert play(*asked, real=False).parts == counted.parts
    assert seen == [3, 4, 5, 6]


@pytest.mark.parametrize("how", [{}, {"precision": "bf16", "micro": 12}], ids=str)
def test_a_loss_in_pieces_is_counted_as_if_each_were_played(
    how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 x 500 positions: 6 chunks of up to 32 pieces, the last of both shorter."""
    ways = {"ops": {"cross_entropy": "chunked"}}
    asked: Any = (
        "charlm",
        {**GPT, "num_layers": 1, "context": 500, "batch_size": 24},
        {**how, **ways},
    )
    counted = play(*asked, real=False)
    monkeypatch.setattr(Ledger, "rounds", lambda _, items: items)
    played = play(*asked, real=False)
    assert len(played.passes) > 1000 and counted == played


def test_rounds_that_differ_are_played() -> None:
    def gone_through(work: Any) -> int:
        books, kept, rounds = Ledger(), [], 0
        with FakeTensorMode(), books:
            for item in books.rounds(range(9)):
                kept.append(work(item, kept))
                rounds += 1
        return rounds

    assert gone_through(lambda *_: len(torch.ones(7) + 1)) == 4
    assert gone_through(lambda _, kept: (torch.ones(7), kept.clear())) == 4
    assert gone_through(lambda item, _: len(torch.ones(max(7, 9 - item)))) == 5  # from the third on
    assert gone_through(lambda item, _: len(torch.ones(7 + item))) == 9  # ever larger
    assert gone_through(lambda *_: torch.ones(7)) == 9  # each leaves something behind
    assert gone_through(lambda item, _: item % 2 and len(torch.ones(7))) == 9  # every second one


def test_colours_differ_by_the_number_that_torch_takes_too_many() -> None:
    """Its embedding of bags asks for one 8-byte or 4-byte number more than it returns."""
    foreseen, real = (play("colours", {}, {}, real) for real in (False, True))
    assert 0 <= real.peak - foreseen.peak <= 8


def test_the_allocator_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "KINETO_LOG_LEVEL", "99"
    )  # as it first begins, so it goes on in this process
    settings = {**GPT, "d_model": 96, "num_layers": 3, "context": 64}
    found = recipes.find("charlm")
    given, _ = flags.arguments(settings, found.config)
    config = api.settle(found, "tiny", [], given).config
    need = predict(found, config, Pins("cpu"))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        predict(found, config, Pins("cpu"), real=True)
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    size = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        size += event.nbytes()
        most = max(most, size)
    assert most == pytest.approx(need.peak, rel=0.02)


def test_large_models_take_no_memory_and_leave_nothing_behind() -> None:
    settings = {
        "path": TEXT,
        "d_model": 4096,
        "num_heads": 32,
        "num_layers": 2,
        "context": 128,
        "dropout": 0.1,
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    need = play("charlm", settings, {}, real=False)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert need.weights > 1.5e9
    assert grown < 100_000  # kilobytes
    real = play("charlm", {**GPT, "dropout": 0.1}, {}, real=True)
    again = play("charlm", {**GPT, "dropout": 0.1}, {}, real=False)
    assert real.peak == again.peak
    assert type(torch.zeros(1)) is torch.Tensor


def planned(**settings: Any) -> tuple[Any, Any]:
    found = recipes.find("charlm")
    given, problems = flags.arguments({**GPT, **settings}, found.config)
    return found, api.settle(found, "tiny", [], given, problems).config


@pytest.mark.parametrize("share", [0.3, 0.55, 0.9])
def test_pieces_are_the_largest_that_fit_and_few_are_played(share: float) -> None:
    """What is guessed from a straight line is what playing all sizes finds."""
    recipe, config = planned(batch_size=24, context=96)
    whole = Place("a card", 1, {}, 0.0, 512, "bf16", None, processors=46)
    every = {d: _at(recipe, config, whole, None, d, EVERY) for d in (24, 12, 8, 6, 4, 3, 2, 1)}
    least, most = every[1].total, every[24].total
    place = replace(whole, room=round(least + share * (most - least)))
    known = Known()
    found = look_ahead(recipe, config, place, None, known)
    assert found.need.micro == max(d for d, each in every.items() if each.total <= place.room)
    assert found.total == every[found.need.micro].total
    assert len(known.plays) <= 5 < len(every)


def test_what_was_played_is_not_played_again() -> None:
    recipe, config = planned(num_layers=24)
    place, known = Place("a card", 10**9, {}, 0.12, 512, "bf16", None, processors=46), Known()
    now = look_ahead(recipe, config, place, None, known)
    played = len(known.plays)
    halved = next(c for c in changes(recipe, config, now) if "model.num_layers" in c.settings)
    alone = look_ahead(recipe, changed(config, halved.settings), place, None)
    assert halved.outlook.need.parts == alone.need.parts and halved.outlook.total == alone.total
    asked = [key for key in known.plays if "'model.num_layers': 12" in key]
    assert played == 4 and asked == [], "twelve layers are counted from the same few"


def test_layers_computed_again_are_named_where_that_helps() -> None:
    recipe, config = planned(batch_size=1, context=96, num_layers=4)
    place = Place("a card", 10**9, {}, 0.0, 512, "bf16", None, processors=46)
    now = look_ahead(recipe, config, place, None)
    (change,) = (c for c in changes(recipe, config, now) if "memory.checkpointing" in c.settings)
    assert change.settings == AGAIN and change.outlook.total < now.total
    tight = look_ahead(recipe, config, replace(place, room=change.outlook.total), None)
    saving = rescue(recipe, config, tight)
    assert not tight.fits and saving is not None and saving.settings == AGAIN
    assert saving.outlook.fits and saving.outlook.total == change.outlook.total
    after = changes(recipe, changed(config, AGAIN), change.outlook)
    assert not [c for c in after if "memory.checkpointing" in c.settings]
