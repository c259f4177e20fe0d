"""What a person does after something went wrong, or to go on in another way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sort_lists.py"

# A recipe whose process is killed when it fetches an example of step 6, as long as the marker says.
FRAGILE = """
import os, signal
from dataclasses import replace
from pathlib import Path
from surefoot import Data
from surefoot.recipes import find

sort = find({example!r})
LIVES = Path({lives!r})

class Fragile:
    def __init__(self, source, config):
        self.source, self.fingerprint = source, source.fingerprint
        index, _ = Data(source, config.train.seed, config.train.batch_size).address(5)
        self.doomed = int(index[0])

    def __len__(self):
        return len(self.source)

    def batch(self, index, epoch, key):
        if self.doomed in index.tolist() and int(LIVES.read_text()) > 0:
            LIVES.write_text(str(int(LIVES.read_text()) - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return self.source.batch(index, epoch, key)

def build(config, world):
    job = sort.build(config, world)
    return replace(job, source=Fragile(job.source, config))

recipe = replace(sort, name="fragile", build=build)
"""


@pytest.fixture
def fragile(tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Words that train a recipe which is killed `lives` times at step 6."""
    from surefoot.cli import supervise

    monkeypatch.setattr(supervise, "_FIRST_PAUSE", 0.0)

    def words(lives: int) -> list[str]:
        (tmp_path / "lives").write_text(str(lives))
        recipe = tmp_path / "fragile.py"
        recipe.write_text(FRAGILE.format(example=str(EXAMPLE), lives=str(tmp_path / "lives")))
        return [
            "train", str(recipe), "--preset", "tiny", "--max-steps", "8", "--name", "mine",
            "--precision", "fp32", "--threads", "1", "--matmul", "default", "--compile", "off",
            "--prefetch-threads", "0", "--no-report", "--save-every", "2", "--no-tensorboard",
        ]  # fmt: skip

    return words


def test_a_supervised_run_starts_again_after_a_crash(
    surefoot: Any, fragile: Any, runs: Path
) -> None:
    said = surefoot(*fragile(1), "--restarts", 3).ok()
    assert "exit code -9; restart 1 of 3 in 0 s" in said.err
    found = re.search(r"going on from checkpoint of step ([24])", said.out)
    assert found is not None  # the save of step 4 may not have ended
    assert f"resume proven over {5 - int(found[1])} step" in said.out
    meta = json.loads((runs / "mine" / "run.json").read_text())
    assert meta["status"] == "done" and meta["step"] == 8
    assert [(entry["step"], entry["exit"]) for entry in meta["restarts"]] == [(5, -9)]


def test_a_supervised_run_gives_up_when_the_same_step_fails_twice(
    surefoot: Any, fragile: Any, runs: Path
) -> None:
    said = surefoot(*fragile(9), "--restarts", 5)
    assert said.code == 1
    assert "failed twice after step 5, with exit code -9; giving up" in said.err
    assert len(json.loads((runs / "mine" / "run.json").read_text())["restarts"]) == 2


def test_a_second_ctrl_c_ends_at_once_and_loses_little(surefoot: Any, runs: Path) -> None:
    with surefoot.signalled("step 3/6", signal.SIGINT, signal.SIGINT):
        code = surefoot.train("--name", "mine", "--keep.best", 0).code
    assert code == 130
    assert json.loads((runs / "mine" / "run.json").read_text())["status"] == "stopped"
    said = surefoot("resume", "mine").ok()
    assert "going on from checkpoint of step 2" in said.out
    assert "resume proven over 1 step" in said.out


def test_without_any_checkpoint_everything_is_computed_and_compared(
    surefoot: Any, runs: Path
) -> None:
    surefoot.train("--name", "mine").ok()
    newest = runs / "mine" / "checkpoints" / "step-000000006" / "main.model.safetensors"
    before = newest.read_bytes()
    shutil.rmtree(runs / "mine" / "checkpoints")
    said = surefoot("resume", "mine", "--max-steps", 7).ok()
    assert "going on from the beginning" in said.out
    assert "resume proven over 6 step" in said.out
    assert newest.read_bytes() == before


def test_a_fork_goes_on_from_an_older_checkpoint(surefoot: Any, runs: Path) -> None:
    said = surefoot("checkpoints", "done", "fork", 4, "--name", "child").ok()
    assert "run child begins at step 4; go on: surefoot resume child" in said.out
    surefoot("resume", "child").ok()
    child, parent = (
        max((runs / name / "checkpoints").glob("step-*")) / "main.model.safetensors"
        for name in ("child", "done")
    )
    assert child.read_bytes() == parent.read_bytes()
    meta = json.loads((runs / "child" / "run.json").read_text())
    assert (meta["parent"]["run"], meta["parent"]["step"]) == ("done", 4)


def test_a_fork_may_have_other_settings(surefoot: Any, runs: Path) -> None:
    said = surefoot("resume", "done", "--fork", "--lr", 0.001, "--max-steps", 9, "--name", "other")
    assert said.ok()
    meta = json.loads((runs / "other" / "run.json").read_text())
    assert meta["parent"]["run"] == "done" and meta["step"] == 9
    shown = surefoot("config", "show", "other", "--json").ok().json["settings"]
    assert shown["optim.lr"]["value"] == 0.001
    assert json.loads((runs / "done" / "run.json").read_text())["step"] == 6


def test_a_mirror_brings_a_run_back(surefoot: Any, runs: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "second disk"
    surefoot.train("--name", "mine", "--keep.mirror", mirror).ok()
    before = (runs / "mine/checkpoints/step-000000006/main.model.safetensors").read_bytes()
    shutil.rmtree(runs / "mine" / "checkpoints")
    surefoot("resume", "mine", "--max-steps", 8).ok()
    assert (mirror / "mine/checkpoints/step-000000008").is_dir()
    shutil.rmtree(runs / "mine")
    assert surefoot("verify", mirror / "mine").code == 0
    assert surefoot("resume", mirror / "mine", "--max-steps", 9).code == 0
    assert before


def test_pruning_shows_first_and_deletes_when_told(surefoot: Any, runs: Path) -> None:
    surefoot.train("--name", "mine", "--keep.last", 9).ok()
    folder = runs / "mine" / "checkpoints"
    config = runs / "mine" / "config.yaml"
    config.write_text(config.read_text().replace("last: 9 ", "last: 2 "))
    many = sorted(folder.glob("step-*"))
    said = surefoot("checkpoints", "mine", "prune").ok()
    assert "would delete" in said.out and "nothing was deleted; do it: add --yes" in said.out
    assert sorted(folder.glob("step-*")) == many
    surefoot("checkpoints", "mine", "prune", "--yes").ok()
    assert {p.name for p in folder.glob("step-*")} == {"step-000000004", "step-000000006"}
    assert surefoot("verify", "mine").code == 0


LAST = "checkpoints/step-000000006"
HARM: dict[str, tuple[Callable[[Path], Any], dict[str, tuple[int, str]]]] = {
    "no run.json": (
        lambda run: (run / "run.json").unlink(),
        {"show": (2, "copied half"), "resume": (2, "copied half"), "verify": (2, "copied half")},
    ),
    "no manifest": (
        lambda run: [path.unlink() for path in run.glob("checkpoints/*/manifest.json")],
        {
            "verify": (5, "cannot be used"),
            "checkpoints": (0, "manifest.json is missing; it is not used"),
            "evaluate": (1, "surefoot resume done sets damaged ones aside"),
            "resume": (0, "going on from the beginning"),
        },
    ),
    "cut": (
        lambda run: os.truncate(run / LAST / "main.model.safetensors", 1000),
        {"evaluate": (1, "--checkpoint STEP takes another"), "resume": (0, "damaged/step-")},
    ),
    "a link": (
        lambda run: (run / LAST).rename(run / "else") and (run / LAST).symlink_to(run / "else"),
        {"verify": (5, "is a link, which is not followed"), "resume": (0, "is a link")},
    ),
    "no vocabulary": (
        lambda run: (run / "vocabulary.json").unlink(),
        {"sample": (2, "surefoot resume RUN writes it anew"), "resume": (0, "is written anew")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
def test_a_folder_that_was_harmed_is_explained(surefoot: Any, runs: Path, harm: str) -> None:
    do, words = HARM[harm]
    do(runs / "done")
    before = sorted(path for path in (runs / "done").rglob("*") if path.suffix == ".safetensors")
    for verb, (code, said) in words.items():
        more = ["--max-steps", "7"] if verb == "resume" else []
        answer = surefoot(verb, "done", *more)
        assert answer.code == code and said in answer.out + answer.err, answer.out + answer.err
        if verb != "resume":
            assert all(path.exists() for path in before)


def test_steps_beyond_the_schedule_are_not_taken_in_silence(surefoot: Any, runs: Path) -> None:
    surefoot.train("--name", "whole", steps=4).ok()
    again = surefoot("resume", "whole", "--max-steps", 6, "--json").ok()
    words = "resume whole --fork --max-steps 6 --schedule.horizon 6"
    assert "the schedule ends at step 4" in again.err and words in again.err
    forked = surefoot(*words.split(), "--name", "anew", "--json").ok()
    assert "the schedule ends" not in forked.err
    rows = [json.loads(x) for x in (runs / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert {row["lr"] for row in rows if row["kind"] == "train" and row["step"] > 4} == {0.0}
    refused = surefoot("resume", "whole", "--lr", "0.001", "--max-steps", 9)
    assert refused.code == 2
    assert "surefoot resume whole --fork --lr 0.001 --max-steps 9" in refused.err
