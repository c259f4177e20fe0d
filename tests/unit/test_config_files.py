"""A run's own config.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from surefoot.config import flags
from surefoot.config.fields import flatten
from surefoot.config.files import dump, load_run_config, scalar
from surefoot.config.resolve import Resolved, resolve
from surefoot.errors import ConfigError
from surefoot.recipes.charlm import CharConfig, recipe


def settle(*argv: str, files: list[Path] | None = None, preset: str | None = None) -> Resolved:
    _, values, problems = flags.parse(flags.parser("t"), argv, CharConfig)
    return resolve(
        "charlm", CharConfig, recipe.presets, preset, files or [], values, problems=problems
    )


def text_of(found: Resolved, **resolved: Any) -> str:
    return dump(found.config, found.sources, resolved, "charlm", found.preset)


def test_configuration_comes_back_with_its_sources_and_pins() -> None:
    argv = ["--lr", "3e-5", "--path", "a b/ü: #1.txt", "--tags", "x,y z", "--max-disk", "2GB"]
    found = settle(*argv, preset="tiny")
    stored = load_run_config(text_of(found, threads=2, device="cpu"), CharConfig)
    assert stored.config == found.config
    assert stored.sources == found.sources
    assert stored.pinned == {"threads": 2, "device": "cpu"}
    assert (stored.recipe, stored.preset) == ("charlm", "tiny")


def test_given_back_with_c_it_is_the_same_configuration(tmp_path: Path) -> None:
    found = settle("--d-model", "64", "--epochs", "2", "--no-report", preset="tiny")
    path = tmp_path / "config.yaml"
    path.write_text(text_of(found, threads=1), encoding="utf-8")
    again = settle(files=[path])
    assert again.config == found.config
    assert again.notes == []
    assert again.preset == "tiny"
    assert again.sources["model.d_model"].startswith(str(path))
    assert settle(files=[tmp_path]).config == found.config


def test_every_reader_of_yaml_reads_the_same() -> None:
    found = settle("--eps", "1e-9", "--compile", "on", "--max-steps", "7")
    data = yaml.safe_load(text_of(found, compile=False, precision="fp32"))
    flat = flatten(found.config)
    read = {f"{s}.{name}": v for s in data for name, v in data[s].items() if f"{s}.{name}" in flat}
    assert read == flat
    assert data["resolved"] == {"compile": False, "precision": "fp32"}


def test_settings_of_tomorrow_get_their_defaults() -> None:
    text = text_of(settle("--d-model", "64"))
    older = "\n".join(line for line in text.splitlines() if "rollback" not in line)
    stored = load_run_config(older, CharConfig)
    assert stored.config.train.rollback_every == 100
    assert stored.sources["train.rollback_every"] == "default"
    assert stored.sources["model.d_model"] == "flag --d-model"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("format: 1", "format: 2"), "format 2"),
        (("seed: 1 ", "sed: 1 "), "did you mean train.seed?"),
        (("seed: 1 ", "seed: x "), "train.seed: expected a whole number"),
        (("recipe: charlm", ""), "not the configuration of a run"),
        (("surefoot:", "surefoot: ["), "not valid YAML"),
    ],
)
def test_damage_is_told(change: tuple[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_config(text_of(settle()).replace(*change), CharConfig)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        *(
            None,
            True,
            False,
            0,
            -3,
            1e-5,
            1e22,
            0.1,
            float("inf"),
            "",
            " ",
            "a",
            "on",
            "No",
            "null",
        ),
        *(
            "3e-4",
            "12",
            "1.5",
            "~",
            "-",
            "- a",
            "a: b",
            "a #b",
            "#a",
            "'",
            '"',
            "\\",
            "a\nb",
            "é",
            "😀",
        ),
        *(
            "\u2028",
            "\x85",
            "\x00",
            "\ufeff",
            "[a]",
            "{a}",
            "&a",
            "*a",
            "!a",
            "%a",
            "@a",
            "`a",
            "a,b",
        ),
        *(["a", "b c", "on"], [], [1, [2, None]], {"a b": 1}),
    ],
)
def test_any_value_survives_every_yaml_reader(value: object) -> None:
    from surefoot.config.documents import parse

    text = f"x: {scalar(value)}  # why\n"
    assert yaml.safe_load(text) == {"x": value}
    assert parse("a.yaml", text).data == {"x": value}


def test_sources_stay_on_their_line() -> None:
    found = settle()
    sources = dict(found.sources) | {"train.seed": "we\nird # \x00\ufeff.yaml:1:2"}
    stored = load_run_config(dump(found.config, sources, {}, "charlm", None), CharConfig)
    assert stored.config == found.config
    assert stored.sources["train.seed"] == "we?ird # ??.yaml:1:2"
