"""A file of weights without a configuration becomes a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot.engine.codec import read_tensors, write_tensors

MODEL = "checkpoints/step-000000006/main.model.safetensors"
TEXT = Path(__file__).resolve().parents[1] / "fixtures" / "shakespeare.txt"
FLAGS = [
    "--precision=fp32", "--threads=1", "--matmul=default", "--compile=off",
    "--attention=sdpa", "--cross-entropy=reference", "--micro-batch-size=8", "--warmup-steps=1",
]  # fmt: skip
WORDS = ["--recipe=charlm", "--preset=tiny", "--path", TEXT, "--context=32", *FLAGS]


class Mine:
    """Something that only a pickle can hold."""


@pytest.fixture
def weights(runs: Path) -> dict[str, torch.Tensor]:
    return read_tensors(runs / "done" / MODEL)


@pytest.mark.parametrize("form", ["safetensors", "pt", "nested pt", "half"])
def test_weights_become_a_run_that_evaluates_and_trains(
    surefoot: Any, runs: Path, tmp_path: Path, weights: dict[str, torch.Tensor], form: str
) -> None:
    file = tmp_path / f"old.{form[-2:] if form != 'safetensors' else form}"
    if form == "safetensors":
        write_tensors(file, weights)
    elif form == "half":
        torch.save({name: tensor.half() for name, tensor in weights.items()}, file)
    else:
        torch.save(weights if form == "pt" else {"model": weights, "step": 6}, file)
    told = surefoot("adopt", file, *WORDS, "--name", "old", "--json").ok().json
    assert told["run"] == "old" and told["settings"]["model.d_model"] == 32
    was, is_now = (surefoot("evaluate", run, "--json").ok().json for run in ("done", "old"))
    loss = [next(iter(found["metrics"].values()))["val_loss"] for found in (was, is_now)]
    assert loss[0] == pytest.approx(loss[1], abs=1e-3 if form == "half" else 1e-6)
    assert "done" in surefoot("resume", "old", "--max-steps", "2").ok().out
    meta = json.loads((runs / "old" / "run.json").read_text())
    assert meta["adopted"] == str(file) and meta["step"] == 2


def broken(weights: dict[str, torch.Tensor], how: str) -> Any:
    name = "blocks.1.attn.qkv.weight"
    match how:
        case "misspelt":
            weights["blocks.1.attn.qvk.weight"] = weights.pop(name)
        case "wrong shape":
            weights["blocks.1.mlp.down.weight"] = torch.zeros(32, 7)
        case "too much":
            weights["extra.weight"] = torch.zeros(3)
        case "not a model":
            return {"a": torch.zeros(3)}
        case "code":
            return {"model": weights, "mine": Mine()}
        case "nothing":
            return {"step": 6}
    return weights


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (
            "misspelt",
            "blocks.1.attn.qkv.weight: not in the file; did you mean blocks.1.attn.qvk.weight?",
        ),
        ("wrong shape", "blocks.1.mlp.down.weight: [32, 7] in the file, [32, 96] in the model"),
        ("too much", "extra.weight: not in the model"),
        ("not a model", "this is no GPT that we know: embed.weight is missing"),
        ("code", "test_e2e_adopt.Mine, not weights alone"),
        ("nothing", "no tensors by name in it"),
    ],
)
def test_what_does_not_fit_is_explained_and_no_run_is_made(
    surefoot: Any, tmp_path: Path, runs: Path, weights: Any, how: str, words: str
) -> None:
    torch.save(broken(weights, how), tmp_path / "old.pt")
    said = surefoot("adopt", tmp_path / "old.pt", *WORDS)
    assert said.code == 2 and words in said.err
    assert [p.name for p in runs.iterdir() if not p.name.startswith(".")] == ["done"]


def test_what_shapes_do_not_tell_is_asked_for(surefoot: Any, tmp_path: Path, weights: Any) -> None:
    torch.save(weights, tmp_path / "old.pt")
    said = surefoot("adopt", tmp_path / "old.pt", "--recipe", "charlm", "--d-model", "64")
    assert said.code == 2 and "2 problems; nothing was started" in said.err
    assert "model.d_model is 32 in the file, not 64" in said.err
    assert "model.context is not known: rotary positions leave no trace" in said.err
    settings = tmp_path / "sizes.yaml"
    settings.write_text("model:\n  context: 32\n")
    said = surefoot("adopt", tmp_path / "old.pt", *WORDS[:4], *FLAGS, "-c", settings, "--json")
    assert said.ok().json["settings"]["model.d_model"] == 32, "a file may say it, too"
    assert "which file?" in surefoot("adopt").err
    assert "charlm or gpt" in surefoot("adopt", tmp_path / "old.pt").err
    assert "no such file" in surefoot("adopt", tmp_path / "not.pt", "--recipe", "charlm").err
    assert "--recipe NAME" in surefoot("adopt", "--help").ok().out


def test_learners_of_multiply_are_told_apart(
    surefoot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUREFOOT_RUNS", str(tmp_path / "runs"))
    words = ["--preset", "tiny", "--max-steps", "2", "--quiet", *FLAGS]
    surefoot("train", "multiply", "--name", "pair", *words).ok()
    for learner in ("simple", "latent"):
        file = tmp_path / "runs/pair/checkpoints/step-000000002" / f"{learner}.model.safetensors"
        told = surefoot("adopt", file, "--recipe", "multiply", *words[:2], *FLAGS, "--json").ok()
        settings = told.json["settings"]
        assert settings["learners.active"] == [learner] and settings["data.max_digits"] == 1
        assert ("model.num_latent" in settings) == (learner == "latent")
