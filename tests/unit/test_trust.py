"""Whose code runs: what a person names does, and what only a file names does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from surefoot import api, recipes, trust
from surefoot.cli import main
from surefoot.config.fields import Given
from surefoot.config.schema import RunConfig, Track
from surefoot.errors import ConfigError
from surefoot.sinks import Sinks
from surefoot.sweep.plan import Plan
from surefoot.sweep.space import Dimension
from surefoot.sweep.trials import Trial
from surefoot.track.folder import RunFolder

CODE = """
from pathlib import Path
from surefoot import Recipe, RunConfig
Path(__file__).with_suffix(".ran").touch()
def open_sink(run, segment, first): ...
recipe = Recipe("theirs", "what somebody wrote", config=RunConfig, build=None)
"""


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A recipe that came from somebody else, beside the settings that name it."""
    file = tmp_path / "theirs.py"
    file.write_text(CODE)
    header = f"surefoot: {{format: 1, recipe: theirs, file: {file}}}\n"
    (tmp_path / "run.yaml").write_text(header)
    return file


def _run(theirs: Path) -> RunFolder:
    files = {"config.yaml": (theirs.parent / "run.yaml").read_text()}
    return RunFolder.create(
        theirs.parent / "runs", "theirs", "got", files, {"location": str(theirs)}
    )


def _resume(theirs: Path) -> Any:
    return api.resume(_run(theirs).path)


def _sweep(theirs: Path) -> Any:
    some: list[Any] = []
    return Plan(
        str(theirs), None, {}, {}, "grid", some, 1, [1], False, "val_loss", "main", "min"
    ).found


def _sink(theirs: Path) -> Any:
    return Sinks(RunConfig(track=Track(sinks=(str(theirs),))), None, ())


def _kernel(theirs: Path) -> Any:
    from surefoot.engine.own import find
    from surefoot.ops import OPS

    return find(OPS["norm"], str(theirs))


@pytest.mark.parametrize("use", [_resume, _sweep, _sink, _kernel])
def test_a_file_that_only_a_file_names_is_not_run(theirs: Path, use: Callable[[Path], Any]) -> None:
    with pytest.raises(ConfigError, match="you have not named") as caught:
        use(theirs)
    assert not theirs.with_suffix(".ran").exists()
    assert str(caught.value.problems[0].fix).endswith(f"surefoot trust {theirs}")


@pytest.mark.parametrize("words", [("train", "-c"), ("trace", "check"), ("config", "show")])
def test_no_command_runs_code_that_it_does_not_name(
    theirs: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"train": theirs.parent / "run.yaml", "config": _run(theirs).path}
    if words[0] == "trace":
        found["trace"] = theirs.parent / "trace.json"
        whole = {
            "format": 1,
            "recipe": str(theirs),
            "settings": {},
            "source": "",
            "learners": {},
            "weights": {},
        }
        found["trace"].write_text(json.dumps(whole))
    assert main([*words, str(found[words[0]])]) == 2
    said = capsys.readouterr().err
    assert not theirs.with_suffix(".ran").exists() and "you have not named" in said
    fix = f"train {theirs} -c" if words[0] == "train" else f"surefoot trust {theirs}"
    assert fix in said


