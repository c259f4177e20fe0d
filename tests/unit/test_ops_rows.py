"""Rows of a table: the gradient that torch's compiler sees as one operation is the usual one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from surefoot.ops.rows import rows


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("compiled", [False, True])
def test_rows_and_their_gradient_are_those_of_an_embedding(compiled: bool) -> None:
    stream = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 8, generator=stream, requires_grad=True)
    tokens = torch.randint(0, 5, (4, 16), generator=stream)  # each word many times

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return rows(weight, tokens).tanh().square().sum()

    call = torch.compile(loss, backend="aot_eager", fullgraph=True) if compiled else loss
    (found,) = torch.autograd.grad(call(weight), weight)
    (wanted,) = torch.autograd.grad(F.embedding(tokens, weight).tanh().square().sum(), weight)
    assert torch.equal(found, wanted)
    assert torch.equal(rows(weight, tokens), weight[tokens])


def test_the_gradient_is_known_without_contents() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        weight = torch.empty(50, 8, requires_grad=True)
        found = rows(weight, torch.zeros(2, 3, dtype=torch.long))
        (gradient,) = torch.autograd.grad(found.sum(), weight)
    assert found.shape == (2, 3, 8)
    assert gradient.shape == weight.shape
