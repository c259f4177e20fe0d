"""What is taken only on a card, without one: tensors on `cuda` that lie in memory (tests/pretended)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
for name in ("bitsandbytes", "peft", "transformers"):
    pytest.importorskip(name)

ROOT = Path(__file__).parents[2]
TEXT = str(ROOT / "tests" / "fixtures" / "shakespeare.txt")
WITHIN = 0.015
pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="built for Linux"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(
        not torch.__version__.startswith("2.13."), reason="written for what is inside torch 2.13"
    ),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build what torch asks of a device."""
    found, inside = tmp_path_factory.mktemp("card") / "card.so", Path(torch.__file__).parent
    subprocess.run(
        ["g++", "-std=c++20", "-shared", "-fPIC", "-w", f"-I{inside / 'include'}",
         str(ROOT / "tests" / "pretended" / "card.cpp"), f"-L{inside / 'lib'}", "-lc10", "-ltorch_cpu",
         "-o", str(found)],
        check=True,
    )  # fmt: skip
    return found


def on_card(
    library: Path, module: str, *words: str | Path, **more: str
) -> subprocess.CompletedProcess[str]:
    own = {**os.environ, "PRETENDED_CARD": str(library), **more}
    own["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    command = [sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=own, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_what_is_foreseen_of_adapters_is_what_a_card_holds(library: Path) -> None:
    told = on_card(library, "tests.pretended.peaks").stdout.splitlines()
    rows = [json.loads(line) for line in told]
    off = {" ".join(row["case"]): row["foreseen"] / row["taken"] - 1 for row in rows}
    for case, share in off.items():
        print(f"{share:+.2%}  {case}")
    assert len(off) == 30
    assert {case: share for case, share in off.items() if abs(share) > WITHIN} == {}


def words(recipe: str, runs: Path, *more: str) -> list[str | Path]:
    """Train on the card without what takes long."""
    return [
        "tests.pretended", "train", recipe, "--preset", "tiny", "--device", "cuda", "--compile", "off",
        "--runs", runs, "--no-tensorboard", "--no-monitor", *more,
    ]  # fmt: skip


def losses(run: Path) -> dict[int, float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}


def test_a_run_on_a_card_goes_on_bit_for_bit(library: Path, tmp_path: Path) -> None:
    settings = (
        "--path", TEXT, "--dropout", "0.1", "--micro-batch-size", "4", "--log-every", "1",
        "--no-report", "--schedule.horizon", "8", "--max-steps",
    )  # fmt: skip
    on_card(library, *words("charlm", tmp_path, "--name", "whole", *settings, "8"))
    on_card(library, *words("charlm", tmp_path, "--name", "cut", *settings, "4"))
    resume = "tests.pretended", "resume", "cut", "--runs", tmp_path, "--max-steps", "8"
    on_card(library, *resume)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert set(losses(tmp_path / "whole")) == set(range(1, 9))


def test_each_way_of_an_operation_is_its_reference_on_a_card(library: Path) -> None:
    asked = "tests.pretended", "ops", "check", "--device", "cuda", "--shapes", "2", "--json"
    found = json.loads(on_card(library, *asked).stdout)
    assert len(found) > 40 and all(each["fine"] for each in found)


@pytest.mark.parametrize("recipe", ["gpt", "multiply", "colours"])
def test_where_there_is_no_fp64_all_is_done(library: Path, tmp_path: Path, recipe: str) -> None:
    """As on MPS: a run is trained, validated, sampled, and its report is written."""
    text = ("--path", TEXT) if recipe == "gpt" else ()
    on_card(library, *words(recipe, tmp_path, *text, "--max-steps", "2"), WITHOUT_FP64="1")
    assert (tmp_path / f"0001-{recipe}" / "report.html").exists()
