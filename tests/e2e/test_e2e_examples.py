"""The examples run as printed, and keep the promise."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
