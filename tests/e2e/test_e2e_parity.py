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


def test_a_trace_that_cannot_be_written_or_read_is_told(surefoot, tmp_path) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    answer = surefoot("trace", "record", *TINY, "--steps", "1", "--out", file / "golden.json")
    assert answer.code == 2 and "cannot write the trace" in answer.err
    gone = surefoot("trace", "check", tmp_path / "none.json")
    assert "cannot read the trace: No such file" in gone.err


def test_a_gate_is_judged_where_no_picture_can_be_written(surefoot, tmp_path) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    words = ["--a", "ops.norm=fused", "--b", "ops.norm=reference", "--out", file]
    answer = parity(surefoot, *words, "--max-memory", "1%")
    assert answer.code == 5 and "more memory, at most 1.0% is allowed" in answer.err
    assert "no picture was written" in answer.err and "last loss" in answer.out
    assert "look" not in answer.out
    assert parity(surefoot, *words, "--json").ok().json["picture"] is None


def test_fewer_steps_than_asked_are_told(surefoot, tmp_path) -> None:
    answer = parity(surefoot, "--max-steps", "2", "--out", tmp_path).ok()
    assert "2 steps" in answer.out and "this training has 2 steps; --max-steps 3" in answer.err
    assert "this training has" not in parity(surefoot, "--out", tmp_path).ok().err


def test_equal_losses_do_not_hide_gradients_that_are_not(surefoot) -> None:
    from surefoot.cli.parity import _verdict
    from surefoot.lab.lockstep import Lockstep, Track

    track = Track(loss=[(1.0, 1.0)], norm=[(2.0, 2.0)], gradient=[(1, 1e-7)])
    found = Lockstep(1, True, 1e-4, ("a", "b"), ({}, {}), {"main": track})
    assert _verdict(found).startswith("the same within 1e-04 at every step; every loss")
    track.gradient = [(1, 0.0)]
    assert _verdict(found) == "the same: every loss and gradient norm has the same bits"


FAULTY = """from surefoot.ops import Way


def norm(x, weight, eps, kind):
    raise ValueError("boom")


ways = {"norm": Way(norm, tolerance=1e-5)}
"""


def test_a_kernel_that_raises_is_named_with_its_line(surefoot, tmp_path) -> None:
    file = tmp_path / "a_kernel_with_a_long_name.py"
    file.write_text(FAULTY)
    for words in (
        ["ops", "check", file, "--device", "cpu"], ["ops", file, "--device", "cpu"],
        ["train", *TINY, f"--norm={file}", "--runs", tmp_path / "runs"],
    ):  # fmt: skip
        answer = surefoot(*words)
        assert answer.code == 1 and "the kernel fails: ValueError: boom" in answer.err
        assert f"{file}:5" in answer.err and "bug in surefoot" not in answer.err


def test_columns_are_as_wide_as_the_longest_way(surefoot, tmp_path) -> None:
    file = tmp_path / "a_kernel_with_a_long_name.py"
    file.write_text(EXAMPLE.read_text())
    listed = surefoot("ops", file, "--device", "cpu").ok().out.splitlines()
    assert listed[0].startswith("norm ")  # no empty line before the first
    ends = {line.index("1e-05") for line in listed if "1e-05" in line}
    assert len(ends) == 1
    checked = surefoot("ops", "check", file, "--device", "cpu", "--shapes", "1").ok().out
    assert len({line.index("fp64") for line in checked.splitlines() if "fp64" in line}) == 1


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
