"""Bad input: what, where, what to do; the right exit code; nothing created, nothing lost."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest


def snapshot(place: Path) -> dict[str, bytes]:
    files = (p for p in place.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(place)): p.read_bytes() for p in files}


@pytest.fixture
def refused(surefoot: Any, runs: Path) -> Any:
    """Run words that must be refused with exit 2 and leave the runs as they are; return stderr."""

    def check(*words: Any, code: int = 2) -> str:
        before = snapshot(runs)
        said = surefoot(*words) if words[0] != "train" else surefoot.train(*words[1:])
        assert said.code == code, said.out + said.err
        assert said.out == "" or code == 5
        assert snapshot(runs) == before
        text: str = said.err
        return text

    return check


@pytest.mark.parametrize(
    ("name", "content", "what", "fix"),
    [
        ("gone.txt", None, "gone.txt", "ghost.txt"),
        ("empty.txt", b"", "empty", ""),
        ("blank.txt", b" \n\n ", "", ""),
        ("binary.txt", bytes(range(256)) * 40, "binary", ""),
        ("latin.txt", ("naïve " * 900).encode("latin-1"), "UTF-8", ""),
        ("short.txt", b"too short", "short", "context"),
    ],
)
def test_texts_that_cannot_be_read(
    refused: Any, tmp_path: Path, name: str, content: bytes | None, what: str, fix: str
) -> None:
    (tmp_path / "ghost.txt").write_text("near by")
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    said = refused("train", "--new", "--path", path)
    assert said.startswith("error: ")
    assert name in said and what in said and fix in said
    assert "help:" in said


def test_an_empty_folder_and_an_unreadable_text(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    assert "nothing" in refused("train", "--new", "--path", tmp_path / "nothing")
    path = tmp_path / "secret.txt"
    path.write_text("not for you " * 200)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user reads everything")
    assert "secret.txt" in refused("train", "--new", "--path", path)


def test_checkpoints_that_are_gone_are_missed_and_computed_again(surefoot: Any, runs: Path) -> None:
    before = surefoot("sample", "done", "--tokens", 9, "--checkpoint", "last").ok().out
    shutil.rmtree(runs / "done" / "checkpoints")
    found = surefoot("verify", "done")
    assert found.code == 5 and "there is none" in found.out
    assert "surefoot resume done" in found.err
    for verb in ("sample", "evaluate"):
        said = surefoot(verb, "done")
        assert said.code == 2 and "no checkpoint any more: they are gone" in said.err
        assert "surefoot resume done computes" in said.err
    assert "resume proven" in surefoot("resume", "done").ok().out
    assert surefoot("verify", "done").code == 0
    assert surefoot("sample", "done", "--tokens", 9, "--checkpoint", "last").ok().out == before


def test_a_journal_that_is_missing_is_not_called_a_checkpoint(surefoot: Any, runs: Path) -> None:
    (runs / "done" / "journal").unlink()
    said = surefoot("verify", "done")
    assert said.code == 5 and "missing: what is computed again cannot be proven" in said.out
    assert "restore it from a copy" in said.err and "checkpoint" not in said.err


def test_a_question_to_a_recipe_that_answers_none(surefoot: Any, runs: Path) -> None:
    said = surefoot("sample", "done", "--ask", "3 x 4")
    assert said.code == 2 and "this recipe answers no --ask" in said.err


@pytest.mark.parametrize(
    ("words", "what", "help_"),
    [
        (["train", "multiply", "--learners.active", "simple,bogus"], "there is no 'bogus'", "latent"),
        (
            ["train", "multiply", "--learners.simpel.max-steps", "3"],
            "unknown flag", "did you mean --learners.simple.max-steps?",
        ),
        (["train", "charlm", "--max-steps", "1e30"], "got '1e30'", "the default is"),
        (["train", "charlm", "--name", "a" * 300], "300 letters cannot be the name", "100 at most"),
        (["sample", "done", "--prompt", ""], "--prompt is empty", "some text"),
        (["adopt", ".", "--recipe", "charlm"], "holds no model", "transformers saved"),
    ],
)  # fmt: skip
def test_mistakes_say_what_there_is(
    surefoot: Any, runs: Path, words: list[str], what: str, help_: str
) -> None:
    said = surefoot(*words)
    assert said.code == 2 and what in said.err and help_ in said.err.partition("help:")[2]


def test_a_tag_is_the_same_everywhere(refused: Any) -> None:
    said = refused("train", "--new", "--tags", "fine,b c")
    assert "'b c' cannot be a tag" in said
    assert said == refused("tag", "last", "b c")


def test_settings_are_refused_all_at_once(refused: Any, tmp_path: Path) -> None:
    said = refused(
        "train", "--new", "--d-model", 30, "--num-heads", 4, "--micro-batch-size", 3,
        "--warmup-steps", 99, "--lr", "fast", "--dropuot", "0.1", "--batch-size", -1,
    )  # fmt: skip
    for word in ("--dropuot", "did you mean", "--dropout", "optim.lr", "train.batch_size"):
        assert word in said, word
    assert "nothing was started" in said
    assert said.count("error: ") >= 3


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--d-model", 30, "--num-heads", 4], "4 heads do not divide d_model 30; 3 would"),
        (["--micro-batch-size", 3], "3 does not divide train.batch_size 8; 2 would"),
        (["--warmup-steps", 6], "6 steps of warmup do not fit into 6 steps"),
        (["--val-ratio", 2], "val_ratio"),
        (["--precision", "fp64"], "fp32"),
        (["--min-lr", 1], "above the peak"),
        (["--save-every", "often"], "5min"),
        (["--keep.max-disk", "lots"], "2GB"),
        (["--device", "tpu"], "expected auto, cpu, mps, cuda or cuda:N"),
        (["--epochs", 2], "max_steps"),
        (["--preset", "huge"], "tiny"),
        (["-c", "nowhere.yaml"], "nowhere.yaml"),
        (["--path", ""], "data.path: expected a path or none"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_settings_that_do_not_fit(refused: Any, words: list[Any], what: str) -> None:
    said = refused("train", "--new", *words)
    assert what in said
    assert "-->" in said


def test_a_file_is_pointed_into(refused: Any, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model:\n  d_model: 30\n  num_heads: four\n  widht: 3\n")
    said = refused("train", "--new", "-c", file)
    assert "run.yaml:3:14" in said and "run.yaml:4:3" in said
    assert "^" in said


@pytest.mark.parametrize(
    ("words", "what", "fix"),
    [
        (["tarin", "charlm"], "unknown verb tarin", "did you mean surefoot train?"),
        (["train", "charml"], "unknown recipe 'charml'", "did you mean charlm?"),
        (["train"], "which recipe?", "surefoot train charlm"),
        (["train", "charlm", "--max-restarts", "x"], "invalid int value: 'x'", "--help lists"),
        (["sweep", "charlm", "--grid", "foo=1"], "unknown setting foo", "config docs charlm"),
        (["train", "./nowhere.py"], "there is no file nowhere.py", "check the path"),
        (["resume", "dnoe"], "no such run: dnoe", "did you mean done?"),
        (["show", "nothing-like-it"], "no such run: nothing-like-it", "surefoot runs"),
        (["sample", "done", "--checkpoint", "999"], "no checkpoint of step 999", "one of "),
        (["sample", "done", "--prompt", "Ωmega ☃"], "Ω", "vocabulary"),
        (["checkpoints", "done", "fork"], "fork needs the step", "surefoot checkpoints RUN"),
        (["checkpoints", "done", "fork", "999"], "no checkpoint of step 999", "one of "),
        (["data", "get", "shakespear9"], "shakespear9", "shakespeare9"),
        (["config", "explain", "d_modle"], "d_modle", "d_model"),
        (["--frobnicate"], "unknown flag --frobnicate", "verbs: "),
        (["runs", "--jsn"], "unknown flag --jsn", "did you mean --json?"),
        (["sample", "done", "--promt", "a"], "unknown flag --promt", "did you mean --prompt?"),
        (["verify", "done", "now"], "unexpected word 'now'", "surefoot verify --help"),
        (["data", "lst"], "invalid choice: 'lst'", "surefoot data --help"),
        (["train", "charlm", "--max-steps", "none"], "to know its length", "horizon"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_words_that_mean_nothing(
    surefoot: Any, runs: Path, words: list[str], what: str, fix: str
) -> None:
    before = snapshot(runs)
    said = surefoot(*words)
    assert said.code == 2, said.out + said.err
    assert what in said.err and fix in said.err
    assert snapshot(runs) == before


def test_settings_that_do_not_say_for_which_recipe(
    surefoot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, recipe in (("plain", ""), ("mine", "recipe: sort"), ("list", "recipe: [charlm]")):
        text = f"surefoot: {{{recipe}}}\ntrain: {{seed: 1}}\n"
        (tmp_path / f"{name}.yaml").write_text(text)
    for files, what, fix in (
        ("-c plain.yaml", "plain.yaml says nothing of a recipe", "train charlm -c plain.yaml"),
        ("-c plain.yaml -c mine.yaml", "are for sort, which", "./FILE.py -c plain.yaml -c mine"),
        ("-c list.yaml", "are for ['charlm'], which is not", "-c list.yaml"),
        ("-c gone.yaml", "no file gone.yaml", "did you mean"),
        ("-c", "which recipe?", "surefoot train charlm"),
    ):
        said = surefoot("train", *files.split())
        assert said.code == 2 and what in said.err and fix in said.err


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "done", "--tokens", "0"],
        ["sample", "done", "--temperature", "-1"],
        ["sample", "done", "--top-p", "1.5"],
        ["sample", "done", "--top-k", "x"],
        ["runs", "--nonsense"],
        ["checkpoints", "done", "explode"],
    ],
    ids=" ".join,
)
def test_options_out_of_range(surefoot: Any, runs: Path, words: list[str]) -> None:
    said = surefoot(*words)
    assert said.code == 2
    assert words[-2 if words[-2].startswith("--") else -1] in said.err
    assert said.out == ""


def test_a_folder_that_cannot_be_written(surefoot: Any, tmp_path: Path, runs: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("not a folder")
    said = surefoot.train("--runs", blocked / "runs")
    assert said.code == 2, said.err
    assert str(blocked) in said.err and "--runs DIR" in said.err
    locked = tmp_path / "read only"
    locked.mkdir()
    locked.chmod(0o555)
    if os.access(locked, os.W_OK):  # this user writes everywhere but there
        locked = Path("/proc")
    said = surefoot.train("--runs", locked / "runs")
    assert said.code == 2
    assert str(locked) in said.err and "--runs" in said.err


def test_a_device_that_is_not_there(refused: Any) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    said = refused("train", "--new", "--device", "cuda", code=3)
    assert "there is no CUDA device 0" in said
    assert "--device cpu" in said


def test_a_disk_without_room(refused: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    said = refused("train", "--new")
    assert re.search(r"needs [\d.]+ kB of disk, [\d.]+ kB more than are free", said)
    assert "--runs on another disk" in said


@pytest.mark.parametrize("file", ["run.json", "config.yaml", "vocabulary.json"])
@pytest.mark.parametrize("content", ["{ not json: [", None])
def test_a_run_folder_with_a_damaged_file(
    surefoot: Any, runs: Path, file: str, content: str | None
) -> None:
    if content is None:
        (runs / "done" / file).unlink()
    else:
        (runs / "done" / file).write_text(content)
    before = snapshot(runs)
    said = surefoot("sample", runs / "done", "--tokens", 3)
    assert said.code == 2, said.err
    assert file in said.err
    assert "help:" in said.err
    assert snapshot(runs) == before
    assert surefoot("runs").code == 0


def test_changed_data_is_not_gone_on_with(surefoot: Any, runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(surefoot.text.read_bytes())
    surefoot.train("--name", "own", path=path).ok()
    path.write_text(path.read_text() + "\nOne more line.\n")
    said = surefoot("resume", "own", "--max-steps", 8)
    assert said.code == 2
    assert "the data changed since this run began" in said.err
    path.unlink()
    said = surefoot("resume", "own", "--max-steps", 8)
    assert said.code == 2
    assert "mine.txt" in said.err
    assert surefoot("sample", "own", "--tokens", 3).code == 0


def test_no_network_falls_back_and_says_so(
    surefoot: Any, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surefoot.data import corpora

    text = surefoot.text.read_text(encoding="utf-8")
    known = [replace(c, build=lambda _: text) if c.name == "pydocs" else c for c in corpora._ALL]
    monkeypatch.setattr(corpora, "_ALL", known)
    said = surefoot.train(path="none").ok()
    assert said.out.startswith("data   pydocs: 8,")
    assert "shakespeare9 could not be downloaded" in said.out and "SUREFOOT_OFFLINE" in said.out
    assert "its losses are not comparable" in said.out
