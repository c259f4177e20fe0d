"""A schema as a flat list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from surefoot.config.fields import Leaf, flatten, leaves, nest, sections, short_names
from surefoot.config.schema import RunConfig, Section, circumstance, knob


class Inner(Section):
    """Deep."""

    depth: int = knob(1, "Depth.")
    seed: int = knob(0, "The name of another setting.")


class Outer(Section):
    """With a section in it."""

    inner: Inner = Inner(depth=3)
    maybe: Annotated[int, Field(ge=2)] | None = knob(None, "Perhaps.")
    share: float = circumstance(0.5, "Share.", gt=0, le=1)
    way: int | Literal["auto"] = knob("auto", "Way.")
    words: tuple[str, ...] = knob((), "Words.")
    file: Path | None = knob(None, "File.")
    on: bool = knob(True, "On.")


class Config(RunConfig):
    """All."""

    outer: Outer = Outer(share=0.25)


LEAVES = leaves(Config)


def leaf(name: str) -> Leaf:
    return LEAVES[f"outer.{name}"]


def test_own_sections_come_first_and_sections_nest() -> None:
    assert list(sections(Config))[:3] == ["outer", "outer.inner", "train"]
    assert list(LEAVES)[:2] == ["outer.inner.depth", "outer.inner.seed"]


def test_defaults_are_those_of_the_section_as_it_is_given() -> None:
    assert leaf("inner.depth").default == 3
    assert leaf("share").default == 0.25
    assert LEAVES["train.seed"].default == 1


def test_short_names_are_unique() -> None:
    short = short_names(Config)
    assert short["depth"] == "outer.inner.depth"
    assert "seed" not in short
    assert "kind" not in short


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("share", "a number above 0 and at most 1"),
        ("way", "a whole number or auto"),
        ("words", "a list like a,b"),
        ("file", "a path or none"),
        ("on", "true or false"),
        ("inner.depth", "a whole number"),
    ],
)
def test_expectation_in_words(name: str, expected: str) -> None:
    assert leaf(name).expectation() == expected


@pytest.mark.parametrize(
    ("name", "value", "text", "read"),
    [
        ("maybe", "none", None, None),
        ("maybe", " Null ", None, None),
        ("maybe", "1e3", None, 1000),
        ("share", "1e-3", None, "1e-3"),
        ("words", "a, b,", None, ["a", "b"]),
        ("file", 12, "012", "012"),
        ("file", 12, None, 12),
        ("on", True, None, True),
        ("way", "2.5", None, "2.5"),
    ],
)
def test_reading(name: str, value: object, text: str | None, read: object) -> None:
    assert leaf(name).read(value, text) == read


def test_true_is_not_one() -> None:
    with pytest.raises(ValueError, match=r"^$"):
        leaf("inner.depth").read(True)


def test_flat_and_nested_are_the_same() -> None:
    config = Config()
    assert Config.model_validate(nest(flatten(config))) == config
    assert flatten(config)["outer.words"] == []
