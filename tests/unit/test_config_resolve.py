"""Layers, sources, and rules between settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from surefoot.config import flags
from surefoot.config.model import GPTConfig
from surefoot.config.resolve import Resolved, amend, preview, resolve
from surefoot.config.schema import Optim, RunConfig, Section, Train, knob
from surefoot.errors import ConfigError


class Data(Section):
    """What is read."""

    path: Path | None = knob(None, "A file.")
    sizes: tuple[int, ...] = knob((1, 2), "Some sizes.")


class Config(RunConfig):
    """A small run."""

    model: GPTConfig = GPTConfig()
    data: Data = Data()
    optim: Optim = Optim(lr=1e-3)
    train: Train = Train(max_steps=2000)


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"model": {"d_model": 32}, "train": {"max_steps": 60, "batch_size": 8}},
    "long": {"train": {"epochs": 3}},
    "laptop": {},
}


def settle(
    *argv: str, files: list[Path] | None = None, preset: str | None = None, **more: Any
) -> Resolved:
    _, values, problems = flags.parse(flags.parser("test"), argv, Config)
    return resolve(
        "small", Config, PRESETS, preset, files or [], values,
        default_preset="laptop", problems=problems, **more,
    )  # fmt: skip


@pytest.fixture
def yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "run.yaml") -> Path:
        Path(name).write_text(text)
        return Path(name)

    return write


def test_higher_layers_count_more_and_every_value_knows_its_source(yaml: Any) -> None:
    first = yaml("train:\n  batch_size: 16\n  seed: 3\noptim:\n  lr: 3e-4\n")
    second = yaml("train: {seed: 4}\n", "more.yaml")
    found = settle("--lr", "1e-2", files=[first, second], preset="tiny")
    config, sources = found.config, found.sources
    assert (config.model.d_model, sources["model.d_model"]) == (32, "preset tiny")
    assert (config.train.batch_size, sources["train.batch_size"]) == (16, "run.yaml:2:15")
    assert (config.train.seed, sources["train.seed"]) == (4, "more.yaml:1:15")
    assert (config.optim.lr, sources["optim.lr"]) == (1e-2, "flag --lr")
    assert (config.model.num_layers, sources["model.num_layers"]) == (4, "default")
    assert found.preset == "tiny"


def test_a_section_keeps_the_recipe_s_defaults_when_one_value_changes() -> None:
    assert settle("--beta1", "0.8").config.optim.lr == 1e-3


def test_preset_of_a_file_counts_when_none_is_asked_for(yaml: Any) -> None:
    file = yaml("surefoot: {preset: tiny}\n")
    assert settle(files=[file]).config.model.d_model == 32
    assert settle(files=[file], preset="laptop").config.model.d_model == 128


def test_preset_that_changes_nothing_is_told(yaml: Any) -> None:
    file = yaml("model: {d_model: 64}\ntrain: {max_steps: 5, batch_size: 2}\n")
    assert any("changes nothing" in note for note in settle(files=[file], preset="tiny").notes)


def test_yaml_number_without_a_point_is_a_number(yaml: Any) -> None:
    assert settle(files=[yaml("optim: {lr: 3e-4}\n")]).config.optim.lr == 3e-4


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "model.d_model: 64\ntrain:\n  max_steps: 1e6\ntrack: {tags: [a, b]}\n"),
        ("a.toml", 'model.d_model = 64\n[train]\nmax_steps = 1e6\n[track]\ntags = ["a", "b"]\n'),
        (
            "a.json",
            '{"model": {"d_model": 64}, "train": {"max_steps": 1e6}, "track": {"tags": "a,b"}}',
        ),
    ],
)
def test_three_kinds_of_files_say_the_same(name: str, text: str, yaml: Any) -> None:
    config = settle(files=[yaml(text, name)]).config
    assert (config.model.d_model, config.train.max_steps) == (64, 1_000_000)
    assert config.track.tags == ("a", "b")


@pytest.mark.parametrize(
    ("argv", "path", "value"),
    [
        ("--max-steps none", "train.max_steps", None),
        ("--max-steps 1e3", "train.max_steps", 1000),
        ("--threads 4", "machine.threads", 4),
        ("--threads auto", "machine.threads", "auto"),
        ("--save-every 500", "cadence.save_every", 500),
        ("--save-every 5min", "cadence.save_every", "5min"),
        ("--tags a,b", "track.tags", ("a", "b")),
        ("--sizes 3,4", "data.sizes", (3, 4)),
        ("--path 2024", "data.path", Path("2024")),
        ("--no-report", "track.report", False),
        ("--report=no", "track.report", False),
        ("--lr 1", "optim.lr", 1.0),
    ],
)
def test_text_becomes_what_the_setting_is(argv: str, path: str, value: object) -> None:
    horizon = ["--schedule.kind", "constant"] if value is None else []
    found: Any = settle(*argv.split(), *horizon).config
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value) or isinstance(value, Path)


def test_name_of_a_file_that_looks_like_a_number_stays_text(yaml: Any) -> None:
    config = settle(files=[yaml("data: {path: 1e5}\nkeep: {max_disk: 2000000}\n")]).config
    assert config.data.path == Path("1e5")
    assert config.keep.max_disk == "2000000"


class TestLength:
    """`max_steps` and `epochs` are two ways to say one thing."""

    def test_higher_layer_s_way_counts(self, yaml: Any) -> None:
        train = settle("--epochs", "2").config.train
        assert (train.epochs, train.max_steps) == (2, None)
        train = settle("--max-steps", "50", preset="long").config.train
        assert (train.epochs, train.max_steps) == (None, 50)
        found = settle("--epochs", "2", files=[yaml("train: {max_steps: 9}\n")])
        assert found.config.train.max_steps is None
        assert found.sources["train.max_steps"] == "flag --epochs"

    def test_none_takes_away_only_what_it_names(self) -> None:
        assert settle("--epochs", "none").config.train.max_steps == 2000
        endless = settle("--max-steps", "none", "--schedule.kind", "constant", preset="long")
        assert (endless.config.train.epochs, endless.config.train.max_steps) == (None, None)

    def test_both_in_one_layer_is_a_mistake(self, yaml: Any) -> None:
        with pytest.raises(ConfigError, match="both say how long"):
            settle(files=[yaml("train: {max_steps: 9, epochs: 2}\n")])

    def test_one_of_them_none_in_one_layer_is_none(self, yaml: Any) -> None:
        train = settle(files=[yaml("train: {max_steps: null, epochs: 2}\n")]).config.train
        assert (train.epochs, train.max_steps) == (2, None)


class TestWarmup:
    """A default warmup never keeps a short run from starting; an asked one does."""

    def test_default_is_fitted_and_told(self) -> None:
        found = settle("--max-steps", "50")
        assert found.config.schedule.warmup_steps == 5
        assert "fitted to train.max_steps" in found.sources["schedule.warmup_steps"]
        assert any("warmup_steps is 5 and not 100" in note for note in found.notes)

    def test_asked_warmup_is_kept_and_refused(self) -> None:
        with pytest.raises(ConfigError, match="100 steps of warmup do not fit into 50"):
            settle("--max-steps", "50", "--warmup-steps", "100")

    def test_longer_runs_are_left_alone(self) -> None:
        found = settle("--max-steps", "500")
        assert found.config.schedule.warmup_steps == 100
        assert not found.notes


def test_rules_between_settings_are_told_beside_bad_values() -> None:
    with pytest.raises(ConfigError) as caught:
        settle("--num-heads", "3", "--lr", "x", "--dmodel", "1")
    told = [problem.what.partition(":")[0] for problem in caught.value.problems]
    assert told == ["unknown flag --dmodel", "optim.lr", "model.num_heads"]


def test_rules_that_touch_a_bad_value_wait_until_it_is_good() -> None:
    with pytest.raises(ConfigError) as caught:
        settle("--num-heads", "3", "--d-model", "x")
    assert [p.what.partition(":")[0] for p in caught.value.problems] == ["model.d_model"]


def test_broken_rule_points_at_what_somebody_wrote() -> None:
    with pytest.raises(ConfigError, match="--d-model 60") as caught:
        settle("--d-model", "60")
    assert caught.value.problems[0].what.startswith("model.num_heads: rotary")


def test_amended_configuration_keeps_old_sources() -> None:
    kept = settle("--lr", "1e-2")
    _, values, problems = flags.parse(flags.parser("test"), ["--max-steps", "3000"], Config)
    found = amend(kept.config, kept.sources, values, problems)
    assert (found.config.train.max_steps, found.config.optim.lr) == (3000, 1e-2)
    assert found.sources["optim.lr"] == "flag --lr"
    assert found.sources["train.max_steps"] == "flag --max-steps"
    with pytest.raises(ConfigError, match="did you mean --max-steps"):
        amend(
            kept.config, kept.sources, {}, flags.parse(flags.parser("t"), ["--max-step"], Config)[2]
        )


def test_preview_shows_a_preset_and_refuses_an_unknown_one() -> None:
    assert preview(Config, PRESETS, "tiny")["model.d_model"].value == 32
    with pytest.raises(ConfigError, match="did you mean tiny"):
        preview(Config, PRESETS, "tyni")


def test_preset_with_an_unknown_key_is_the_recipe_s_mistake_and_told() -> None:
    with pytest.raises(ConfigError, match=r"model\.width: unknown key"):
        resolve("small", Config, {"odd": {"model": {"width": 3}}}, "odd")


def test_unknown_header_and_newer_format_are_refused(yaml: Any) -> None:
    with pytest.raises(ConfigError, match=r"did you mean surefoot\.preset"):
        settle(files=[yaml("surefoot: {presets: tiny}\n")])
    with pytest.raises(ConfigError, match="format 99"):
        settle(files=[yaml("surefoot: {format: 99}\n")])
    with pytest.raises(ConfigError, match="resolved: unknown"):
        settle(files=[yaml("resolved: {threads: 2}\n")])


def test_empty_file_and_empty_section_say_nothing(yaml: Any) -> None:
    found = settle(files=[yaml("")])
    assert found.notes == ["run.yaml says nothing"]
    assert settle(files=[yaml("train:\noptim: {}\n")]).config == settle().config


@pytest.mark.parametrize(
    ("flag", "value", "bound"),
    [
        ("--threads", "0", "at least 1"), ("--threads", "100000", "at most 1024"),
        ("--prefetch-threads", "-1", "at least 0"), ("--micro-batch-size", "0", "at least 1"),
    ],
)  # fmt: skip
def test_counts_that_no_machine_has_are_refused(flag: str, value: str, bound: str) -> None:
    with pytest.raises(ConfigError, match=f"auto or a number of {bound}"):
        settle(flag, value)
