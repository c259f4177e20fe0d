"""`surefoot config`, from the words typed to the words printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from surefoot.cli import main
from surefoot.config.files import dump
from surefoot.config.resolve import resolve
from surefoot.recipes.charlm import CharConfig, recipe
from surefoot.track.folder import RunFolder, runs_dir


@pytest.fixture
def run() -> RunFolder:
    found = resolve("charlm", CharConfig, recipe.presets, "tiny")
    sources = dict(found.sources) | {"optim.lr": "run.yaml:14:7"}
    text = dump(found.config, sources, {"threads": 2}, "charlm", "tiny")
    return RunFolder.create(runs_dir(), "charlm", "mine", {"config.yaml": text}, {})


def told(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    assert main(["config", *argv]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out if code == 0 else err


def test_show_prints_a_file_that_can_be_given_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(capsys, "show", "charlm", "--preset", "tiny", "--lr", "1e-4")
    assert "lr: 0.0001                      # flag --lr" in text
    path = tmp_path / "again.yaml"
    path.write_text(text)
    again = told(capsys, "show", "charlm", "-c", str(path))
    assert yaml.safe_load(again) == yaml.safe_load(text)
    assert f"# {path}:" in again


def test_show_as_json_has_values_and_sources(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(told(capsys, "show", "charlm", "--json", "--d-model", "64"))
    assert (found["recipe"], found["preset"]) == ("charlm", "laptop")
    assert found["settings"]["model.d_model"] == {"value": 64, "source": "flag --d-model"}
    assert found["settings"]["train.max_steps"]["source"] == "preset laptop"


def test_notes_go_beside_the_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("n_embd: 64\n")
    assert main(["config", "show", "charlm", "-c", str(path), "--json", "--max-iters", "9"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["settings"]["model.d_model"]["value"] == 64
    assert "n_embd -> model.d_model" in err
    assert "--max-iters -> --max-steps" in err


def test_show_of_a_run_has_its_sources_and_pins(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(capsys, "show", "mine")
    assert text.startswith("# run mine, recipe charlm, preset tiny\n")
    assert "# run.yaml:14:7" in text
    assert "# resolved: threads = 2" in text
    found = json.loads(told(capsys, "show", "last", "--json"))
    assert found["resolved"] == {"threads": 2}
    assert found["run"] == "mine"
    assert "unknown flag --d-model" in told(capsys, "show", "mine", "--d-model", "3", code=2)
    assert "are for recipes" in told(capsys, "show", "mine", "--preset", "tiny", code=2)


def test_explain_says_where_a_run_s_value_came_from(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(capsys, "explain", "lr", "mine").startswith(
        "optim.lr = 0.003     from run.yaml:14:7"
    )
    assert "from preset tiny" in told(capsys, "explain", "--d-model", "mine")
    assert told(capsys, "explain", "lr").startswith("optim.lr\nPeak learning rate")
    both = ("lr", "charlm"), ("charlm", "lr")
    assert len({told(capsys, "explain", *words) for words in both}) == 1
    found = json.loads(told(capsys, "explain", "model.d_model", "mine", "--json"))
    assert (found["value"], found["source"], found["default"]) == (32, "preset tiny", 128)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("shwo charlm", "did you mean surefoot config show?"),
        ("zebra", "one of show, explain, docs, migrate"),
        ("show", "say which recipe or run"),
        ("show charml", "did you mean charlm?"),
        ("show nothing", "there are no runs"),
        ("explain", "say which setting"),
        ("explain kind", "optim.kind or schedule.kind"),
        ("explain lr charml", "did you mean charlm?"),
        ("docs", "say which recipe"),
        ("docs charml", "did you mean charlm?"),
        ("docs charlm --zebra", "unknown flag --zebra"),
        ("migrate", "say which file"),
        ("migrate nowhere.yaml", "no file nowhere.yaml"),
    ],
)
def test_mistakes(argv: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in told(capsys, *argv.split(), code=2)


@pytest.mark.parametrize("word", ["show", "explain", "docs", "migrate"])
def test_help_of_each(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"usage: surefoot config {word}" in told(capsys, word, "--help")
    assert f"surefoot config {word}" in told(capsys)
