"""SwiGLU against its formula, with gradients by differences in fp64."""

from __future__ import annotations

import pytest
import torch

from surefoot.nn.gate import swiglu


def test_it_is_its_formula_with_its_gradient():
    x = torch.randn(2, 3, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gate, up = x[..., :5], x[..., 5:]
    assert torch.allclose(swiglu(x), gate * gate.sigmoid() * up, rtol=1e-12)
    assert torch.autograd.gradcheck(swiglu, (x.requires_grad_(),))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_type_and_shape_are_kept(kind):
    x = torch.ones(2, 8, dtype=kind, requires_grad=True)
    out = swiglu(x)
    out.sum().backward()
    assert out.shape == (2, 4) and out.dtype == x.grad.dtype == kind
