"""Words like `lr=1e-4..1e-2` as dimensions, and the points between them."""

from __future__ import annotations

from typing import Any

import pytest

from surefoot.recipes import find
from surefoot.sweep.space import Dimension, draw, parse, product, size

CHARLM = find("charlm").config


def one(word: str, flag: str = "--space") -> Dimension:
    found, wrong = parse([word], CHARLM, flag)
    assert wrong == [], wrong
    return found[0]


def mistake(word: str, flag: str = "--space") -> str:
    found, wrong = parse([word], CHARLM, flag)
    assert found == []
    assert wrong[0].where == f"{flag} {word}" or wrong[0].where == "command line"
    return f"{wrong[0].what} | {wrong[0].fix}"


@pytest.mark.parametrize(
    ("word", "path", "values"),
    [
        ("lr=1e-3,3e-4", "optim.lr", (1e-3, 3e-4)),
        ("d_model=64,128", "model.d_model", (64, 128)),
        ("d-model=64..256/64", "model.d_model", (64, 128, 192, 256)),
        ("optim.lr=0.1..0.3/0.1", "optim.lr", (0.1, 0.2, 0.3)),
        ("precision=fp32,bf16", "machine.precision", ("fp32", "bf16")),
        ("ema=none,0.9", "train.ema", (None, 0.9)),
        ("max_steps=1e3", "train.max_steps", (1000,)),
    ],
)
def test_values(word: str, path: str, values: tuple[Any, ...]) -> None:
    found = one(word, "--grid")
    assert (found.path, found.values) == (path, values)
    assert [type(v) for v in found.values] == [type(v) for v in values]


@pytest.mark.parametrize(
    ("word", "low", "high", "whole", "log"),
    [
        ("lr=1e-4..1e-2", 1e-4, 1e-2, False, True),
        ("lr=1e-3..5e-3", 1e-3, 5e-3, False, False),
        ("lr=log:1e-3..5e-3", 1e-3, 5e-3, False, True),
        ("lr=lin:1e-4..1e-2", 1e-4, 1e-2, False, False),
        ("num_layers=2..6", 2, 6, True, False),
        ("d_model=16..512", 16, 512, True, True),
    ],
)
def test_ranges(word: str, low: float, high: float, whole: bool, log: bool) -> None:
    found = one(word)
    assert (found.low, found.high, found.whole, found.log) == (low, high, whole, log)


@pytest.mark.parametrize(
    ("word", "flag", "said"),
    [
        ("dmodel=64", "--grid", "did you mean d_model"),
        ("d_model=", "--grid", "no values for d_model"),
        ("d_model=,", "--grid", "no values"),
        ("d_model", "--grid", "'d_model'"),
        ("d_model=64,64", "--grid", "64 is there twice"),
        ("lr=1e-4..1e-2", "--grid", "a grid needs values"),
        ("lr=1e-2..1e-4", "--space", "the lower end comes first"),
        ("lr=a..b", "--space", "is no range"),
        ("lr=cube:1..2", "--space", "is no range"),
        ("lr=log:0..1", "--space", "begins above 0"),
        ("num_layers=1.5..3", "--space", "whole numbers"),
        ("d_model=64..128/0", "--space", "is no range"),
        ("lr=0..1/1e-9", "--space", "too many"),
        ("tags=a,b", "--grid", "holds several values itself"),
        ("log_every=1,2", "--grid", "changes no number"),
    ],
)
def test_mistakes(word: str, flag: str, said: str) -> None:
    assert said in mistake(word, flag)


def test_a_grid_is_every_combination_once() -> None:
    space = [one("lr=1e-3,3e-4", "--grid"), one("num_layers=1,2,3", "--grid")]
    points = [product(space, place) for place in range(size(space) or 0)]
    assert len({tuple(point.items()) for point in points}) == 6
    assert points[0] == {"optim.lr": 1e-3, "model.num_layers": 1}
    assert points[1] == {"optim.lr": 1e-3, "model.num_layers": 2}, "the last varies fastest"


def test_a_draw_is_a_function_of_seed_and_number() -> None:
    space = [one("lr=1e-4..1e-2"), one("num_layers=2..6"), one("precision=fp32,bf16")]
    drawn = [draw(space, 0, number) for number in range(200)]
    assert drawn == [draw(space, 0, number) for number in range(200)]
    assert drawn != [draw(space, 1, number) for number in range(200)]
    rates = [point["optim.lr"] for point in drawn]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert 70 < sum(rate < 1e-3 for rate in rates) < 130, "evenly by the logarithm"
    assert {point["model.num_layers"] for point in drawn} == {2, 3, 4, 5, 6}
    assert {point["machine.precision"] for point in drawn} == {"fp32", "bf16"}


def test_of_a_finite_space_no_point_is_drawn_twice() -> None:
    space = [one("num_layers=1,2,3"), one("d_model=16,32")]
    drawn = [tuple(draw(space, 3, number).values()) for number in range(6)]
    assert len(set(drawn)) == 6
    assert drawn != [tuple(product(space, number).values()) for number in range(6)]
    assert size([*space, one("lr=1e-4..1e-2")]) is None
