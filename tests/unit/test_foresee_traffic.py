"""Bytes that a step moves: from a step played once, for a card that somebody watches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot import api, recipes
from surefoot.config import flags
from surefoot.engine import World
from surefoot.engine.auto.fit import Pins
from surefoot.engine.foresee import traffic
from surefoot.engine.foresee.cards import find_place
from surefoot.engine.foresee.predict import predict

TEXT = str(Path(__file__).parents[1] / "fixtures" / "shakespeare.txt")


def asked(**settings: Any) -> tuple[Any, Any]:
    recipe = recipes.find("charlm")
    given, problems = flags.arguments({"path": TEXT, **settings}, recipe.config)
    return recipe, api.settle(recipe, "tiny", [], given, problems).config


def test_bytes_are_those_of_all_pieces_and_of_one_update() -> None:
    recipe, config = asked(batch_size=8)
    whole = predict(recipe, config, Pins("cpu"), micro=2)
    one = sum(work.nbytes for work in whole.passes)
    update = sum(work.nbytes for work in whole.updates)
    assert traffic.moved(whole, compiled=False) == 4 * one + update
    fused = traffic.moved(whole, compiled=True)
    assert update < fused < 4 * one + update, "a compiler keeps what lies between products"
    weights = next(iter(whole.parameters.values())) * 4
    assert fused > 4 * 2 * weights, "each piece reads all weights, forward and backward"


def test_a_card_that_is_watched_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (recipe, config), pins = asked(), Pins("cuda", micro_batch_size=8)
    ceilings = find_place("RTX 3060", None).ceilings
    assert ceilings is not None
    monkeypatch.setattr("surefoot.engine.auto.ceilings.measured", lambda *_, **__: ceilings)
    monkeypatch.setattr("surefoot.engine.auto.known.device_name", lambda _: "card")
    world, cache = World(torch.device("cuda")), tmp_path / "fit.json"
    told = traffic.foreseen(recipe, config, pins, "text", world, cache)
    assert told is not None
    need = predict(recipe, config, Pins("cpu"), micro=8)
    assert told == (traffic.moved(need, compiled=False), ceilings.bandwidth)
    monkeypatch.setattr(traffic, "_played", lambda *_: pytest.fail("it is known"))
    assert traffic.foreseen(recipe, config, pins, "text", world, cache) == told
    alone = World(torch.device("cpu"))
    assert traffic.foreseen(recipe, config, pins, "text", alone, cache) is None
    _, quiet = asked(monitor=False)
    assert traffic.foreseen(recipe, quiet, pins, "text", world, cache) is None


def test_a_recipe_that_cannot_be_played_has_no_such_figure() -> None:
    recipe, config = asked()
    pins = Pins("cuda", ops={"attention": "no such way"}, micro_batch_size=8)
    assert traffic._played(recipe, config, pins) is None
