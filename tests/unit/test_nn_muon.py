"""Batched Muon is torch's Muon, and groups and clipping are what they say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from surefoot.config.model import GPTConfig
from surefoot.config.schema import Optim
from surefoot.nn.gpt import GPT
from surefoot.nn.muon import Muon
from surefoot.nn.optim import build_optimisers, clip_, optimiser_groups
from surefoot.nn.optimiser import AdamW
from surefoot.ops import ORTHOGONALISE
from surefoot.ops.orthogonalise import QUINTIC

SHAPES = [(32, 32), (64, 32), (32, 64), (32, 32), (96, 48)]


def matrices(shapes=SHAPES):
    stream = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=stream) / 8) for shape in shapes]


def test_it_is_torchs_muon():
    mine, theirs = matrices(), matrices()
    settings = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
    ours, torchs = Muon(mine, **settings), torch.optim.Muon(theirs, **settings)
    stream = torch.Generator().manual_seed(1)
    for _ in range(6):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=stream)
            b.grad = a.grad.clone()
        ours.step()
        torchs.step()
    for start, a, b in zip(matrices(), mine, theirs, strict=True):
        difference = (a - b).norm() / (b - start).norm()
        assert difference < 0.05, "the same but for the rounding of bf16 products"
        buffers = ours.state[a]["momentum_buffer"], torchs.state[b]["momentum_buffer"]
        assert torch.equal(*buffers)


def test_fused_matrices_are_made_orthogonal_one_by_one():
    heights = [16, 8, 8]
    whole = matrices([(32, 24)])[0]
    parts = [nn.Parameter(p.detach().clone()) for p in whole.split(heights)]
    whole.grad = torch.randn(32, 24, generator=torch.Generator().manual_seed(2))
    for part, grad in zip(parts, whole.grad.split(heights), strict=True):
        part.grad = grad.clone()
    Muon([whole], lr=0.1, rows={id(whole): heights}).step()
    Muon(parts, lr=0.1).step()
    assert torch.allclose(whole, torch.cat([p.detach() for p in parts]), atol=2e-3)


def test_products_in_bf16_are_close_to_exact_ones():
    x = torch.randn(1, 64, 96, generator=torch.Generator().manual_seed(0))
    found, exact = ORTHOGONALISE.call([x[0]]).double(), x.double() / x.norm()
    a, b, c = QUINTIC
    for _ in range(5):
        gram = exact @ exact.mT
        exact = a * exact + (b * gram + c * gram @ gram) @ exact
    assert (found - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 24, 40), (2, 40, 24)])
def test_singular_values_go_towards_one(shape):
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(ORTHOGONALISE.call(list(stack)).float())
    assert values.max() < 1.4 and values.quantile(0.2) > 0.5
    assert ORTHOGONALISE.call(list(stack)).shape == shape


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="AdamW"):
        Muon([nn.Parameter(torch.ones(3))])


def model(**changes):
    return GPT(GPTConfig(d_model=16, num_layers=2, num_heads=2, context=8, **changes), 11)


@pytest.mark.parametrize("layout", ["modern", "gpt2"])
@pytest.mark.parametrize("tie", [True, False])
def test_every_parameter_is_in_exactly_one_group(layout, tie):
    gpt = model(layout=layout, tie_embeddings=tie)
    groups = optimiser_groups(gpt)
    names = {id(p): n for n, p in gpt.named_parameters()}
    hidden, tables, vectors = ({names[id(p)] for p in group} for group in groups)
    assert sum(map(len, groups)) == len(names)
    assert hidden == {
        n for n in names.values() if "blocks" in n and gpt.get_parameter(n).dim() == 2
    }
    assert tables == {"embed.weight"} | ({"positions.weight"} if layout == "gpt2" else set()) | (
        set() if tie else {"head.weight"}
    )
    assert all(gpt.get_parameter(n).dim() == 1 for n in vectors)


def test_frozen_parameters_are_left_out():
    gpt = model()
    gpt.embed.weight.requires_grad_(False)
    assert all(p is not gpt.embed.weight for group in optimiser_groups(gpt) for p in group)


def test_settings_reach_the_optimisers():
    optim = Optim(kind="muon", lr=0.004, muon_lr=0.03, momentum=0.8, beta1=0.7, beta2=0.8,
                  eps=1e-6, weight_decay=0.2)  # fmt: skip
    muon, adamw = build_optimisers(model(), optim)
    assert isinstance(muon, Muon) and isinstance(adamw, AdamW)
    hidden = muon.param_groups[0]
    assert (hidden["peak"], hidden["momentum"], hidden["weight_decay"]) == (0.03, 0.8, 0.2)
    decayed, plain = adamw.param_groups
    assert decayed["peak"] == plain["peak"] == 0.004
    assert (decayed["betas"], decayed["eps"]) == ((0.7, 0.8), 1e-6)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.2, 0.0)
    assert all(p.dim() == 1 for p in plain["params"])
    (alone,) = build_optimisers(model(), optim.model_copy(update={"kind": "adamw"}))
    assert isinstance(alone, AdamW)
    assert sum(len(g["params"]) for g in alone.param_groups) == len(list(model().parameters()))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_small_model_learns_a_line_by_heart(kind):
    gpt = model()
    optimisers = build_optimisers(gpt, Optim(kind=kind, lr=0.01))
    x = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    y = x.roll(-1, 1)
    for _ in range(60):
        loss = gpt(x, y)
        loss.backward()
        clip_(gpt.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        gpt.zero_grad()
    assert loss.item() / 8 < 0.1


def gradients(scale=1.0):
    parameters = matrices([(3, 4), (5,)])
    for p in parameters:
        p.grad = scale * torch.arange(1.0, 1 + p.numel()).view(p.shape)
    return parameters


def test_clipping_is_torchs():
    ours, theirs = gradients(), gradients()
    norm = clip_(ours, 2.0)
    assert norm == pytest.approx(torch.nn.utils.clip_grad_norm_(theirs, 2.0).item())
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-5)


def test_small_gradients_and_a_limit_of_zero_change_nothing():
    for limit in (0.0, 1e9):
        parameters = gradients()
        clip_(parameters, limit)
        for a, b in zip(parameters, gradients(), strict=True):
            assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(bad):
    parameters = gradients()
    parameters[0].grad[1, 1] = bad
    assert not torch.tensor(clip_(parameters, 1.0)).isfinite()


def test_parameters_without_gradients_have_norm_zero():
    assert clip_(matrices(), 1.0) == 0.0
