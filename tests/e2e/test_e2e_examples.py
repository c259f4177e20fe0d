"""The examples run as printed, and keep the promise."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import surefoot as package
from surefoot import recipes
from surefoot.errors import SurefootError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# Whoever waits for a line to kill a process may come when it has ended: it kills itself behind the line.
KILLED_AT_300 = """
import builtins, os, runpy, signal, sys
said = print
def print_and_die(*words, **how):
    said(*words, **how)
    if words[0] == 300:
        os.kill(os.getpid(), signal.SIGKILL)
builtins.print, sys.argv = print_and_die, sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def files(folder: Path) -> dict[str, bytes]:
    names = ("main.model.safetensors", "main.optim.safetensors", "state.json")
    return {name: (folder / "step-000001000" / name).read_bytes() for name in names}


def test_a_loop_of_your_own_is_thirty_lines_and_survives_a_kill(tmp_path: Path) -> None:
    script = EXAMPLES / "own_loop.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 30
    command = [sys.executable, str(script)]
    whole = subprocess.run(
        [*command, str(tmp_path / "whole")], capture_output=True, text=True, check=True
    )
    told = [line.split() for line in whole.stdout.splitlines()]
    assert [step for step, _ in told] == [str(100 * n) for n in range(1, 11)]
    assert float(told[-1][1]) < 0.05
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT_300, str(script), str(tmp_path / "killed")],
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    assert killed.stdout.splitlines() == whole.stdout.splitlines()[:3]
    again = subprocess.run(
        [*command, str(tmp_path / "killed")], capture_output=True, text=True, check=True
    )
    assert again.stdout.splitlines() == whole.stdout.splitlines()[3:]
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


@pytest.fixture
def sorting(runs: Path) -> list[str]:
    return ["train", str(EXAMPLES / "sort_lists.py"), "--preset", "tiny", "--no-report"]


