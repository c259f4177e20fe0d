"""Tuning on a card: what was planned is what it takes, and a killed run goes on bit for bit.

Run with a CUDA device; without one everything here is skipped. Needs no network.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

from tests.e2e.test_e2e_code import FRAGILE, METHODS, end_of, repo  # noqa: E402
from tests.gpu import adapters  # noqa: E402
from tests.gpu.long_rows import foreseen  # noqa: E402

from surefoot.cli import main  # noqa: E402
from surefoot.engine.place import repeatable  # noqa: E402

__all__ = ["repo"]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of models with random weights."""
    return adapters.random_models(tmp_path_factory.mktemp("bases"))


def test_what_is_planned_is_what_it_takes(
    bases: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    repeatable(torch.device("cuda"))
    for dtype in (torch.float32, torch.bfloat16):  # workspaces of libraries are there from now on
        warm = torch.ones(256, 256, device="cuda", dtype=dtype, requires_grad=True)
        for bias in (None, warm[0]):
            torch.nn.functional.linear(warm, warm, bias).sum().backward()
    del warm, bias
    rows = []
    for layout, method, more in adapters.CASES:
        config = adapters.settings(bases[layout], method, more, 4096)
        need, real = adapters.foreseen(config), adapters.taken(config, bases[layout])
        told = " ".join(k.rpartition(".")[2] for k, v in more.items() if v) or "checkpointing"
        rows.append((layout, method, told if more != adapters.PLAIN else "-", need.peak, real))
    with capsys.disabled():
        print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, rows of 4,096 tokens")
        for layout, method, told, foreseen, real in rows:
            off = foreseen / real - 1
            print(
                f"{layout:6} {method:7} {told:32} predicted {foreseen / 1e6:8.1f} MB"
                f"  measured {real / 1e6:8.1f} MB  {off:+.2%}"
            )
    wrong = [row for row in rows if abs(row[3] / row[4] - 1) > 0.015]
    assert not wrong


def test_64_k_tokens_of_phi_2_in_7_gib(capsys: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).with_name("long_rows.py")
    setting = "expandable_segments:True"
    own = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": setting, "PYTORCH_ALLOC_CONF": setting}
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own
    )  # fmt: skip
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    need = foreseen(65536, processors)  # meanwhile
    out, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    told = json.loads(out.splitlines()[-1])
    told |= {"predicted_gib": need.peak / 2**30, "host_gib": need.host / 2**30}
    with capsys.disabled():
        print(
            "\n"
            + "  ".join(
                f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in told.items()
            )
        )
    assert told["reserved_gib"] <= 7.2 and told["updates"] == 2
    assert abs(told["predicted_gib"] / told["allocated_gib"] - 1) < 0.03


def words(repo: Path, *more: str | Path) -> list[str]:
    """A tiny run on the card."""
    first = [
        "train",
        "code",
        "--preset",
        "tiny",
        "--repo",
        repo,
        "--device",
        "cuda",
        "--max-steps",
        6,
    ]
    sizes = [
        "--context", 32, "--rank", 2, "--val-tokens", 200, "--outside-tokens", 100, "--prompts", 0,
        "--log-every", 1, "--validate-every", 3, "--save-every", 2, "--micro-batch-size", 2,
        "--no-tensorboard", "--no-report",
    ]  # fmt: skip
    return [str(word) for word in [*first, *sizes, *more]]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_the_card(repo: Path, tmp_path: Path, method: str) -> None:
    assert main(words(repo, "--method", method, "--runs", tmp_path)) == 0
    rows = [
        json.loads(x) for x in (tmp_path / "0001-code" / "metrics.jsonl").read_text().splitlines()
    ]
    (found,) = [r for r in rows if r["kind"] == "eval" and r["step"] == 6]
    assert found["val_ppl"] < found["base_val_ppl"]


def test_killed_in_four_bits_on_the_card_it_goes_on_bit_for_bit(repo: Path, tmp_path: Path) -> None:
    marker, file = tmp_path / "marker", tmp_path / "fragile.py"
    file.write_text(FRAGILE.format(marker=str(marker)))
    asked = words(
        repo, "--method", "qlora+", "--dropout", "0.2", "--dora", "on", "--precision", "auto"
    )
    asked[1] = str(file)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert main([*asked, "--runs", str(straight)]) == 0
    marker.touch()
    command = [sys.executable, "-m", "surefoot", *asked, "--runs", str(killed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    marker.unlink()
    assert main(["resume", "last", "--runs", str(killed)]) == 0
    assert end_of(straight / "0001-fragile") == end_of(killed / "0001-fragile")


def test_moments_in_8_bits_are_those_of_bitsandbytes() -> None:
    import bitsandbytes as bnb

    from surefoot.nn.eight_bit import in_eight_bits
    from surefoot.nn.optimiser import AdamW

    torch.manual_seed(0)
    start = [torch.randn(64, 128, device="cuda"), torch.randn(16, device="cuda")]
    ours, theirs = ([torch.nn.Parameter(t.clone()) for t in start] for _ in range(2))
    rates: Any = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    mine: Any = in_eight_bits([AdamW(ours, **rates)], torch.device("cuda"))
    assert [type(o).__name__ for o in mine] == ["AdamW8bit", "AdamW"]
    reference = bnb.optim.AdamW8bit(theirs, **rates)
    for _ in range(5):
        for a, b in zip(ours, theirs):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimiser in mine:
            optimiser.step()
        reference.step()
    assert torch.equal(ours[0], theirs[0])
    assert torch.allclose(ours[1], theirs[1], atol=1e-6)
    assert mine[0].state[ours[0]]["state1"].dtype == torch.uint8


def test_a_run_with_moments_in_8_bits_stops_and_goes_on(repo: Path, tmp_path: Path) -> None:
    own = ["--rank", "64", "--moments", "8bit", "--method", "lora+", "--horizon", "6"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*words(repo, *own), "--runs", str(whole)]) == 0
    first = [*words(repo, *own), "--runs", str(parts)]
    first[first.index("--max-steps") + 1] = "4"
    assert main(first) == 0
    assert main(["resume", "last", "--max-steps", "6", "--runs", str(parts)]) == 0
    a, b = (end_of(runs / "0001-code")["tensors"] for runs in (whole, parts))
    assert a == b and any("state1" in name for name in a)
