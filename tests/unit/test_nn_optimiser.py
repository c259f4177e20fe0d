"""Our optimisers against torch's: the same bits where the kernel is the same."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from surefoot.nn.optimiser import AdamW

SHAPES = [(24, 40), (40,), (3, 1)]


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def test_adamw_is_torchs_fused_adamw_bit_for_bit() -> None:
    mine, theirs = parameters(), parameters()
    settings = {"lr": 0.01, "betas": (0.8, 0.97), "eps": 1e-7, "weight_decay": 0.1}
    ours = AdamW([{"params": mine[:1]}, {"params": mine[1:], "weight_decay": 0.0}], **settings)
    peers = [{"params": theirs[:1]}, {"params": theirs[1:], "weight_decay": 0.0}]
    torchs = torch.optim.AdamW(peers, fused=True, **settings)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    for step in range(8):
        for group in (*ours.param_groups, *torchs.param_groups):
            group["lr"] = 0.01 / (step + 1)
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        ours.step()
        torchs.step()
    for a, b in zip(mine, theirs, strict=True):
        assert torch.equal(a, b)
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(ours.state[a][key], torchs.state[b][key])


def test_a_parameter_without_gradient_is_left_alone() -> None:
    first, second = parameters()[:2]
    before = second.detach().clone()
    optimiser = AdamW([first, second])
    first.grad = torch.ones_like(first)
    optimiser.step()
    assert torch.equal(second, before)
    assert second not in optimiser.state


def test_building_optimisers_does_not_import_the_compiler() -> None:
    code = (
        "import sys\n"
        "from surefoot.config.model import GPTConfig\n"
        "from surefoot.config.schema import Optim\n"
        "from surefoot.nn.gpt import GPT\n"
        "from surefoot.nn.optim import build_optimisers\n"
        "import torch\n"
        "model = GPT(GPTConfig(d_model=16, num_layers=1, num_heads=2), 7)\n"
        "tokens = torch.zeros(1, 4, dtype=torch.int64)\n"
        "for kind in ('adamw', 'muon'):\n"
        "    found = build_optimisers(model, Optim(kind=kind))\n"
        "    model(tokens, tokens).backward()\n"
        "    [optimiser.step() for optimiser in found]\n"
        "    print(kind, 'torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["adamw False", "muon False"]
