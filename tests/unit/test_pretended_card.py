"""What is taken only on a card, without one: tensors on `cuda` that lie in memory (tests/pretended)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
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


class OnCard:
    """Commands on the card, each in a fork of one process."""

    def __init__(self, library: Path, home: Path) -> None:
        self._home = home
        self._own = {"PRETENDED_CARD": str(library)}
        self._own["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.pretended.server"], env=os.environ | self._own, cwd=ROOT,
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __call__(self, *words: str | Path, **more: str) -> str:
        """Return what the command prints."""
        assert self.process.stdin is not None and self.process.stdout is not None
        out, err = self._home / "out", self._home / "err"
        asked = {
            "words": list(map(str, words)), "environment": os.environ | self._own | more,
            "out": str(out), "err": str(err),
        }  # fmt: skip
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        ended = self.process.stdout.readline().strip()
        assert ended == "0", f"ended with {ended!r}\n{err.exists() and err.read_text()[-3000:]}"
        return out.read_text()


@pytest.fixture(scope="module")
def on_card(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnCard]:
    card = OnCard(library, tmp_path_factory.mktemp("on-card"))
    with card.process:
        yield card


def test_what_is_foreseen_of_adapters_is_what_a_card_holds(on_card: OnCard) -> None:
    told = on_card("peaks").splitlines()
    rows = [json.loads(line) for line in told]
    off = {" ".join(row["case"]): row["foreseen"] / row["taken"] - 1 for row in rows}
    for case, share in off.items():
        print(f"{share:+.2%}  {case}")
    assert len(off) == 30
    assert {case: share for case, share in off.items() if abs(share) > WITHIN} == {}


def words(recipe: str, runs: Path, *more: str) -> list[str | Path]:
    """Train on the card without what takes long."""
    return [
        "train", recipe, "--preset", "tiny", "--device", "cuda", "--compile", "off",
        "--runs", runs, "--no-tensorboard", "--no-monitor", *more,
    ]  # fmt: skip


def losses(run: Path) -> dict[int, float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}


def test_a_run_on_a_card_goes_on_bit_for_bit(on_card: OnCard, tmp_path: Path) -> None:
    settings = (
        "--path", TEXT, "--dropout", "0.1", "--micro-batch-size", "4", "--log-every", "1",
        "--no-report", "--schedule.horizon", "8", "--max-steps",
    )  # fmt: skip
    on_card(*words("charlm", tmp_path, "--name", "whole", *settings, "8"))
    on_card(*words("charlm", tmp_path, "--name", "cut", *settings, "4"))
    resume = "resume", "cut", "--runs", tmp_path, "--max-steps", "8"
    on_card(*resume)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert set(losses(tmp_path / "whole")) == set(range(1, 9))


def test_each_way_of_an_operation_is_its_reference_on_a_card(on_card: OnCard) -> None:
    asked = "ops", "check", "--device", "cuda", "--shapes", "2", "--json"
    found = json.loads(on_card(*asked))
    assert len(found) > 40 and all(each["fine"] for each in found)


@pytest.mark.parametrize("recipe", ["gpt", "multiply", "colours"])
def test_where_there_is_no_fp64_all_is_done(on_card: OnCard, tmp_path: Path, recipe: str) -> None:
    """As on MPS: a run is trained, validated, sampled, and its report is written."""
    text = ("--path", TEXT) if recipe == "gpt" else ()
    on_card(*words(recipe, tmp_path, *text, "--max-steps", "2"), WITHOUT_FP64="1")
    assert (tmp_path / f"0001-{recipe}" / "report.html").exists()