def test_a_mistake_in_a_recipe_is_pointed_at_and_the_next_file_begins_its_own_run(
    surefoot: Any, runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from surefoot.cli import main

    right = (EXAMPLES / "sort_lists.py").read_text(encoding="utf-8")
    wrong, mended = tmp_path / "wrong.py", tmp_path / "mended.py"
    wrong.write_text(right.replace('batch.fields["y"]))', 'batch.fields["z"]))'))
    mended.write_text(right)
    settings = ["--preset", "tiny", "--no-report", "--max-steps", "2"]
    assert main(["train", str(wrong), *settings]) == 1
    told = capfd.readouterr().err.rstrip().splitlines()[-2:]
    assert told[0] == "error: your file failed: KeyError: 'z'"
    assert told[1].startswith(f"  --> {wrong}:") and told[1].endswith(", in loss")
    failed = {path.name for path in runs.glob("0*")}
    said = surefoot("train", mended, *settings).ok()
    assert "unfinished" not in said.out
    assert {path.name for path in runs.glob("0*")} > failed
    if failed:
        taken = surefoot("train", mended, *settings, "--name", *failed)
        assert taken.code == 2 and f"is of another recipe: {wrong}" in taken.err


def test_a_recipe_in_one_file_trains_through_the_same_command(
    surefoot: Any, sorting: list[str], runs: Path
) -> None:
    said = surefoot(*sorting, "--name", "sorted").ok()
    assert said.out.startswith("data   900,000 lists of 6 digits, 100,000 held out")
    rows = [json.loads(x) for x in (runs / "sorted" / "metrics.jsonl").read_text().splitlines()]
    scores = [row for row in rows if row["kind"] == "eval"]
    assert [row["step"] for row in scores] == [10, 20, 30]
    assert scores[-1]["val_loss"] < scores[0]["val_loss"]
    assert 0 <= scores[-1]["exact"] <= scores[-1]["top1"] <= 1
    written = surefoot("sample", "sorted", "--prompt", "314159>", "--tokens", 6, "--json").ok().json
    assert len(written["text"]) == 6
    assert surefoot("evaluate", "sorted", "--json").ok().json["metrics"]["main"]["exact"] >= 0
    assert "sort" in surefoot("runs").out


def test_it_resumes_refuses_and_explains_like_any_other(
    surefoot: Any, sorting: list[str], runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    surefoot(*sorting, "--name", "sorted", "--max-steps", 20).ok()
    monkeypatch.chdir(tmp_path)  # the run knows where its recipe is
    surefoot("resume", "sorted", "--max-steps", 25).ok()
    refused = surefoot(*sorting, "--new", "--data.length", 7)
    assert refused.code == 2
    assert "a list and its answer take 14 tokens" in refused.err
    page = surefoot(*sorting[:2], "--help").ok().out
    assert "--length N" in page and "Digits in a list." in page
    assert surefoot("config", "explain", "length", sorting[1]).code == 0


def test_no_list_is_both_trained_and_held_out() -> None:
    import numpy as np

    from surefoot.recipes import find

    recipe = find(str(EXAMPLES / "sort_lists.py"))
    import surefoot_file_sort_lists as module

    trained, held = module.split(recipe.config(data={"length": 3}, model={"context": 6}))
    assert (len(trained), len(held)) == (900, 100)
    lists = []
    for source in (trained, held):
        index = np.arange(len(source))
        x = source.batch(index, np.zeros_like(index), 0).fields["x"]
        lists += [tuple(row) for row in x[:, :3].tolist()]
    assert len(set(lists)) == 1000
    batch = trained.batch(np.array([5]), np.array([0]), 0)
    line = [*batch.fields["x"][0].tolist(), int(batch.fields["y"][0, -1])]
    assert line == [*line[:3], 10, *sorted(line[:3])]


def test_a_sink_for_another_tool_has_no_seam(
    surefoot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--track.sinks", EXAMPLES / "mlflow_sink.py", "--name", "shown", "--save-every", 4)
    surefoot.train(*words, steps=6).ok()
    surefoot("resume", "shown", "--max-steps", "9").ok()
    (folder,) = (tmp_path / "mlruns" / "1").glob("*/")
    lines = (folder / "metrics" / "loss").read_text().splitlines()
    assert [int(line.split()[2]) for line in lines] == list(range(1, 10))
    assert (folder / "params" / "model.d_model").read_text() == "32"
    assert '"shown"' in (folder / "meta.yaml").read_text()


WITNESS = """
from surefoot.track import Sink

class Witness(Sink):
    name = "the witness"

    def __init__(self, file):
        self.file = file

    def at(self, step):
        with self.file.open("a") as out:
            out.write(f"{step} ")

def open_sink(run, segment, first_step):
    return Witness(run / "seen.txt")
"""


def test_a_sink_hears_of_each_step_however_few_are_logged(
    surefoot: Any, runs: Path, tmp_path: Path
) -> None:
    """So that a person sees slow steps go by, and first of all that something begins."""
    (tmp_path / "witness.py").write_text(WITNESS)
    words = ("--track.sinks", tmp_path / "witness.py", "--name", "seen", "--log-every", 100)
    surefoot.train(*words, steps=4).ok()
    surefoot("resume", "seen", "--max-steps", 6).ok()
    assert (runs / "seen" / "seen.txt").read_text().split() == [
        "0",
        "1",
        "2",
        "3",
        "4",
        "4",
        "5",
        "6",
    ]


def test_a_sink_that_fails_never_ends_a_run(surefoot: Any, tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def open_sink(run, segment, first_step):\n    raise RuntimeError('no luck')\n")
    said = surefoot.train("--track.sinks", bad, steps=3).ok().out
    assert "bad.py is switched off: RuntimeError: no luck" in said
    bad.write_text("nothing = 1\n")
    answer = surefoot.train("--track.sinks", bad, "--new", steps=3)
    assert answer.code == 2 and "has no function open_sink" in answer.err
    answer = surefoot.train("--track.sinks", tmp_path / "none.py", "--new", steps=3)
    assert answer.code == 2 and "there is no file" in answer.err


@pytest.fixture
def houses(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A table and a copy of the example beside it; returns the words that train it for a moment."""
    rows = [f"{n % 7},{n % 11},{2 * (n % 7) - n % 11}" for n in range(400)]
    (tmp_path / "houses.csv").write_text("\n".join(["rooms,age,price", *rows]) + "\n")
    shutil.copy(EXAMPLES / "table.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["--csv", "houses.csv", "--max-steps", "150", "--no-report", "--compile", "off"]
    return ["train", "table.py", *words]


def test_numbers_and_a_model_of_your_own_speak_of_what_they_are(
    surefoot: Any, houses: list[str], runs: Path
) -> None:
    said = surefoot(*houses, "--name", "houses").ok()
    assert "data   360 rows, 40 held out" in said.out and "model  257 parameters" in said.out
    assert "tok/s" not in said.out and "nats" not in said.out and "surefoot sample" not in said.out
    assert "surefoot sample" not in surefoot("show", "houses").ok().out
    row = json.loads((runs / "houses" / "metrics.jsonl").read_text().splitlines()[0])
    assert row["examples_per_s"] == row["tokens_per_s"] > 0, "one is for people"
    (score,) = surefoot("evaluate", "houses", "--json").ok().json["metrics"].values()
    assert score["explained"] > 0.9
    model, step = package.load("houses", runs=runs)
    x = torch.zeros(1, 2)
    assert step == 150 and model.models["main"](x).shape == (1, 1)
    assert not model.models["main"].training
    for verb in (["sample", "houses"], ["export", "houses", "--to", "pt", "--out", "x"]):
        answer = surefoot(*verb)
        assert answer.code == 2 and "surefoot.load(" in answer.err
    wrong = surefoot(*houses, "--target", "prize")
    assert wrong.code == 2 and "--target is one of rooms, age, price" in wrong.err


def test_settings_that_were_written_find_a_recipe_of_your_own(
    surefoot: Any, houses: list[str], runs: Path, tmp_path: Path
) -> None:
    surefoot(*houses, "--name", "first", "--max-steps", "3").ok()
    written = runs / "first" / "config.yaml"
    assert f"  file: {tmp_path / 'table.py'}" in written.read_text().splitlines()
    surefoot("train", "-c", written, "--name", "second", "--new").ok()
    assert (runs / "second" / "run.json").is_file()
    plan = surefoot("plan", "table.py", "--optim.kind", "muon").ok().out
    assert plan.splitlines()[0].endswith(", adamw"), "what the recipe makes, whatever was asked for"
    page = surefoot("train", "table.py", "--help").ok().out
    assert page.startswith("surefoot train table.py: ") and "closed to unknown keys" not in page
    with pytest.raises(SurefootError, match=r"surefoot config docs table\.py"):
        package.resume("first", runs=runs, bogus=1)
    near = surefoot("train", "tabel.py")
    assert near.code == 2 and "did you mean table.py?" in near.err
    text = surefoot("train", "houses.csv")
    assert text.code == 2 and "surefoot train charlm --path houses.csv" in text.err
    (tmp_path / "table.py").unlink()
    lost = surefoot("resume", "first", "--max-steps", "5")
    assert lost.code == 2 and f"cp {runs / 'first' / 'recipe.py'} {tmp_path}" in lost.err
    gone = surefoot("train", "-c", written)
    assert gone.code == 2 and "surefoot train ./FILE.py -c" in gone.err


def test_a_recipe_made_in_python_goes_on_when_the_call_is_made_again(
    houses: list[str], runs: Path, tmp_path: Path
) -> None:
    made = replace(recipes.find("table.py"), location="")
    settings = {"max_steps": 6, "save_every": 2, "track.report": False, "track.tensorboard": False}

    def sums(model: Any, batch: Any) -> Any:
        calls.append(len(batch.fields["x"]))
        if len(calls) == 5:
            raise RuntimeError("the notebook's kernel died")
        return right(model, batch)

    def build(config: Any, world: Any) -> Any:
        nonlocal right
        job = recipes.find("table.py").build(config, world)
        right, job.learners["main"].loss = job.learners["main"].loss, sums
        return job

    calls: list[int] = []
    right: Any = None
    made = replace(made, build=build)
    choices = {"compile": "off", "precision": "fp32", "micro_batch_size": 64, "life_check": False,
               "threads": 1, "matmul": "default"}  # fmt: skip
    with pytest.raises(Exception, match="kernel died"):
        package.train(made, runs=runs, quiet=True, **settings, **choices)
    result = package.train(made, runs=runs, quiet=True, **settings, **choices)
    assert (result.status, result.step) == ("done", 6) and len(list(runs.glob("0*"))) == 1
    with pytest.raises(SurefootError, match="the same call goes on"):
        package.resume(result.folder.name, runs=runs, max_steps=8)
