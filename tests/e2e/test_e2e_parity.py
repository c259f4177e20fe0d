"""Kernels, parity and traces through the command line; checkpoints across ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .conftest import PINS, QUICK, TEXT

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_kernel.py"
SETTINGS = [f"--{name}={value}" for name, value in PINS.items() if name != "norm"]
TINY = ["charlm", "--preset", "tiny", "--path", TEXT, "--d-model=16", *SETTINGS]


def parity(surefoot: Any, *words: str | Path, steps: int = 3) -> Any:
    return surefoot("parity", *TINY, "--steps", str(steps), *words)


def test_equal_sides_are_the_same_and_a_picture_is_drawn(surefoot, tmp_path) -> None:
    answer = parity(surefoot, "--out", tmp_path).ok()
    assert "the same: every loss and gradient norm has the same bits" in answer.out
    assert (tmp_path / "charlm.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["charlm.png"]


def test_a_kernel_from_a_file_is_held_against_the_standard(surefoot, tmp_path) -> None:
    words = ["--a", "ops.norm=fused", "--b", f"ops.norm={EXAMPLE}", "--out", tmp_path, "--json"]
    found = parity(surefoot, *words).ok().json
    assert found["first"] is None  # on some processors they are the same to the bit
    assert found["ways"][1]["norm"].startswith(f"{EXAMPLE}#")
    checked = (
        surefoot("ops", "check", EXAMPLE, "--device", "cpu", "--shapes", "2", "--json").ok().json
    )
    assert all(f["fine"] for f in checked) and any(str(EXAMPLE) in f["way"] for f in checked)


def test_a_standard_way_slower_than_allowed_ends_with_5(surefoot) -> None:
    words = ["ops", "norm", "adamw", "--device", "cpu"]
    quick = surefoot(*words, "--max-slowdown=900%").ok()
    assert "of reference" in quick.out and "fused       *" in quick.out
    assert surefoot(*words, "--max-slowdown=-99%", "--json").code == 5
    assert surefoot(*words, "--max-slowdown", "much").code == 2
    assert surefoot("ops", "nrm").code == 2


def test_the_gates_close(surefoot, tmp_path) -> None:
    words = ["--a", "ops.norm=fused", "--b", "ops.norm=reference", "--out", tmp_path]
    answer = parity(surefoot, *words, "--max-memory", "1%", "--max-slowdown", "900%")
    assert answer.code == 5 and "more memory, at most 1.0% is allowed" in answer.err
    assert parity(surefoot, *words, "--max-memory", "60%").code == 0
    assert parity(surefoot, *words, "--tolerance", "1e-12").code == 5
    assert parity(surefoot, *words, "--max-memory", "much").code == 2
    assert parity(surefoot, "--b", "nosuch.yaml").code == 2
    assert parity(surefoot, "--b", "ops.norm=nosuch").code == 2


def test_a_run_is_repeated_by_this_code_or_it_is_not(surefoot, runs) -> None:
    answer = surefoot("parity", "charlm", "--b-run", "done").ok()
    assert "6 steps are bit for bit those of the journal of done" in answer.out
    other = surefoot("parity", "charlm", "--b-run", "done", "--a", "ops.norm=reference")
    assert other.code == 5 and "the journal of done" in other.err
    assert surefoot("parity", "multiply", "--b-run", "done").code == 2


def test_a_trace_is_recorded_and_checked(surefoot, tmp_path) -> None:
    file = tmp_path / "golden.json"
    surefoot("trace", "record", *TINY, "--norm=fused", "--steps", "4", "--out", file).ok()
    assert "4 steps are bit for bit" in surefoot("trace", "check", file).ok().out
    other = surefoot("trace", "check", file, "--norm", "reference")
    assert other.code == 5 and "blocks.0.norm1.compute" in other.err and str(file) in other.err
    near = ["--norm", "reference", "--steps", "1", "--tolerance", "1e-4", "--json"]
    assert surefoot("trace", "check", file, *near).ok().json["steps"] == 1
    assert surefoot("trace", "check", tmp_path / "none.json").code == 2
    assert surefoot("trace").code == 2


@pytest.mark.parametrize(("before", "after"), [("reference", "fused"), ("fused", "reference")])
def test_a_checkpoint_of_one_way_goes_on_in_another(surefoot, tmp_path, before, after) -> None:
    runs = ["--runs", tmp_path / "runs"]
    quick = [f"--{name}={value}" for name, value in QUICK.items()]
    words = ["train", *TINY, *quick, *runs, "--quiet", "--name", "first"]
    surefoot(*words, "--max-steps", "4", f"--norm={before}", f"--rotary={before}").ok()
    more = ["--fork", "--max-steps", "6", f"--norm={after}", f"--rotary={after}", "--name", "other"]
    other = surefoot("resume", "first", *more, *runs, "--quiet", "--json").ok().json
    assert other["step"] == 6
    same = surefoot(
        "resume", "first", "--fork", "--max-steps", "6", *runs, "--quiet", "--json"
    ).ok().json  # fmt: skip
    mine, theirs = (found["metrics"]["main"]["val_loss"] for found in (other, same))
    assert mine == pytest.approx(theirs, rel=1e-4)
