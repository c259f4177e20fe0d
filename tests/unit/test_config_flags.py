"""The command line and keyword arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from surefoot.config import flags
from surefoot.config.fields import RESERVED, leaves, sections, short_names
from surefoot.config.model import GPTConfig
from surefoot.config.schema import RunConfig, Section, knob


class Data(Section):
    """What is read."""

    path: Path | None = knob(None, "A file.")
    name: str = knob("x", "A name that an option of the verb has too.")


class Config(RunConfig):
    """A small run."""

    model: GPTConfig = GPTConfig()
    data: Data = Data()


def read(*argv: str) -> flags.Parsed:
    own = flags.parser("surefoot train small")
    own.add_argument("-c", "--config", action="append", default=[])
    own.add_argument("--preset")
    own.add_argument("--name")
    own.add_argument("--new", action="store_true")
    own.add_argument("--tokens", type=int, default=3)
    return flags.parse(own, argv, Config)


def written(*argv: str) -> dict[str, Any]:
    found = read(*argv)
    assert found.problems == []
    return {path: given.value for path, given in found.values.items()}


def test_options_and_settings_are_read_in_one_go() -> None:
    options, values, problems = read(
        "--preset",
        "tiny",
        "-c",
        "a.yaml",
        "--new",
        "--name",
        "x",
        "--d-model",
        "64",
        "-c",
        "b.toml",
    )
    assert (options.preset, options.name, options.new) == ("tiny", "x", True)
    assert options.config == ["a.yaml", "b.toml"]
    assert values["model.d_model"].value == "64"
    assert values["model.d_model"].source == "flag --d-model"
    assert problems == []


@pytest.mark.parametrize(
    "argv",
    [
        "--model.d-model 64",
        "--model.d_model=64",
        "--d-model 64",
        "--d_model=64",
        "--d-model 1 --d-model 64",
    ],
)
def test_every_spelling_is_one_setting(argv: str) -> None:
    assert written(*argv.split()) == {"model.d_model": "64"}


def test_numbers_below_zero_and_text_with_equals_are_values() -> None:
    assert written("--lr", "-3e-4", "--path", "a=b", "--data.name=--x") == {
        "optim.lr": "-3e-4",
        "data.path": "a=b",
        "data.name": "--x",
    }


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        ("--report", "true"),
        ("--no-report", "false"),
        ("--track.no-report", "false"),
        ("--no-track.report", "false"),
        ("--report false", "false"),
        ("--report=off", "off"),
    ],
)
def test_yes_or_no(argv: str, value: str) -> None:
    assert written(*argv.split()) == {"track.report": value}


def test_names_of_options_and_sections_are_never_short_flags() -> None:
    short = short_names(Config)
    assert "name" not in short
    assert not set(short) & (RESERVED | set(sections(Config)))
    assert flags.spelling("data.name", Config) == "--data.name"
    assert flags.spelling("optim.kind", Config) == "--optim.kind"
    assert flags.spelling("optim.lr", Config) == "--lr"


def test_every_setting_can_be_written() -> None:
    table = flags.flags(Config)
    assert {flag.leaf.path for flag in table.values()} == set(leaves(Config))
    for path in leaves(Config):
        assert table[flags.spelling(path, Config)].leaf.path == path


@pytest.mark.parametrize(
    ("argv", "told", "help"),
    [
        ("--optim.kidn adamw", "unknown flag --optim.kidn", "--optim.kind?"),
        ("--presett tiny", "unknown flag --presett", "--preset?"),
        ("--wandb_log x", "unknown flag --wandb_log", "no counterpart"),
        ("--output-dir x", "unknown flag --output-dir", "--runs DIR"),
        ("--resume_from_checkpoint x", "unknown flag --resume_from_checkpoint", "surefoot resume"),
        ("--gpus 2", "unknown flag --gpus", "--devices?"),
        ("--zebra", "unknown flag --zebra", "lists every flag"),
        ("--no-max-steps", "unknown flag --no-max-steps", "--max-steps none?"),
        ("--no-report=1", "takes no value", "--no-report alone"),
        ("--lr", "--lr needs a value", "--lr 0.003"),
        ("--lr -c a.yaml", "--lr needs a value", "--lr 0.003"),
        ("lr 3", "unexpected word 'lr'", "--lr?"),
        ("--tokens x", "invalid int value", "--help"),
        ("--preset", "expected one argument", "--help"),
    ],
)
def test_mistakes_are_collected_with_help(argv: str, told: str, help: str) -> None:
    problems = read(*argv.split()).problems
    assert told in problems[0].what
    assert help in str(problems[0].fix)


def test_a_mistake_hides_no_other() -> None:
    found = read("--dmodel", "3", "--seed", "4", "--tokens", "x", "--lr")
    assert [p.what.split(":")[0] for p in found.problems] == [
        "unknown flag --dmodel",
        "--lr needs a value",
        "argument --tokens",
    ]
    assert found.values["train.seed"].value == "4"
    assert found.options.tokens == 3


def test_help_is_seen_beside_mistakes() -> None:
    assert read("--zebra", "--tokens", "x", "--help").options.help
    assert read("-h").options.help
    assert not read("--seed", "1").options.help


def test_old_flags_are_read_and_say_so() -> None:
    values = read("--block_size=32", "--dtype", "bfloat16", "--decay-lr", "False").values
    assert values["model.context"].value == "32"
    assert values["machine.precision"].value == "bf16"
    assert values["schedule.kind"].value == "constant"
    assert values["model.context"].old == "--block_size -> --context"


class TestArguments:
    """Keyword arguments of Python."""

    def test_names_paths_and_sections(self) -> None:
        given = {"d_model": 64, "optim.kind": "adamw", "train": {"seed": 3}, "data": Data(name="y")}
        values, problems = flags.arguments(given, Config)
        assert problems == []
        assert {p: g.value for p, g in values.items()} == {
            "model.d_model": 64,
            "optim.kind": "adamw",
            "train.seed": 3,
            "data.name": "y",
        }
        assert values["model.d_model"].source == "argument d_model"

    def test_unknown_names_are_told(self) -> None:
        problems = flags.arguments({"dmodel": 1, "kind": 2, "train": {"sed": 1}}, Config)[1]
        assert [p.fix for p in problems] == [
            "did you mean d_model?",
            "did you mean optim.kind or schedule.kind?",
            "did you mean seed?",
        ]


def test_a_verb_without_settings_refuses_all() -> None:
    own = flags.parser("surefoot sample")
    assert flags.parse(own, ["--d-model", "3"]).problems[0].what == "unknown flag --d-model"
