"""A formula of one's own that torch's compiler gets wrong ends a run before its first step."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import PINS
from tests.e2e.test_e2e_life import NUMBERS

from surefoot.ops.compiler import compiler

pytestmark = [
    pytest.mark.skipif(compiler("cpu") is None, reason="needs a C++ compiler"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

# Where it is compiled, the formula gives its bias no gradient: so did torch 2.11, for other reasons.
# It lies before a projection that begins as zeros, so that nothing of it shows in the first step.
RECIPE = (
    NUMBERS
    + """
    class Biased(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, bias):
            ctx.lose = torch.compiler.is_compiling() and LOSES
            return x + bias
        @staticmethod
        def backward(ctx, grad):
            return grad, grad.sum(0) * (0.0 if ctx.lose else 1.0)
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(config.train.seed)
            self.body, self.head = torch.nn.Linear(2, 64, bias=False), torch.nn.Linear(64, 2)
            self.shift = torch.nn.Parameter(torch.zeros(64))
            torch.nn.init.zeros_(self.head.weight)
        def forward(self, x): return self.head(torch.tanh(Biased.apply(self.body(x), self.shift)))
    def loss(model, batch):
        return Loss((model(batch.fields["x"]) - batch.fields["x"].flip(1)).square().sum())
    model = Model()
    return Job(Numbers(), {"main": Learner(model, loss, build_optimisers(model, config.optim))})
recipe = Recipe(name="biased", summary="a formula of one's own", config=RunConfig, build=build)
"""
)
WRONG = "compiled code gives a wrong gradient: shift (none at all)"


def words(folder: Path, name: str, *more: str | Path, loses: bool = True) -> list[str | Path]:
    """Return the command that trains such a recipe, compiled unless told otherwise."""
    (folder / "biased.py").write_text(RECIPE.replace("LOSES", str(loses)))
    pins = [str(w) for k, v in {**PINS, "compile": "on"}.items() for w in (f"--{k}", v)]
    few = ["--max-steps", "6", "--warmup-steps", "2", "--batch-size", "16", "--log-every", "1"]
    off: list[str | Path] = [
        "--track.tensorboard",
        "no",
        "--track.report",
        "no",
        "--runs",
        folder,
        "--name",
        name,
    ]
    return ["train", folder / "biased.py", *pins, *few, *off, *more]


def losses(run: Path) -> list[tuple[int, float, float]]:
    """Return what a run recorded of its steps."""
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(r["step"], r["loss"], r["grad_norm"]) for r in found if r["kind"] == "train"]


def test_a_lost_gradient_ends_it_and_without_the_compiler_it_trains(
    surefoot: Any, tmp_path: Path
) -> None:
    said = surefoot(*words(tmp_path, "lost"))
    assert said.code == 5
    assert WRONG in said.err
    assert "before step 1, torch " in said.err
    assert "--compile off; nothing was trained yet" in said.err
    assert losses(tmp_path / "lost") == []
    meta = json.loads((tmp_path / "lost" / "run.json").read_text())
    assert meta["status"] == "failed"
    again = surefoot("resume", "lost", "--runs", tmp_path)
    assert (again.code, WRONG in again.err) == (5, True), "it is asked at every start"
    plain = surefoot(*words(tmp_path, "plain", "--compile", "off")).ok()
    assert "compiled code" not in plain.out + plain.err
    assert len(losses(tmp_path / "plain")) == 6
    unasked = surefoot(*words(tmp_path, "unasked", "--compile-check", "no")).ok()
    assert "compiled code" not in unasked.out + unasked.err
    assert losses(tmp_path / "unasked") != losses(tmp_path / "plain")


def test_another_compiler_on_a_resume_is_found_and_a_fork_goes_on(
    surefoot: Any, tmp_path: Path
) -> None:
    """The recipe that a resume reads is another one: to the run, as another torch would be."""
    right = words(tmp_path, "run", "--save-every", "2", "--max-steps", "4", loses=False)
    said = surefoot(*right).ok()
    assert "compiled code" not in said.out + said.err
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "compiled code gives the model's gradient, " in log
    whole = surefoot(*words(tmp_path, "whole", "--compile-check", "no", loses=False)).ok()
    assert "compiled code" not in whole.out + (tmp_path / "whole" / "log.txt").read_text()
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")[:4], "a look changes no bit"

    shutil.copytree(tmp_path / "run", tmp_path / "kept")
    (tmp_path / "biased.py").write_text(RECIPE.replace("LOSES", "True"))
    wrong = surefoot("resume", "run", "--max-steps", "6", "--runs", tmp_path)
    assert wrong.code == 5
    assert WRONG in wrong.err
    assert "before step 5" in wrong.err
    assert "surefoot resume run --fork --compile off goes on without it" in wrong.err
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")[:4]
    forked = ["resume", "run", "--fork", "--compile", "off", "--max-steps", "6", "--name", "on"]
    surefoot(*forked, "--runs", tmp_path).ok()
    assert [step for step, _, _ in losses(tmp_path / "on")] == [5, 6]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_several_processes_say_it_once(parallel: str, tmp_path: Path) -> None:
    """And what they train is the same to the bit where they do not ask."""
    few = ["--micro-batch-size", "4", "--devices", "2", "--parallel", parallel]
    sides: dict[str, tuple[bool, list[str]]] = {
        "lost": (True, []),
        "asked": (False, []),
        "unasked": (False, ["--compile-check", "no"]),
    }
    for name, (loses, more) in sides.items():
        command = map(str, words(tmp_path, name, *few, *more, loses=loses))
        done = subprocess.run(
            [sys.executable, "-m", "surefoot", *command],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == (5 if loses else 0), done.stdout + done.stderr
        assert (done.stdout + done.stderr).count(WRONG) == loses
        assert len(losses(tmp_path / name)) == (0 if loses else 6)
    assert "the model's gradient, " in (tmp_path / "asked" / "log.txt").read_text()
    assert losses(tmp_path / "asked") == losses(tmp_path / "unasked")
    asked, unasked = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.safetensors")}
        for n in ("asked", "unasked")
    )
    assert asked == unasked
    assert len(asked) > 2, "weights of the beginning and of the end"
