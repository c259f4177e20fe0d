"""No preset of any recipe is accused of being dead, whatever its seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot import api
from surefoot.config import flags
from surefoot.data.batch import Data
from surefoot.engine import TrainState, World, steps
from surefoot.engine.plan import prepare
from surefoot.engine.watch.life import EXAMPLES, LATER, STEPS, Life
from surefoot.recipes import find, names

TEXT = Path(__file__).resolve().parents[1] / "fixtures" / "shakespeare.txt"
CPU = World(torch.device("cpu"))
PRESETS = [  # those of `code` but tiny begin with a model that has to be downloaded
    (name, preset)
    for name in names()
    for preset in (find(name).presets if name != "code" else ("tiny",))
]
LARGE, FEW, MANY = 5_000_000, 3, 100  # parameters; seeds of larger and of smaller models
STANDING_IN = {
    "d_model": 64,
    "num_layers": 2,
    "num_heads": 2,
}  # for what takes too long at 100 seeds
TOO_LARGE = [
    ("charlm", "full"), ("charlm", "full-classic"),
    ("gpt", "seed"), ("gpt", "full"), ("gpt", "full-50m"),
]  # fmt: skip


def learned(
    name: str, preset: str, seed: int, updates: int, sizes: Mapping[str, Any] | None = None
) -> tuple[list[str], int, Any]:
    """Train a preset from `seed`; return what was found, the parameters and the last check.

    Models of text read a short one, four examples at once where they are large.
    """
    recipe = find(name)
    settings: dict[str, Any] = {"seed": seed}
    if name in ("charlm", "gpt"):
        settings |= {"path": str(TEXT), "val_ratio": 0.2}
    if name == "code":
        settings["repo"] = str(TEXT.parents[2] / "examples")
    if name == "gpt":
        settings |= {"vocab_size": 320, "context": 32}
    if preset not in ("tiny", "laptop", "original"):
        settings |= {"batch_size": 16}
    settings |= sizes or {}
    given, problems = flags.arguments(settings, recipe.config)
    assert not problems, problems
    config = api.settle(recipe, preset, (), given, problems).config
    job = recipe.build(config, CPU)
    prepare(job, config, {})
    size = sum(p.numel() for x in job.learners.values() for p in x.parameters)
    data = Data(job.source, seed, config.train.batch_size)
    probe = CPU.to(data.batch(0, 0, min(EXAMPLES, config.train.batch_size)))
    lives = {n: Life(x, probe, seed) for n, x in job.learners.items()}
    found = [text for life in lives.values() for text in life.watch()]
    for report in steps(TrainState(job.learners), data, seed, CPU):
        found += [f"{n}: {text}" for n, life in lives.items() for text in life.findings()]
        if report.step == updates:
            break
    return found, size, lives


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep encoded texts and vocabularies out of the user's cache."""
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path_factory.getbasetemp() / "life-cache"))


@pytest.mark.parametrize("name", names())
def test_tiny_presets_live(name: str) -> None:
    found, _, lives = learned(name, "tiny", 1, STEPS)
    assert found == []
    assert all(life.updates == STEPS for life in lives.values()), "it was asked"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_no_preset_is_accused(name: str, preset: str, request: pytest.FixtureRequest) -> None:
    """A hundred seeds each, one in `--every N`; few of the large ones, for which others stand in."""
    torch.set_num_threads(1)
    found, size, _ = learned(name, preset, 0, STEPS)
    assert found == []
    assert (size > LARGE) is ((name, preset) in TOO_LARGE)
    every = request.config.getoption("--every")
    for seed in range(every, FEW if size > LARGE else MANY, every):
        assert learned(name, preset, seed, STEPS)[0] == [], seed


@pytest.mark.slow
@pytest.mark.parametrize(("name", "preset"), TOO_LARGE)
def test_small_models_that_stand_in_for_large_presets_are_not_accused(
    name: str, preset: str, request: pytest.FixtureRequest
) -> None:
    torch.set_num_threads(1)
    for seed in range(0, MANY, request.config.getoption("--every")):
        found, size, _ = learned(name, preset, seed, STEPS, STANDING_IN)
        assert found == [], seed
        assert size < LARGE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "preset"), [p for p in PRESETS if p[1] in ("laptop", "original", "classic")]
)
def test_what_trains_on_beats_one_answer_for_all(name: str, preset: str) -> None:
    torch.set_num_threads(1)
    for seed in range(3):
        found, _, lives = learned(name, preset, seed, LATER)
        assert found == []
        assert all(life.done for life in lives.values())