def test_a_sweep_of_somebody_else_is_shown_without_its_code(
    theirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = [Dimension("model.num_layers", "num_layers", (1, 2))]
    plan = Plan(
        str(theirs), "tiny", {}, {}, "grid", space, 2, [1], False, "val_loss", "main", "min"
    )
    folder = theirs.parent / "runs" / "sweeps" / "got"
    (folder / "trials" / "000").mkdir(parents=True)
    told = {"created": "2026-11-27T12:00:00+00:00", "plan": plan.document()}
    (folder / "sweep.json").write_text(json.dumps(told))
    trial = Trial(0, {"model.num_layers": 1}, "done", {"1": 2.5})
    (folder / "trials" / "000" / "result.json").write_text(json.dumps(asdict(trial)))
    assert main(["sweep", "show", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "got: grid of 2 trials of theirs tiny" in said and "2.5" in said
    assert "theirs tiny" in (folder / "report.html").read_text()
    for words in (["show", str(folder)], ["list", "--runs", str(theirs.parent / "runs")]):
        assert main(["sweep", *words, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found if words[0] == "show" else found[0])["recipe"] == "theirs"
    assert main(["sweep", "best", str(folder)]) == 2, "whose settings are those of its code"
    assert f"surefoot trust {theirs}" in capsys.readouterr().err
    assert not theirs.with_suffix(".ran").exists()


def test_who_does_not_want_a_sink_is_told_how_to_go_on_without_it(theirs: Path) -> None:
    mine = theirs.with_name("my own.py")
    mine.write_text("def open_sink(run, segment, first): ...")
    trust.remember(mine)
    for sinks, flag in (
        ((str(theirs),), "--track.sinks '' goes"),
        ((str(mine), str(theirs)), f"--track.sinks '{mine}' goes"),
    ):
        with pytest.raises(ConfigError, match=r"track\.sinks of a run") as caught:
            Sinks(RunConfig(track=Track(sinks=sinks)), None, ())
        assert str(caught.value.problems[0].fix).startswith(flag)


def test_what_a_person_names_runs_now_and_wherever_it_is_named_later(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipes.find("theirs.py").name == "theirs"
    assert theirs.with_suffix(".ran").exists()
    assert api.stored(_run(theirs)).recipe.name == "theirs" and _sweep(theirs).name == "theirs"
    assert trust.ledger().read_text() == f"{theirs}\n", "once is enough"
    other = tmp_path / "other.py"
    other.write_text(CODE)
    with pytest.raises(ConfigError):
        recipes.recall(str(other), "a run")


def test_kernels_and_sinks_of_a_command_run_and_are_remembered(theirs: Path) -> None:
    recipe = recipes.find("charlm")
    plain = Given(str(theirs), "command line")
    api.settle(recipe, "tiny", [], {"track.sinks": plain})
    assert not trust.known(theirs), "a sweep that is read from a file says this"
    typed = Given(str(theirs), "flag --track.sinks")
    found = api.settle(recipe, "tiny", [], {"track.sinks": typed}).config
    assert list(Sinks(found, None, ()).openers) == [str(theirs)]
    for path, value in (
        ("ops.norm", str(theirs.with_name("a.py"))),
        ("learners.a", {"ops.norm": str(theirs.with_name("b.py"))}),
        ("data.path", str(theirs.with_name("c.py"))),
    ):
        for name in "abc":
            theirs.with_name(f"{name}.py").write_text(CODE)
        trust.name_code(path, value)
    known = [name for name in "abc" if trust.known(theirs.with_name(f"{name}.py"))]
    assert known == ["a", "b"], "what is read as text is not run"


def test_trust_remembers_files_and_folders_and_lists_them(
    theirs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["trust"]) == 0 and "no Python file" in capsys.readouterr().out
    assert main(["trust", "nowhere.py"]) == 2 and "no file nowhere.py" in capsys.readouterr().err
    assert main(["trust", str(theirs.parent)]) == 0
    assert trust.known(theirs) and not trust.known(theirs.parent.parent)
    capsys.readouterr()
    assert main(["trust", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"trusted": [str(theirs.parent)], "file": str(trust.ledger())}
    assert main(["trust"]) == 0 and str(trust.ledger()) in capsys.readouterr().out
    trust.ledger().write_text("")
    assert not trust.known(theirs)
    monkeypatch.setenv("SUREFOOT_TRUSTED", f"/nowhere{os.pathsep}{theirs.parent}")
    assert trust.known(theirs)


def test_where_nothing_can_be_remembered_a_command_and_its_children_go_on(
    theirs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SUREFOOT_TRUSTED", "")
    monkeypatch.setenv("XDG_STATE_HOME", str(theirs))  # a file, so no folder can be made in it
    assert main(["trust", str(theirs)]) == 2 and "SUREFOOT_TRUSTED" in capsys.readouterr().err
    recipes.find(str(theirs))
    child = f"from surefoot import recipes; recipes.recall({str(theirs)!r}, 'a run')"
    subprocess.run([sys.executable, "-c", child], check=True)
    with pytest.raises(OSError, match="letters"):
        trust.remember(Path("a\n/etc"))
