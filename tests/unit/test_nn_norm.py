"""RMSNorm and rotation against their formulas, with gradients by differences in fp64."""

from __future__ import annotations

import pytest
import torch

from surefoot.nn.norm import RMSNorm, rotary
from surefoot.ops import ROTARY

rotate = ROTARY.call


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def turned(x, turn):
    """Rotation pair by pair as complex numbers: another way to say the same."""
    half = x.size(-1) // 2
    angle = torch.complex(turn[0, ..., :half].double(), turn[1, ..., half:].double())
    spun = torch.complex(x[..., :half], x[..., half:]) * angle
    return torch.cat((spun.real, spun.imag), -1)


def test_rms_norm_is_its_formula():
    norm = RMSNorm(6, 1e-3).double()
    with torch.no_grad():
        norm.weight.copy_(draw(6, seed=1))
    x = draw(2, 5, 6)
    expected = norm.weight * x / (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt()
    assert torch.allclose(norm(x), expected, rtol=1e-12)


def test_rms_norm_has_the_gradient_of_its_formula():
    norm = RMSNorm(6, 1e-3).double()
    x, weight = draw(2, 5, 6).requires_grad_(), draw(6, seed=1).requires_grad_()

    def call(x, weight):
        return torch.func.functional_call(norm, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(call, (x, weight))


@pytest.mark.parametrize("normed", [False, True])
def test_rotation_is_its_formula(normed):
    turn, x, weight = rotary(8, 12, 100.0), draw(2, 12, 3, 8), draw(3, 8, seed=1)
    before = x / (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * weight if normed else x
    found = rotate(x, turn, weight, 1e-3) if normed else rotate(x, turn)
    assert torch.allclose(found, turned(before, turn), rtol=1e-12)


@pytest.mark.parametrize("normed", [False, True])
def test_rotation_has_the_gradient_of_its_formula(normed):
    turn = rotary(8, 5, 100.0).double()
    x, weight = draw(2, 5, 3, 8).requires_grad_(), draw(3, 8, seed=1).requires_grad_()
    if normed:
        assert torch.autograd.gradcheck(lambda x, w: rotate(x, turn, w, 1e-3), (x, weight))
    else:
        assert torch.autograd.gradcheck(lambda x: rotate(x, turn), (x,))


def test_rotation_keeps_lengths_and_depends_on_distance_alone():
    turn = rotary(16, 40, 10000.0).double()
    q, k = draw(1, 1, 1, 16).expand(1, 40, 1, 16), draw(1, 1, 1, 16, seed=1).expand(1, 40, 1, 16)
    a, b = rotate(q, turn), rotate(k, turn)
    assert torch.allclose(a.norm(dim=-1), q.norm(dim=-1), rtol=1e-6)
    near = [(a[0, i + 7, 0] @ b[0, i, 0]).item() for i in (0, 11, 30)]
    assert near == pytest.approx([near[0]] * 3, rel=1e-4)
    assert torch.equal(a[:, 0], q[:, 0]), "the first token is not turned"


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_narrow_numbers_are_computed_in_fp32(kind):
    x = draw(4, 64).to(kind)
    norm = RMSNorm(64, 1e-5)
    out = norm(x)
    assert out.dtype == kind
    assert torch.equal(out, norm(x.float()).to(kind))
    heads = draw(1, 4, 2, 8).to(kind).requires_grad_()
    turn = rotary(8, 4, 100.0)
    rotate(heads, turn).sum().backward()
    assert heads.grad.dtype == kind
