"""Looking inside a run: a profile, ratios of updates, one step replayed; none changes a bit."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.test_e2e_life import NUMBERS

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sort_lists.py"

# From step 4 on the gradient is NaN though the loss is finite: 0 times the slope of a root at 0.
STEEP = """
from dataclasses import replace
import torch
from surefoot import Loss
from surefoot.recipes import find

sort = find({example!r})

def build(config, world):
    job = sort.build(config, world)
    learner, loss = job.learners["main"], job.learners["main"].loss

    def steep(model, batch):
        found = loss(model, batch)
        if learner.step < 3 or not torch.is_grad_enabled():
            return found
        flat = 0 * learner.parameters[0].sum()
        return Loss(found.sum + 0 * torch.sqrt(flat))  # the culprit

    learner.loss = steep
    return job

recipe = replace(sort, name="steep", build=build)
"""

# BatchNorm1d takes no single example in training, and writes into its buffers whenever it is called.
NORMED = (
    NUMBERS
    + """
    torch.manual_seed(config.train.seed)
    model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    def loss(model, batch):
        return Loss((model(batch.fields["x"]) - batch.fields["x"].flip(1)).square().sum())
    return Job(Numbers(), {"main": Learner(model, loss, build_optimisers(model, config.optim))})
recipe = Recipe(name="normed", summary="a norm over the batch", config=RunConfig, build=build)
"""
)


def record(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    left_out = ("time", "segment", "tokens_per_s", "examples_per_s")
    return [{k: v for k, v in json.loads(line).items() if k not in left_out} for line in lines]


def weights(run: Path) -> bytes:
    return (run / "checkpoints" / "step-000000012" / "main.model.safetensors").read_bytes()


def prints(run: Path) -> dict[str, str]:
    """Return a hash of every file of a run but those of `debug/`."""
    files = (p for p in run.rglob("*") if p.is_file() and p.parent.name != "debug")
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_looking_changes_no_bit(surefoot: Any, runs: Path) -> None:
    surefoot.train("--name", "plain", steps=12).ok()
    answer = surefoot.train("--name", "seen", "--new", "--profile", "--update-ratio", steps=12)
    assert answer.ok().err == ""
    assert weights(runs / "seen") == weights(runs / "plain")
    seen, ratios = record(runs / "seen"), []
    for row in seen:
        found = {key: row.pop(key) for key in list(row) if key.startswith("update_ratio/")}
        if row["kind"] == "train":
            ratios.append(found)
    assert seen == record(runs / "plain")
    assert all(set(found) == set(ratios[0]) for found in ratios)
    assert "update_ratio/blocks.0" in ratios[0] and 1e-6 < ratios[-1]["update_ratio/blocks.0"] < 1
    table = (runs / "seen" / "profile" / "steps-11-12.txt").read_text(encoding="utf-8")
    assert table in answer.out
    shares = re.findall(r"^  (\w+) +[\d.]+ ms +([\d.]+) %$", table, re.MULTILINE)
    assert {"forward", "backward", "optimiser", "clip", "data", "rest"} <= {n for n, _ in shares}
    assert sum(float(share) for _, share in shares) == pytest.approx(100, abs=1)
    with gzip.open(runs / "seen" / "profile" / "steps-11-12.json.gz") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"forward", "optimiser", "aten::mm", "[memory]"} <= names


def test_a_step_can_be_looked_into(surefoot: Any, runs: Path) -> None:
    before = prints(runs / "done")
    answer = surefoot("resume", "done", "--debug-step", 6).ok()
    assert prints(runs / "done") == before
    assert "step 6 of done, replayed from the checkpoint of step 4" in answer.out
    assert "2 steps on the way are bit for bit what the journal holds" in answer.out
    assert "blocks.0.attn.qkv" in answer.out and "8 examples, the highest loss first" in answer.out
    found = surefoot("resume", "done", "--debug-step", 6, "--json").ok().json
    inside, row = (
        found["learners"]["main"],
        next(r for r in record(runs / "done") if r["step"] == 6),
    )
    assert (inside["loss"], inside["grad_norm"]) == (row["loss"], row["grad_norm"])
    losses = [loss for _, loss, _ in inside["examples"]]
    assert losses == sorted(losses, reverse=True)
    assert sum(losses) / 8 == pytest.approx(row["loss"], rel=1e-4)
    assert set(inside["gradients"]) == set(inside["weights"]) and not found["findings"]
    assert Path(found["file"]).read_text(encoding="utf-8").startswith("step 6 of done")


def test_a_run_is_found_by_its_settings(surefoot: Any, runs: Path) -> None:
    from_start = surefoot.train("--debug-step", 1, "--name", "done").ok().out
    assert "step 1 of done, replayed from the beginning" in from_start
    assert "step 2 of done" in surefoot.train("--debug-step", 2).ok().out
    other = surefoot.train("--debug-step", 2, "--seed", 7)
    assert other.code == 2 and "no run has these settings" in other.err
    for step in (0, 7, -1):
        wrong = surefoot("resume", "done", "--debug-step", step)
        assert wrong.code == 2 and "1 to 6" in wrong.err


def test_a_gradient_that_is_not_finite_is_traced_to_its_line(
    surefoot: Any, runs: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "steep.py"
    recipe.write_text(STEEP.format(example=str(EXAMPLE)))
    words = [
        "train", recipe, "--preset", "tiny", "--max-steps", "5", "--name", "steep", "--save-every",
        "2", "--precision", "fp32", "--threads", "1", "--matmul", "default", "--compile", "off",
        "--prefetch-threads", "0", "--no-report", "--no-tensorboard",
    ]  # fmt: skip
    assert "update skipped" in surefoot(*words).ok().out
    answer = surefoot("resume", "steep", "--debug-step", 4).ok()
    assert "SqrtBackward0" in answer.out and "# the culprit" in answer.out
    assert "bit for bit" in answer.out  # the steps before the culprit
    assert surefoot("resume", "steep", "--debug-step", 5, "--json").ok().json["findings"]


def test_a_model_that_takes_no_single_example_trains_resumes_and_is_looked_into(
    surefoot: Any, runs: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "normed.py"
    recipe.write_text(NORMED)
    few = ["--batch-size", "8", "--warmup-steps", "1", "--no-report", "--no-tensorboard"]
    few += ["--schedule.kind", "constant", "--save-every", "4", "--compile", "off"]
    for name, steps in ("whole", 12), ("run", 6):
        surefoot("train", recipe, *few, "--max-steps", steps, "--name", name).ok()
    surefoot("resume", "run", "--max-steps", 12).ok()
    assert weights(runs / "run") == weights(runs / "whole")
    answer = surefoot("resume", "run", "--debug-step", 6).ok()
    assert "6 steps on the way are bit for bit what the journal holds" in answer.out
    assert "found  no example is measured by itself: Expected more than 1 value" in answer.out
    assert "no example was measured by itself" in answer.out
