"""Twenty steps of charlm tiny: the numbers themselves, held still.

The curve is compared within a tolerance everywhere, and bit for bit, with the final weights, on a
processor and torch that the golden file knows.
"""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

import surefoot

HERE = Path(__file__).parent
GOLDEN = HERE / "charlm_curve.json"
TEXT = HERE.parent / "fixtures" / "shakespeare.txt"
TOLERANCE = 2e-3  # relative, over twenty steps on another processor
ADVICE = (
    "charlm tiny computes other numbers than before. If you changed the model, the optimiser, the "
    "data order or the seeds on purpose, say so in CHANGELOG.md and run `make golden`: every run "
    "begun earlier can then not be resumed exactly by this version. If you did not, this is a bug."
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    threads = torch.get_num_threads()
    result = surefoot.train(
        "charlm", preset="tiny", runs=tmp_path_factory.mktemp("golden"), quiet=True, path=TEXT,
        max_steps=20, dropout=0.1, device="cpu", precision="fp32", threads=1, matmul="default",
        compile="off", micro_batch_size=4, prefetch_threads=0, attention="sdpa",
        cross_entropy="reference", norm="fused", rotary="fused", swiglu="reference",
        keyed_dropout="table", log_every=1, validate_every=10, sample_every=10, save_every=10,
        report=False, tensorboard=False,
    )  # fmt: skip
    torch.set_num_threads(threads)
    return result.folder


def processor() -> str:
    """Name what the bits depend on: torch, its vector instructions, and the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        facts = dict(reversed([line.replace("\t", "").partition(": ")[::2] for line in lines]))
        chip = f"{facts.get('vendor_id')} {facts.get('cpu family')}/{facts.get('model')}"
        chip += f" {xxhash.xxh32_hexdigest(facts.get('flags', '').encode())}"
    except OSError:
        chip = platform.processor()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__.partition('+')[0]}, {capability}, {chip}"


def measured(run: Path) -> dict[str, list[float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["kind"] == "train"]
    return {
        "loss": [row["loss"] for row in train],
        "grad_norm": [row["grad_norm"] for row in train],
        "lr": [row["lr"] for row in train],
        "val_loss": [row["val_loss"] for row in rows if row["kind"] == "eval"],
    }


def weights(run: Path) -> str:
    last = max((run / "checkpoints").glob("step-*")) / "main.model.safetensors"
    return xxhash.xxh3_128_hexdigest(last.read_bytes())


def write(found: dict[str, Any], hashed: str) -> None:
    known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    same = all(_near(found[name], known.get(name, [])) for name in found)
    hashes = known.get("weights", {}) if same else {}
    curve = known if same else found
    document = {name: curve[name] for name in found}
    GOLDEN.write_text(
        json.dumps({**document, "weights": {**hashes, processor(): hashed}}, indent=1) + "\n"
    )


def _near(one: list[float], other: list[float]) -> bool:
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=TOLERANCE) for a, b in zip(one, other)
    )


def test_the_curve_is_as_it_was(run: Path, request: pytest.FixtureRequest) -> None:
    found = measured(run)
    if request.config.getoption("--update-golden"):
        write(found, weights(run))
    golden = json.loads(GOLDEN.read_text())
    assert len(found["loss"]) == 20
    for name, values in found.items():
        assert values == pytest.approx(golden[name], rel=TOLERANCE), f"{name}: {ADVICE}"
    known = golden["weights"].get(processor())
    if known is not None:
        assert weights(run) == known, f"{ADVICE} (bits, on {processor()})"


def test_the_same_again_is_the_same_to_the_bit(run: Path, tmp_path: Path) -> None:
    settings = surefoot.train("charlm", config=run / "config.yaml", runs=tmp_path, quiet=True)
    assert weights(settings.folder) == weights(run)
    assert measured(settings.folder)["loss"] == measured(run)["loss"]


TRAIN_ROW = [
    "kind",
    "step",
    "learner",
    "segment",
    "time",
    "loss",
    "lr",
    "grad_norm",
    "tokens_per_s",
]
EVAL_ROW = [
    "kind", "step", "learner", "segment", "time", "val_loss", "val_bits_per_char", "top1", "top5",
]  # fmt: skip
RUN = [
    "format", "name", "number", "recipe", "status", "created", "step", "best", "tags", "errors",
    "restarts", "segments", "test", "id", "preset", "max_steps", "seed", "identity", "pinned",
    "data", "source", "location", "machine", "git", "versions", "started", "ended",
]  # fmt: skip
MANIFEST = [
    "checksum", "created", "files", "format", "identity", "metric", "places", "run", "sequence",
    "step", "threads", "versions",
]  # fmt: skip
SAMPLE = {"step", "learner", "time", "prompt", "text"}
FILES = {
    ".lock", "checkpoints", "config.yaml", "journal", "log.txt", "metrics.jsonl", "run.json",
    "pictures.jsonl", "samples.jsonl", "system.jsonl", "vocabulary.json",
}  # fmt: skip
PROMISE = "scripts of other people read these names; adding is fine, renaming needs a migration"


def test_the_names_that_scripts_rely_on(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    by_kind = {row["kind"]: list(row) for row in rows}
    assert by_kind["train"][: len(TRAIN_ROW)] == TRAIN_ROW, PROMISE
    assert by_kind["eval"] == EVAL_ROW, PROMISE
    assert set(json.loads((run / "run.json").read_text())) >= set(RUN), PROMISE
    manifest = json.loads(next(run.glob("checkpoints/step-*/manifest.json")).read_text())
    assert set(manifest) >= set(MANIFEST), PROMISE
    sample = json.loads((run / "samples.jsonl").read_text().splitlines()[0])
    assert set(sample) >= SAMPLE, PROMISE
    found = {path.name for path in run.iterdir()} - {"code.diff"}  # of a tree with changes
    assert found == FILES, PROMISE


def test_the_first_page_of_help(
    capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    from surefoot.cli import main

    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    golden = HERE / "help.txt"
    if request.config.getoption("--update-golden"):
        golden.write_text(page, encoding="utf-8")
    assert page == golden.read_text(encoding="utf-8"), "a verb changed; meant? run `make golden`"
