"""The gpt recipe on a CUDA device: its kernels, its proof after a kill, and what it writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import surefoot
from surefoot import use
from surefoot.config.model import GPTConfig
from surefoot.engine import Request
from surefoot.engine.kit.sample import generate
from surefoot.engine.place import repeatable
from surefoot.nn.dropout import set_keys
from surefoot.nn.gpt import GPT
from surefoot.ops import CROSS_ENTROPY, WITHIN

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

TEXT = Path(__file__).resolve().parents[1] / "fixtures" / "shakespeare.txt"
SMALL = {
    "path": TEXT, "vocab_size": 512, "d_model": 128, "num_layers": 2, "num_heads": 2, "context": 64,
    "batch_size": 16, "max_steps": 24, "warmup_steps": 4, "save_every": 8, "validate_every": 24, "keep.best": 0,
    "sample_every": 0, "compile": "on", "precision": "bf16", "device": "cuda",
    "track.report": False, "track.tensorboard": False,
}  # fmt: skip
KILLED = 13  # the step in which the process dies


@pytest.mark.parametrize("way", ["triton", "chunked"])
def test_the_loss_of_the_plan_takes_less_than_300_mb(way: str) -> None:
    positions, width, words = 192 * 512, 512, 8192
    hidden = torch.randn(positions, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = (0.02 * torch.randn(words, width, device="cuda")).requires_grad_()
    targets = torch.randint(0, words, (positions,), device="cuda")
    call = CROSS_ENTROPY.ways[way].call

    def once(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            found: torch.Tensor = call(hidden, weight, targets)
        found.backward()
        return found.detach()

    once(hidden[:4096].detach().requires_grad_(), targets[:4096])
    weight.grad = None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss = once(hidden, targets)
    more = (torch.cuda.max_memory_allocated() - before) / 1e6
    print(f"{way}: {more:.0f} MB")
    assert more < 300
    exact = sum(
        torch.nn.functional.cross_entropy(h.float() @ weight.T, t, reduction="sum")
        for h, t in zip(hidden.detach().split(8192), targets.split(8192), strict=True)
    )
    assert float(loss) == pytest.approx(float(exact), rel=1e-3)


def test_the_loss_and_its_gradients_are_the_reference() -> None:
    hidden = torch.randn(5000, 96, device="cuda", requires_grad=True)
    weight = torch.randn(9001, 96, device="cuda", requires_grad=True)
    targets = torch.randint(0, 9001, (5000,), device="cuda")
    targets[::7] = -100
    found = {}
    for way in ("reference", "triton"):
        loss = CROSS_ENTROPY.ways[way].call(hidden, weight, targets)
        found[way] = (loss.detach(), *torch.autograd.grad(loss, (hidden, weight)))
    for a, b in zip(found["reference"], found["triton"], strict=True):
        assert float((a - b).abs().max()) <= 2e-3 * float(a.abs().max())


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_flex_attention_sees_what_the_reference_sees(kind: torch.dtype) -> None:
    shape = (3, 256, 4, 64)
    q, k, v = (
        torch.randn(shape, device="cuda", dtype=kind).transpose(1, 2).requires_grad_()
        for _ in range(3)
    )
    documents = (torch.rand(3, 256, device="cuda") < 0.03).cumsum(1)
    found = {}
    for way in ("reference", "flex", "flex again"):
        out = WITHIN.ways[way.partition(" ")[0]].call(q, k, v, documents)
        stream = torch.Generator("cuda").manual_seed(1)
        grad = torch.randn(out.shape, device="cuda", generator=stream).to(out.dtype)
        found[way] = (out.detach(), *torch.autograd.grad(out, (q, k, v), grad))
    near = 2e-2 if kind == torch.bfloat16 else 5e-3  # of the largest; fp32 products may be TF32
    for a, b, again in zip(*found.values(), strict=True):
        assert float((a - b).float().abs().max()) <= near * float(a.float().abs().max())
        assert torch.equal(b, again), "its sums have no order"


def weights(folder: Path) -> bytes:
    last = max(folder.glob("checkpoints/step-*"))
    return (last / "main.model.safetensors").read_bytes()


@pytest.mark.parametrize("masks", [False, True])
def test_a_compiled_run_that_was_killed_goes_on_bit_for_bit(tmp_path: Path, masks: bool) -> None:
    settings = {**SMALL, "document_masks": masks}
    whole = surefoot.train("gpt", runs=tmp_path / "whole", quiet=True, name="one", **settings)
    program = (
        "import os, pathlib, signal, sys, surefoot\n"
        "from surefoot.engine.learner import Learner\n"
        "update = Learner.update\n"
        "saved = pathlib.Path(sys.argv[1]) / 'one/checkpoints/step-000000008/manifest.json'\n"
        "def fatal(learner):\n"
        f"    if learner.step + 1 == {KILLED}:\n"
        "        while not saved.exists(): os.sched_yield()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return update(learner)\n"
        "Learner.update = fatal\n"
        f"surefoot.train('gpt', runs=sys.argv[1], quiet=True, name='one', **{settings!r})\n"
    ).replace("PosixPath(", "str(")
    runs = tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, "-c", program, str(runs)], check=False, capture_output=True, text=True,
        env={**os.environ},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    resumed = surefoot.resume("one", runs=runs, quiet=True)
    assert resumed.proven == KILLED - 1 - 8
    assert weights(resumed.folder) == weights(whole.folder)


@pytest.mark.parametrize("compiled", ["off", "on"])
def test_document_masks_train_in_batches_of_two_sizes(tmp_path: Path, compiled: str) -> None:
    """In a process of its own: an illegal memory access would end this one for all other tests."""
    settings = {
        **SMALL, "document_masks": True, "ops.within": "flex", "compile": compiled, "context": 256,
        "batch_size": 8, "val_batch": 32, "val_ratio": 0.2, "max_steps": 60, "validate_every": 20,
    }  # fmt: skip
    program = (
        "import pathlib, sys, surefoot\n"
        f"surefoot.train('gpt', runs=sys.argv[1], quiet=True, **{settings!r})\n"
    ).replace("PosixPath(", "pathlib.PosixPath(")
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], check=False, capture_output=True, text=True,
        env={**os.environ, "CUDA_LAUNCH_BLOCKING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("border", [None, 0])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_layers_computed_again_give_the_same_bits_in_less_memory(
    kind: torch.dtype, border: int | None
) -> None:
    repeatable(torch.device("cuda"))
    config = GPTConfig(d_model=256, num_layers=8, num_heads=4, context=512, dropout=0.1)
    tokens = torch.randint(0, 512, (8, 512), device="cuda")
    found, most = [], []
    for checkpointing in (False, True):
        model = GPT(config, 512, seed=1, border=border, checkpointing=checkpointing).to("cuda")
        set_keys(model, torch.arange(8, device="cuda"))
        for _ in range(2):  # the first pass takes workspaces
            model.zero_grad()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with torch.autocast("cuda", dtype=kind, enabled=kind != torch.float32):
                loss = model(tokens, tokens.roll(-1, 1))
            loss.backward()
            torch.cuda.synchronize()
        most.append(torch.cuda.max_memory_allocated() - before)
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
        del model
    print(f"{kind}: {most[0] / 1e6:.0f} MB, again: {most[1] / 1e6:.0f} MB")
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert most[1] < 0.6 * most[0]


def test_compiled_layers_are_computed_again_in_less_memory(tmp_path: Path) -> None:
    """The loss goes the same way but for rounding."""
    settings = {**SMALL, "d_model": 256, "num_layers": 8, "context": 256, "micro_batch_size": 16}
    losses, most = [], []
    for again in (False, True):
        torch._dynamo.reset()
        torch.cuda.reset_peak_memory_stats()
        settings |= {"memory.checkpointing": again}
        done = surefoot.train("gpt", runs=tmp_path / str(again), quiet=True, **settings)
        most.append(torch.cuda.max_memory_allocated())
        rows = map(json.loads, (done.folder / "metrics.jsonl").read_text().splitlines())
        losses.append([row["val_loss"] for row in rows if row["kind"] == "eval"][-1])
    print(f"{most[0] / 1e6:.0f} MB, again: {most[1] / 1e6:.0f} MB")
    assert losses[1] == pytest.approx(losses[0], rel=2e-2) and most[1] < most[0]


def test_greedy_tokens_are_those_of_the_whole_forward() -> None:
    config = GPTConfig(d_model=128, num_layers=3, num_heads=4, context=96, tie_embeddings=False)
    model = GPT(config, 512, seed=3).to("cuda").eval()
    prompt = torch.randint(0, 512, (1, 8), device="cuda")
    found = [int(t) for t in generate(model, prompt, 40, temperature=0)]
    text, wanted = prompt, []
    with torch.no_grad():
        for _ in range(40):
            logits = model(text)[0, -1]
            best = int(logits.argmax())
            wanted.append(best)
            text = torch.cat((text, torch.tensor([[best]], device="cuda")), 1)
    assert found == wanted


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_run_writes_on_the_device(tmp_path: Path, dtype: str) -> None:
    settings = {**SMALL, "compile": "off", "max_steps": 8}
    done = surefoot.train("gpt", runs=tmp_path, quiet=True, **settings)
    speaker, step = use.load(done.folder, runs=tmp_path, device="cuda", dtype=dtype)
    request = Request("The", 20, temperature=0.0)
    once, again = ("".join(speaker.reply("main", request)) for _ in range(2))
    assert step == 8 and once == again and once
