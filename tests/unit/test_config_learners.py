"""Settings of single learners: one mapping each, from flags, files and Python, and what they give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from surefoot import api
from surefoot.config import flags, identity
from surefoot.config.fields import changed
from surefoot.config.files import dump, load_run_config
from surefoot.config.learners import alone, own
from surefoot.errors import ConfigError
from surefoot.recipes.multiply import MultiplyConfig, recipe


def settle(*words: str, files: tuple[Path, ...] = ()) -> MultiplyConfig:
    parser = flags.parser("surefoot train multiply")
    _, given, problems = flags.parse(parser, words, MultiplyConfig)
    found: MultiplyConfig = api.settle(recipe, "tiny", files, given, problems).config
    return found


def test_a_setting_of_its_own_reaches_one_learner_and_no_other() -> None:
    config = settle("--learners.latent.model.d-model", "48", "--learners.latent.optim.lr=0.001")
    assert own(config, "latent") == {"model.d_model": 48, "optim.lr": 0.001}
    assert alone(config, "latent").model.d_model == 48
    assert alone(config, "latent").optim.lr == 0.001
    assert alone(config, "simple") is config
    assert config.model.d_model == 32


def test_alone_is_what_would_be_said_of_a_run_of_its_own() -> None:
    beside = settle("--learners.latent.model.d-model", "48", "--learners.latent.max-steps", "30")
    by_itself = settle("--d-model", "48", "--max-steps", "30")
    assert alone(beside, "latent") == by_itself


def test_files_and_flags_add_up(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("learners:\n  latent: {model: {d_model: 48, num_latent: 2}}\n")
    config = settle("--learners.latent.model.d-model", "40", files=(path,))
    assert own(config, "latent") == {"model.d_model": 40, "model.num_latent": 2}


def test_it_comes_back_from_the_file_of_the_run() -> None:
    config = settle("--learners.simple.model.d-ff", "100", "--learners.simple.train.patience", "3")
    text = dump(config, {}, {}, "multiply", "tiny")
    assert load_run_config(text, MultiplyConfig).config == config


def test_python_says_it_with_dictionaries() -> None:
    given, problems = flags.arguments(
        {"learners": {"latent": {"model": {"d_model": 48}}}, "max_steps": 30}, MultiplyConfig
    )
    config = api.settle(recipe, "tiny", (), given, problems).config
    assert alone(config, "latent").model.d_model == 48


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--learners.latent.data.reversed", "no"], "data.reversed is shared by all learners"),
        (["--learners.latent.train.seed", "3"], "train.seed is shared by all learners"),
        (["--learners.latent.model.num-heads", "5"], "5 heads do not divide d_model 32; 4 would"),
        (["--learners.latent.model.d-model", "big"], "model.d_model: Input should be a valid integer"),
        (["--learners.latent.model.d-modle", "48"], "unknown flag --learners.latent.model.d-modle"),
        (["--learners.other.model.d-model", "48"], "unknown flag --learners.other.model.d-model"),
        (["--active", "simple,simple"], "a learner is named twice"),
        (["--match-params", "--learners.simple.model.d-ff", "64"], "match_params chooses its d_ff"),
    ],
)  # fmt: skip
def test_mistakes_are_told(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        settle(*words)
    assert said in str(error.value)


def test_a_limit_of_its_own_is_circumstance_and_a_size_is_not() -> None:
    base = settle("--learners.latent.model.d-model", "48")
    longer = settle("--learners.latent.model.d-model", "48", "--learners.latent.max-steps", "70")
    wider = settle("--learners.latent.model.d-model", "64")
    assert identity.diff(base, longer) == []
    assert [path for path, *_ in identity.diff(base, wider)] == ["learners.latent"]


def test_learners_may_be_added_and_not_taken_away() -> None:
    one, two = settle("--active", "simple"), settle("--active", "latent,simple")
    assert identity.growth(one, two) == {"learners.active": ["latent", "simple"]}
    assert identity.growth(two, one) == {}
    assert identity.growth(one, settle("--active", "latent")) == {}


def test_patience_of_one_learner_makes_evaluations_identity() -> None:
    patient = settle("--learners.latent.train.patience", "2")
    assert "cadence.validate_every" in identity.identity(patient)
    assert "cadence.validate_every" not in identity.identity(settle())


def test_changed_values_are_checked() -> None:
    config: Any = changed(settle(), {"model.d_model": 64})
    assert config.model.d_model == 64
    with pytest.raises(ValueError, match="d_model"):
        changed(settle(), {"model.d_model": -1})
