"""Train, stop, go on, use: what a person types and what they get."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import surefoot as package


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def weights(folder: Path) -> bytes:
    last = max((folder / "checkpoints").glob("step-*"))
    return (last / "main.model.safetensors").read_bytes()


def test_a_run_says_what_it_does_and_leaves_its_files(surefoot: Any, runs: Path) -> None:
    said = surefoot.train("--name", "mine", "--sample-every", 3, "--tensorboard", "--report").ok()
    lines = said.out.splitlines()
    assert lines[0].startswith(
        "data   shakespeare.txt: 8,559 characters of 56 kinds; your own text"
    )
    assert any(line.startswith("model  0.03 M parameters") for line in lines)
    assert any(line.startswith("plan   ") and "6 steps" in line for line in lines)
    assert any(line.startswith("step 3/6  val loss ") for line in lines)
    assert any(line.startswith("sample at step 6") for line in lines)
    assert any(line.startswith("best   val loss ") and "bits" in line for line in lines)
    assert any(line.startswith("last   top-1 ") and "top-5" in line for line in lines)
    assert f"run    {runs / 'mine'}" in lines
    assert f"look   {runs / 'mine' / 'report.html'}" in lines
    assert "next   surefoot sample mine    surefoot show mine" in lines
    assert "\x1b" not in said.out and "\r" not in said.out
    names = {path.name for path in (runs / "mine").iterdir()}
    assert names >= {
        "config.yaml", "run.json", "metrics.jsonl", "samples.jsonl", "journal", "log.txt",
        "checkpoints", "tb", "report.html", "vocabulary.json",
    }  # fmt: skip
    assert [row["step"] for row in rows(runs / "mine", "train")] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows(runs / "mine", "eval")] == [3, 6]


def test_a_text_without_lines_is_learnt_and_continued(
    surefoot: Any, runs: Path, tmp_path: Path
) -> None:
    path = tmp_path / "one line.txt"
    path.write_text("never a new line " * 100)
    said = surefoot.train("--name", "flat", "--sample-every", 3, path=path).ok()
    assert "sample at step 3" in said.out
    assert surefoot("sample", "flat", "--tokens", 5).ok().out.strip("\n")


def test_what_a_model_writes_cannot_steer_a_terminal(
    surefoot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "red.txt"
    path.write_text("\x1b" * 1000)
    surefoot.train("--name", "red", steps=3, path=path).ok()
    assert surefoot("sample", "red", "--tokens", 3).ok().out == "\x1b\x1b\x1b\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert surefoot("sample", "red", "--tokens", 3).ok().out == "␛␛␛\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(
    surefoot: Any, runs: Path, number: int
) -> None:
    surefoot.train("--name", "whole").ok()
    with surefoot.signalled("step 3/6", number):
        stopped = surefoot.train("--new")
    name = signal.Signals(number).name
    assert stopped.code == 75
    assert f"stopped by {name} after step 3, saved" in stopped.err
    folder = runs / "0003-charlm"
    assert f"help:  surefoot resume {folder.name}" in stopped.err
    assert json.loads((folder / "run.json").read_text())["status"] == "stopped"
    again = surefoot.train().ok()
    assert f"{folder.name} is unfinished" in again.out
    assert "going on from checkpoint of step 3" in again.out
    assert weights(folder) == weights(runs / "whole")
    assert [row["step"] for row in rows(folder, "train")] == [1, 2, 3, 4, 5, 6]
    assert [r["loss"] for r in rows(folder, "train")] == [
        r["loss"] for r in rows(runs / "whole", "train")
    ]
    assert len(list(runs.iterdir())) == 3


def test_resume_proves_the_steps_that_it_repeats(surefoot: Any, runs: Path) -> None:
    surefoot.train("--name", "killed", "--keep.last", 9, "--keep.best", 0).ok()
    folder = runs / "killed"
    whole = weights(folder)
    for step in (4, 6):  # what a machine that died after step 6 might have left
        shutil.rmtree(folder / "checkpoints" / f"step-{step:09d}", ignore_errors=True)
    meta = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(meta | {"status": "running"}))
    assert "lost" in surefoot("runs").out
    said = surefoot("resume", "killed").ok()
    assert "4 steps after it are in the journal and will be compared bit for bit" in said.out
    assert "resume proven over 4 steps" in said.out
    assert weights(folder) == whole


def test_another_journal_stops_the_resume_with_code_5(surefoot: Any, runs: Path) -> None:
    best = ["--keep.best", 0]
    for seed in (1, 2):
        surefoot.train("--name", f"seed{seed}", "--seed", seed, "--keep.last", 9, *best).ok()
    one, two = runs / "seed1", runs / "seed2"
    for step in (4, 6):
        shutil.rmtree(one / "checkpoints" / f"step-{step:09d}")
        shutil.rmtree(two / "checkpoints" / f"step-{step:09d}")
    meta = json.loads((one / "run.json").read_text())
    config = (two / "config.yaml").read_text()
    (one / "config.yaml").write_text(config)
    (one / "run.json").write_text(json.dumps(meta | {"status": "stopped"}))
    said = surefoot("resume", "seed1")
    assert said.code == 5
    assert "resume is not exact" in said.err
    assert "step 3, the first that differs" in said.err


def test_a_name_is_taken_by_its_settings(surefoot: Any, runs: Path) -> None:
    again = surefoot.train("--name", "done")
    assert again.code == 2
    assert "run done is already done" in again.err
    other = surefoot.train("--name", "done", "--d-model", 16)
    assert other.code == 2
    assert "run done has other settings" in other.err
    assert "model.d_model: 32 there, 16 here" in other.err
    assert len(list(runs.iterdir())) == 1


def test_new_starts_another_and_max_steps_may_grow(surefoot: Any, runs: Path) -> None:
    refused = surefoot("resume", "done")
    assert refused.code == 2
    assert "run done is done at step 6" in refused.err
    surefoot("resume", "done", "--max-steps", 8).ok()
    assert [r["step"] for r in rows(runs / "done", "train")] == list(range(1, 9))
    surefoot.train("--new").ok()
    assert (runs / "0002-charlm").is_dir()


def test_changed_numbers_are_refused_with_the_difference(surefoot: Any, runs: Path) -> None:
    said = surefoot("resume", "done", "--max-steps", 8, "--lr", 0.001, "--seed", 3)
    assert said.code == 2
    assert "optim.lr: 0.003 in the run, 0.001 asked for" in said.err
    assert "train.seed: 1 in the run, 3 asked for" in said.err
    strict = surefoot("resume", "done", "--max-steps", 8, "--d-model", 64, "--strict")
    assert strict.code == 2
    assert "model.d_model" in strict.err
    named = surefoot("resume", "done", "--max-steps", 8, "--d-model", 64).ok()
    assert "model sizes are the checkpoint's: model.d_model" in named.out


def test_max_steps_none_goes_on_until_it_is_stopped(surefoot: Any, runs: Path) -> None:
    refused = surefoot.train(steps="none")
    assert refused.code == 2
    assert "schedule.horizon" in refused.err
    with surefoot.signalled("step 9", signal.SIGTERM):
        stopped = surefoot.train("--horizon", 20, steps="none")
    assert stopped.code == 75
    assert "after step 9" in stopped.err


def test_sample_writes_the_same_for_the_same_seed(surefoot: Any, runs: Path) -> None:
    words = ["sample", "done", "--prompt", "ROMEO", "--tokens", "40"]
    first = surefoot(*words).ok()
    assert first.out.startswith("ROMEO")
    assert len(first.out) == len("ROMEO") + 40 + 1
    assert "checkpoint of step 6" in first.err
    assert surefoot(*words).out == first.out
    assert surefoot(*words, "--seed", 1).out != first.out
    greedy = [surefoot(*words, "--temperature", 0, "--seed", s).out for s in (1, 2)]
    assert greedy[0] == greedy[1]
    told = surefoot(*words, "--top-k", 3, "--top-p", 0.9, "--json").ok().json
    assert told["step"] == 6 and told["prompt"] == "ROMEO" and len(told["text"]) == 40
    assert surefoot("sample", "done", "--checkpoint", "4", "--tokens", 5).code == 0


def test_a_run_can_be_used_while_it_is_trained(surefoot: Any, runs: Path) -> None:
    from surefoot.track.folder import RunFolder

    before = {p: p.stat().st_mtime_ns for p in (runs / "done").rglob("*") if p.is_file()}
    with RunFolder.open(runs / "done").lock():
        assert surefoot("sample", "done", "--tokens", 5).code == 0
        assert surefoot("evaluate", "done").code == 0
        assert surefoot("verify", "done").code == 0
        refused = surefoot("resume", "done", "--max-steps", 8)
    assert refused.code == 2
    assert f"done is being trained by process {os.getpid()} on " in refused.err
    after = {p: p.stat().st_mtime_ns for p in (runs / "done").rglob("*") if p.is_file()}
    assert {p for p in after if after[p] != before.get(p)} <= {runs / "done" / ".lock"}


def test_evaluate_gives_what_the_run_recorded(surefoot: Any, runs: Path) -> None:
    recorded = rows(runs / "done", "eval")[-1]
    found = surefoot("evaluate", "done", "--checkpoint", "last", "--json").ok().json
    assert found["step"] == 6
    for name in ("val_loss", "val_bits_per_char", "top1", "top5"):
        assert found["metrics"]["main"][name] == pytest.approx(recorded[name], rel=1e-6)
    assert "val_loss" in surefoot("evaluate", "done").out


def test_evaluate_computes_as_the_run_did(surefoot: Any, runs: Path) -> None:
    """A run in bf16 is measured in bf16: in fp32 other numbers would come out."""
    surefoot.train("--precision", "bf16", "--name", "half", steps=4).ok()
    found = surefoot("evaluate", "half", "--checkpoint", "last", "--json").ok().json
    recorded = rows(runs / "half", "eval")[-1]
    assert found["metrics"]["main"]["val_loss"] == recorded["val_loss"]


def test_python_never_reads_the_command_line(
    runs: Path, monkeypatch: pytest.MonkeyPatch, surefoot: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["notebook", "--max-steps", "nonsense", "--help"])
    result = package.train(
        "charlm", preset="tiny", path=surefoot.text, max_steps=4, warmup_steps=2, d_model=16,
        validate_every=0, precision="fp32", compile="off", quiet=True, name="python",
        tensorboard=False, report=False, **{"cadence.sample_every": 0},
    )  # fmt: skip
    assert (result.status, result.step, result.folder) == ("done", 4, runs / "python")
    assert result.metrics["main"]["val_loss"] == pytest.approx(result.best["main"][1])
    assert surefoot.silent()
    speaker, step = package.load("python")
    assert step == 4 and speaker.models["main"].embed.weight.shape == (56, 16)
    longer = package.resume("python", max_steps=5, quiet=True)
    assert longer.step == 5


def test_a_run_moves_with_its_folder(
    surefoot: Any, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "another place with spaces"
    shutil.copytree(runs, place)
    monkeypatch.delenv("SUREFOOT_RUNS")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert surefoot("runs").out.startswith("no runs in runs yet")
    assert surefoot("resume", place / "done", "--max-steps", 7).code == 0
    assert surefoot("sample", place / "done", "--tokens", 3).code == 0
    monkeypatch.chdir(place.parent)
    assert surefoot("show", "done", "--runs", place.name).code == 0


@pytest.mark.parametrize("vocabulary", ["char", "byte"])
def test_texts_as_people_have_them(
    surefoot: Any, tmp_path: Path, vocabulary: str, runs: Path
) -> None:
    text = surefoot.text.read_text(encoding="utf-8")
    folder = tmp_path / "my texts"
    (folder / "sub folder").mkdir(parents=True)
    (folder / "windows.txt").write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode())
    (folder / "sub folder" / "ünï.md").write_text(text + " naïve ☃", encoding="utf-8")
    (folder / "notes.txt").write_text(text[::-1], encoding="utf-8")
    (folder / "picture.png").write_bytes(b"\x89PNG\0\0")
    said = surefoot.train("--vocabulary", vocabulary, "--name", "x", path=folder).ok()
    assert "my texts" in said.out.splitlines()[0]
    last = rows(runs / "x", "eval")[-1]
    assert f"val_bits_per_{vocabulary}" in last
    prompt = "naïve ☃" if vocabulary == "byte" else "Romeo"
    assert surefoot("sample", "x", "--prompt", prompt, "--tokens", 4).code == 0
    single = surefoot.train("--vocabulary", vocabulary, path=folder / "windows.txt").ok()
    assert "shakespeare" not in single.out.splitlines()[0]


def test_a_diverging_run_names_its_step_and_keeps_its_weights(surefoot: Any, runs: Path) -> None:
    import math

    from safetensors.torch import load_file

    wild = ["--lr", "1e30", "--min-lr", 0, "--warmup-steps", 1, "--schedule.kind", "constant"]
    said = surefoot.train(*wild, "--optim.kind", "adamw", "--nonfinite", "stop", "--name", "wild")
    assert said.code == 1
    assert "non-finite step in a row" in said.err and "where: step " in said.err
    assert surefoot("runs", "--json").json[-1]["status"] == "failed"
    last = max((runs / "wild" / "checkpoints").glob("step-*"))
    for tensor in load_file(last / "main.model.safetensors").values():
        assert math.isfinite(float(tensor.double().sum()))


def test_every_answer_can_be_json_and_is_one_document(surefoot: Any, runs: Path) -> None:
    for words in (
        ["runs"], ["show", "done"], ["checkpoints", "done"], ["verify", "done"], ["doctor"],
        ["config", "show", "done"], ["config", "show", "charlm"], ["config", "explain", "d_model"],
        ["config", "docs", "charlm"], ["data", "list"], ["evaluate", "done"],
        ["sample", "done", "--tokens", "3"], ["checkpoints", "done", "prune"],
        ["checkpoints", "done", "fork", "4", "--name", "child"],
    ):  # fmt: skip
        answer = surefoot(*words, "--json").ok()
        assert isinstance(answer.json, dict | list), words
    result = surefoot.train("--name", "told", "--json").ok().json
    assert result["run"] == "told" and result["status"] == "done" and result["step"] == 6
    assert result["metrics"]["main"]["val_loss"] > 0
    assert surefoot("resume", "child", "--json").ok().json["proven_steps"] == 0


def test_looking_verbs_say_what_is_there(surefoot: Any, runs: Path) -> None:
    listed = surefoot("runs").ok().out
    assert "done" in listed and "6/6" in listed
    shown = surefoot("show", "done").ok().out
    assert "best" in shown and "surefoot sample done" in shown
    kept = surefoot("checkpoints", "done").ok().out
    assert "last, best" in kept and "whole" in kept
    assert "sound" in surefoot("verify", "done").ok().out
    explained = surefoot("config", "explain", "d_model", "done").ok().out
    assert "32" in explained and "preset tiny" in explained
    assert "shakespeare9" in surefoot("data", "list").ok().out
    assert "torch" in surefoot("doctor").ok().out


def test_a_damaged_checkpoint_is_named_set_aside_and_survived(surefoot: Any, runs: Path) -> None:
    newest = max((runs / "done" / "checkpoints").glob("step-*"))
    file = newest / "main.model.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    checked = surefoot("verify", "done", "--json")
    assert checked.code == 5
    assert checked.json["sound"] is False
    assert "does not match its hash" in json.dumps(checked.json)
    said = surefoot("resume", "done", "--max-steps", 8).ok()
    assert f"checkpoint {newest.name}: main.model.safetensors does not match its hash" in said.out
    assert "resume proven over 2 steps" in said.out
    assert (runs / "done" / "checkpoints" / "damaged" / newest.name).is_dir()
