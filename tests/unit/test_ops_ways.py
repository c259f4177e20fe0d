"""Each way of an operation against its reference, values and gradients, within its tolerance."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from surefoot.errors import ConfigError, Unsupported
from surefoot.ops import ATTENTION, CROSS_ENTROPY, OPS, WITHIN, Op, Way, within
from surefoot.ops.compiled import by_shape


def here(op):
    """The ways that run on this processor without seconds of compiling."""
    return [name for name in op.available("cpu") if not op.ways[name].slow_start]


SHAPES = [(2, 4, 4, 9, 8), (3, 4, 2, 16, 8), (2, 6, 1, 33, 4), (1, 2, 2, 1, 8)]


def attention_inputs(examples, heads, kv_heads, length, width):
    """q, k, v as a fused projection gives them: strided views of [B, T, heads, D]."""
    stream = torch.Generator().manual_seed(length)
    whole = torch.randn(examples, length, heads + 2 * kv_heads, width, generator=stream)
    whole.requires_grad_()
    return whole, [x.transpose(1, 2) for x in whole.split([heads, kv_heads, kv_heads], 2)]


def close(found, expected, tolerance):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    worst = (found - expected).abs().max()
    assert worst <= tolerance * expected.abs().max(), f"off by {worst:.2e}"


@pytest.mark.parametrize("way", [w for w in here(ATTENTION) if w != "reference"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_is_the_reference(way, shape):
    results = []
    for name in ("reference", way):
        whole, (q, k, v) = attention_inputs(*shape)
        out = ATTENTION.pick(name, "cpu")(q, k, v)
        (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
        results.append((out.detach(), whole.grad))
    tolerance = ATTENTION.ways[way].tolerance
    close(results[1][0], results[0][0], tolerance)
    close(results[1][1], results[0][1], tolerance)


@pytest.mark.parametrize("way", here(ATTENTION))
def test_attention_of_the_last_token_sees_the_whole_past(way):
    _, (q, k, v) = attention_inputs(2, 4, 2, 12, 8)
    attend = ATTENTION.pick(way, "cpu")
    with torch.no_grad():
        close(attend(q[:, :, -1:], k, v), attend(q, k, v)[:, :, -1:], 1e-5)


@pytest.mark.parametrize("way", here(ATTENTION))
def test_attention_keeps_the_type_of_the_values_under_autocast(way):
    whole, _ = attention_inputs(2, 4, 2, 12, 8)
    q, k, v = whole[:, :, :4], whole[:, :, 4:6], whole[:, :, 6:].bfloat16()
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    exact = ATTENTION.pick("reference", "cpu")(q, k, v.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ATTENTION.pick(way, "cpu")(q, k, v)
    assert out.dtype == torch.bfloat16
    assert (out.float() - exact).abs().max() < 0.03 * exact.abs().max()
    out.float().sum().backward()
    assert whole.grad.isfinite().all()


@pytest.mark.parametrize("positions", [1, 256, 700])
@pytest.mark.parametrize("way", [w for w in here(CROSS_ENTROPY) if w != "reference"])
def test_cross_entropy_is_the_reference(way, positions):
    results = []
    for name in ("reference", way):
        stream = torch.Generator().manual_seed(positions)
        hidden = torch.randn(positions, 12, generator=stream).requires_grad_()
        weight = torch.randn(31, 12, generator=stream).requires_grad_()
        targets = torch.randint(0, 31, (positions,), generator=stream)
        targets[1::5] = -100
        loss = CROSS_ENTROPY.pick(name, "cpu")(hidden, weight, targets)
        (loss * 0.25).backward()
        results.append((loss.detach(), hidden.grad, weight.grad))
    for found, expected in zip(results[1], results[0], strict=True):
        close(found, expected, CROSS_ENTROPY.ways[way].tolerance)


@pytest.mark.parametrize("way", here(CROSS_ENTROPY))
def test_cross_entropy_is_fp32_under_autocast(way):
    stream = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(300, 12, generator=stream), torch.randn(31, 12, generator=stream)
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    targets = torch.randint(0, 31, (300,), generator=stream)
    exact = CROSS_ENTROPY.pick("reference", "cpu")(hidden, weight, targets).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = CROSS_ENTROPY.pick(way, "cpu")(hidden, weight, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=1e-2)
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32


def test_all_targets_ignored_give_zero_and_no_gradient():
    for way in here(CROSS_ENTROPY):
        hidden = torch.ones(5, 3, requires_grad=True)
        targets = torch.full((5,), -100)
        loss = CROSS_ENTROPY.pick(way, "cpu")(hidden, torch.ones(4, 3), targets)
        loss.backward()
        assert loss.item() == 0 and not hidden.grad.any()


def test_the_first_way_is_the_exact_reference():
    for op in OPS.values():
        assert next(iter(op.ways)) == "reference"
        assert op.ways["reference"].tolerance == 0
        assert op.available("cpu")[0] == "reference"


def test_a_way_that_cannot_run_is_refused_with_its_reason():
    needs = Way(abs, 0.1, devices=("cuda",))
    op = Op("twist", {"reference": Way(abs, 0.0), "fast": needs})
    assert op.available("cpu") == ["reference"]
    assert op.available("cuda:0") == ["reference", "fast"]
    assert op.pick("reference", "cpu") is abs
    with pytest.raises(Unsupported, match="it is for cuda, not for cpu") as caught:
        op.pick("fast", "cpu")
    assert caught.value.where == "ops.twist" and caught.value.fix == "use twist=reference"
    with pytest.raises(ConfigError, match="no way called quick"):
        op.pick("quick", "cpu")


@pytest.mark.filterwarnings("ignore")  # of torch, that it is slow so
def test_attention_in_blocks_does_not_call_itself_where_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(within, "_made", {})
    q, k, v = torch.randn(3, 1, 2, 16, 8).unbind()
    documents = torch.tensor([[0] * 5 + [1] * 11])
    found = WITHIN.ways["flex"].call(q, k, v, documents)
    close(found, WITHIN.ways["reference"].call(q, k, v, documents), 1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's parts, about each other
def test_code_is_made_for_each_shape_and_never_given_up(monkeypatch):
    shapes = []

    def maker(graph, inputs):
        shapes.append(tuple(inputs[0].shape))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=maker))
    twice = by_shape(lambda x: x * 2)
    for length in (*range(2, 14), 5):
        assert twice(torch.ones(length)).sum() == 2 * length
    assert shapes == [(length,) for length in range(2, 14)], "torch's own limit is 8"
