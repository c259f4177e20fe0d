"""What changes the numbers of a run, and what does not."""

from __future__ import annotations

from typing import Any

import pytest

from surefoot.config.fields import flatten, leaves, nest
from surefoot.config.identity import changes, diff, fingerprint, identity
from surefoot.recipes.charlm import CharConfig


def config(**flat: Any) -> CharConfig:
    given = {name.replace("__", "."): value for name, value in flat.items()}
    return CharConfig.model_validate(nest(flatten(CharConfig()) | given))


@pytest.mark.parametrize(
    "change",
    [
        {"train__seed": 2},
        {"model__d_model": 64},
        {"optim__lr": 1e-3},
        {"machine__precision": "bf16"},
        {"machine__micro_batch_size": 4},
        {"ops__attention": "reference"},
        {"train__max_steps": 3000},
        {"schedule__horizon": 3000},
    ],
)
def test_numbers_have_another_fingerprint(change: dict[str, Any]) -> None:
    assert fingerprint(config(**change)) != fingerprint(config())


@pytest.mark.parametrize(
    "change",
    [
        {"cadence__log_every": 1},
        {"cadence__validate_every": 7},
        {"cadence__save_every": "5min"},
        {"keep__last": 5},
        {"track__tags": ["a"]},
        {"machine__prefetch_threads": 3},
        {"data__val_batch": 3},
    ],
)
def test_circumstances_do_not(change: dict[str, Any]) -> None:
    assert fingerprint(config(**change)) == fingerprint(config())
    [(path, _, value)] = changes(config(), config(**change))
    assert {path.replace(".", "__"): value} == change


def test_length_counts_only_through_the_plan_of_the_schedule() -> None:
    short = config(schedule__kind="constant", train__max_steps=200)
    long = config(schedule__kind="constant", train__max_steps=900)
    assert fingerprint(short) == fingerprint(long)
    assert changes(short, long) == [("train.max_steps", 200, 900)]
    held = [config(schedule__decay_steps=500, train__max_steps=n) for n in (600, 900)]
    assert fingerprint(held[0]) == fingerprint(held[1])
    planned = [config(schedule__horizon=2000, train__max_steps=n) for n in (2000, 9000)]
    assert fingerprint(planned[0]) == fingerprint(planned[1]) == fingerprint(config())


def test_epochs_count_as_the_steps_they_stand_for() -> None:
    by_epochs = config(train__epochs=2, train__max_steps=None)
    assert identity(by_epochs)["schedule.horizon"] == "2 epochs"
    assert identity(by_epochs, examples=120)["schedule.horizon"] == 20
    steps = config(train__max_steps=20, schedule__warmup_steps=1)
    same = config(train__epochs=2, train__max_steps=None, schedule__warmup_steps=1)
    assert fingerprint(steps) == fingerprint(same, examples=120)


def test_evaluations_count_when_early_stopping_looks_at_them() -> None:
    often = config(train__patience=3, cadence__validate_every=5)
    assert diff(config(train__patience=3), often) == [("cadence.validate_every", 250, 5)]
    assert changes(config(train__patience=3), often) == []


def test_difference_names_setting_and_both_values() -> None:
    assert diff(config(), config(model__d_model=64, cadence__log_every=1)) == [
        ("model.d_model", 128, 64)
    ]


def test_every_setting_is_one_or_the_other() -> None:
    known = leaves(CharConfig)
    fixed = {path for path, leaf in known.items() if leaf.identity}
    assert fixed | {"cadence.validate_every"} >= set(identity(config(train__patience=1)))
    for leaf in known.values():
        extra = leaf.info.json_schema_extra
        assert isinstance(extra, dict)
        assert isinstance(extra["identity"], bool)
        assert leaf.doc.endswith((".", ")")), f"{leaf.path} needs a sentence"
