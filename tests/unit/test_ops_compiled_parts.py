"""What torch's compiler is given instead of torch's own: the same values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from surefoot.nn.init import Linear
from surefoot.ops import (
    ATTENTION,
    CROSS_ENTROPY,
    NORM,
    ROTARY,
    SQUARED_RELU,
    SWIGLU,
    Op,
    attention_tiles,
    cross_entropy,
)
from surefoot.ops.gelu import gelu
from surefoot.ops.way import differentiated

CPU = torch.device("cpu")
COMPILED = [ATTENTION, CROSS_ENTROPY, NORM, ROTARY, SQUARED_RELU, SWIGLU]
# torch's parts warn about each other.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def of(
    call: Callable[..., Tensor], *arguments: Tensor, compiled: bool = False
) -> tuple[Tensor, ...]:
    """Return the result and the gradients of a fixed sum of it."""
    inputs = [x.clone().requires_grad_() for x in arguments]
    made = torch.compile(call, backend="aot_eager", fullgraph=True) if compiled else call
    found = made(*inputs)
    weights = (
        torch.linspace(-1, 1, found.numel()).bfloat16().view(found.shape)
    )  # exact in all types
    return found.detach(), *torch.autograd.grad(found, inputs, weights.to(found.dtype))


def test_gelu_and_its_slope_are_exact() -> None:
    x = torch.linspace(-9, 9, 4001)
    for mine, theirs in zip(of(gelu, x, compiled=True), of(F.gelu, x.double()), strict=True):
        assert (mine.double() - theirs).abs().max() < 1e-6
    assert torch.equal(of(gelu, x)[0], F.gelu(x)), "without the compiler it is torch's own"


def test_gelu_in_bf16_is_the_exact_one_rounded() -> None:
    x = torch.linspace(-9, 9, 4001).bfloat16()
    value, by_x = of(gelu, x, compiled=True)
    exact, slope = of(F.gelu, x.double())
    assert value.dtype == by_x.dtype == torch.bfloat16
    assert torch.allclose(value.double(), exact, rtol=2**-8, atol=1e-6)
    assert torch.allclose(by_x.double(), slope, rtol=2**-7, atol=1e-6)


# With and without sums of some rows at a time; none, and one vector.
@pytest.mark.parametrize("shape", [(32, 1, 8), (35, 8), (2, 0, 8), (8,)], ids=str)
def test_a_layer_with_a_bias_is_torchs(shape: tuple[int, ...]) -> None:
    stream = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*size, generator=stream) for size in (shape, (6, 8), (6,)))
    layer = Linear(8, 6)

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    for mine, theirs in zip(
        of(call, x, weight, bias, compiled=True), of(F.linear, x, weight, bias), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_bias_is_rounded_once() -> None:
    """The sum is, in the type of the product; the bias itself is not."""
    layer = Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(256.0)
        layer.bias.fill_(1.0 + 2**-9)  # in bf16 itself it would be 1, and the sum a tie
    made = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(torch.ones(1, 1))
    assert found.dtype == torch.bfloat16
    assert found.item() == 258.0


def compiled_as_plain(op: Op, device: torch.device) -> None:
    """Compare values and gradients of all ways in fp32, compiled and not."""
    assert op.draw is not None
    case = [
        x.detach().float().to(device).requires_grad_(x.requires_grad)
        if isinstance(x, Tensor) and x.is_floating_point()
        else x.to(device)
        if isinstance(x, Tensor)
        else torch.float32
        if isinstance(x, torch.dtype)
        else x
        for x in op.draw(torch.Generator().manual_seed(2), False)
    ]
    ways = [way for way in op.ways.values() if not (way.slow_start or way.why_not(device))]
    assert len(ways) > 1
    for way in ways:
        made = torch.compile(way.call, backend="aot_eager", dynamic=False)
        for mine, theirs in zip(differentiated(made, case), differentiated(way.call, case)):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("traced", ["as here", "as for a card"])
@pytest.mark.parametrize("op", COMPILED, ids=lambda op: op.name)
def test_no_way_loses_its_gradient_in_the_compiler(
    op: Op, traced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if traced == "as for a card":  # where nothing is one operation to the compiler
        for room in (attention_tiles, cross_entropy):
            monkeypatch.setattr(room, "compiling_for_cpu", lambda x: False)
    torch._dynamo.reset()
    compiled_as_plain(op, CPU)


def test_losses_of_one_chunk_and_of_several_share_their_code() -> None:
    made = CompileCounterWithBackend("aot_eager")
    call = torch.compile(CROSS_ENTROPY.ways["chunked"].call, backend=made, dynamic=True)
    weight = torch.ones(5, 4, requires_grad=True)
    for count in (9, 3000):
        call(torch.ones(count, 4, requires_grad=True), weight, torch.zeros(count).long()).backward()
    assert made.frame_count == 1
