"""Mistakes that people make, and the exact words that they get to read.

The messages are in `config_mistakes.txt`. When one changes on purpose, read the new one aloud,
then write the file anew with `make golden`.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from surefoot.cli import main

GOLDEN = Path(__file__).with_name("config_mistakes.txt")


@dataclass(frozen=True)
class Case:
    """Words of a command, files beside it, and what the help must say."""

    name: str
    argv: str
    help: str
    files: dict[str, str] = field(default_factory=dict)
    count: int = 1


def yaml(text: str) -> dict[str, str]:
    return {"run.yaml": text}


C = "-c run.yaml"
CASES = [
    Case("typing mistake in a flag", "--dmodel 64", "did you mean --d-model?"),
    Case("typing mistake in a long flag", "--model.num-layer 3", "did you mean --num-layers?"),
    Case("what others call it", "--hidden-size 64", "did you mean --d-model?"),
    Case("short flag that two could mean", "--kind adamw", "did you mean --optim.kind?"),
    Case("flag without a value", "--lr --num-layers 2", "for example --lr 0.003"),
    Case("no- of something else", "--no-compile", "did you mean --compile off?"),
    Case("words of another tool", "d_model=64", "did you mean --d-model 64?"),
    Case("unknown preset", "--preset laptob", "did you mean laptop?"),
    Case(
        "key in a section",
        C,
        "did you mean model.num_layers?",
        yaml("model:\n  d_model: 64\n  num_layrs: 3\n"),
    ),
    Case("name of a section", C, "did you mean model?", yaml("modle:\n  d_model: 64\n")),
    Case(
        "key in the wrong section",
        C,
        "did you mean machine.compile?",
        yaml("train:\n  compile: on\n"),
    ),
    Case(
        "key without its section",
        C,
        "write optim.lr (under 'optim:')",
        yaml("train:\n  seed: 2\nlr: 0.001\n"),
    ),
    Case(
        "old name in a section",
        C,
        "did you mean optim.lr?",
        yaml("train:\n  learning_rate: 0.001\n"),
    ),
    Case("section with a value", C, "write model: and below it", yaml("model: 64\n")),
    Case("setting with a section", C, "write d_model: 128", yaml("model: {d_model: {x: 1}}\n")),
    Case("comma in a number", "--batch-size 1,000", "did you mean 1000?"),
    Case("k for a thousand", "--max-steps 10k", "did you mean 10000?"),
    Case("words for a number", C, "the default is 12", yaml("train:\n  batch_size: many\n")),
    Case("fraction of a layer", C, "did you mean 2?", yaml("model: {num_layers: 2.5}\n")),
    Case("below the range", "--batch-size 0", "the least is 1"),
    Case("above the range", "--dropout 1.5", "the default is 0.0"),
    Case("not finite", C, "the default is 0.003", yaml("optim: {lr: .inf}\n")),
    Case("misspelt choice", "--schedule.kind cosin", "did you mean cosine?"),
    Case("choice as others call it", "--precision float16", "did you mean fp16?"),
    Case("device as others call it", "--device gpu", "did you mean cuda?"),
    Case("true for on", C, "write compile: on", yaml("machine: {compile: true}\n")),
    Case("true for a number", C, "write num_layers: 4", yaml("model: {num_layers: true}\n")),
    Case("time with a long unit", "--save-every 5minutes", "did you mean 5min?"),
    Case("heads and width", "--num-heads 3", "did you mean 2?"),
    Case("pieces and batch", C, "did you mean 4?", yaml("machine: {micro_batch_size: 5}\n")),
    Case("warmup and run", "--warmup-steps 50 --max-steps 20", "Steps of linear warmup"),
    Case("two lengths", "--max-steps 20 --epochs 2", "give one of the two"),
    Case("tab in YAML", C, "indent with spaces", yaml("train:\n\tseed: 1\n")),
    Case("colon in YAML", C, "a ':' too many", yaml("train:\n  seed: 1: 2\n")),
    Case("indentation in YAML", C, "the same indentation", yaml("train:\n    seed: 1\n  ema: 1\n")),
    Case("written twice", C, "remove line 2 or 3", yaml("train:\n  seed: 1\n  seed: 2\n")),
    Case(
        "text without quotes in TOML",
        "-c run.toml",
        "text in quotes",
        {"run.toml": "[optim]\nkind = adamw\n"},
    ),
    Case(
        "value in TOML",
        "-c run.toml",
        "did you mean adamw?",
        {"run.toml": '[optim]\nlr = 1e-3\nkind = "adam"\n'},
    ),
    Case(
        "comma in JSON",
        "-c run.json",
        "none after the last",
        {"run.json": '{"train": {"seed": 1,}}\n'},
    ),
    Case(
        "key in JSON",
        "-c run.json",
        "did you mean train.seed?",
        {"run.json": '{\n\t"train": {"sed": 1}\n}\n'},
    ),
    Case("file that is not there", "-c rum.yaml", "did you mean run.yaml?", yaml("train: {}\n")),
    Case("file of another kind", "-c run.ini", "endings .yaml", {"run.ini": "seed = 1\n"}),
    Case(
        "configuration of another recipe",
        C,
        "surefoot train gpt -c run.yaml",
        yaml("surefoot: {format: 1, recipe: gpt}\ntrain: {seed: 1}\n"),
    ),
    Case(
        "all at once",
        f"{C} --dmodel 64 --lr x --preset tny",
        "did you mean machine.compile?",
        yaml("train:\n  sed: 3\n  batch_size: 0\n  compile: on\noptim: {kind: adam}\n"),
        7,
    ),
]


@pytest.fixture(scope="module")
def golden() -> dict[str, str]:
    text = GOLDEN.read_text(encoding="utf-8") if GOLDEN.exists() else ""
    return dict(re.findall(r"^=== (.*?) ===\n(.*?)(?=^=== |\Z)", text, re.DOTALL | re.MULTILINE))


def message(case: Case, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    for name, text in case.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    code = main(["config", "show", "charlm", *case.argv.split()])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    return err


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_mistake_is_told_as_agreed(
    case: Case,
    golden: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = message(case, tmp_path, capsys)
    assert case.help in said
    assert said.count("error: ") == case.count
    assert said.count("  help: ") == case.count, "each mistake comes with what to do"
    if case.files and "run" in case.argv:
        assert re.search(r"--> run\.\w+:\d+:\d+\n +\d+ \| .*\n +\| +\^", said) or "ini" in case.argv
    if request.config.getoption("--update-golden"):
        golden[case.name] = said
        known = [c.name for c in CASES if c.name in golden]
        blocks = [f"=== {name} ===\n{golden[name].rstrip()}\n" for name in known]
        GOLDEN.write_text("\n".join(blocks), encoding="utf-8")
        return
    if case.name == "comma in JSON" and sys.version_info >= (3, 13):
        assert "Illegal trailing comma" in said, "Python itself says more about it"
        return
    hint = "if the new words are better, write them down with `make golden`"
    assert said.rstrip() == golden.get(case.name, "").rstrip(), hint


def test_every_message_is_in_the_file(golden: dict[str, str]) -> None:
    assert list(golden) == [case.name for case in CASES]
