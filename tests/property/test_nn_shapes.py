"""Shapes and invariances that hold for every size, not only for those we use."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.config.model import GPTConfig
from surefoot.engine.random import example_keys
from surefoot.nn.dropout import set_keys
from surefoot.nn.gpt import GPT
from surefoot.ops import ATTENTION, CROSS_ENTROPY


@st.composite
def configs(draw):
    heads = draw(st.sampled_from([1, 2, 3, 4]))
    layout = draw(st.sampled_from(["modern", "gpt2"]))
    kv_heads = draw(st.sampled_from([k for k in range(1, heads + 1) if heads % k == 0]))
    return GPTConfig(
        layout=layout,
        d_model=heads * draw(st.sampled_from([2, 4, 8])),
        num_layers=draw(st.integers(1, 3)),
        num_heads=heads,
        num_kv_heads=None if layout == "gpt2" else kv_heads,
        d_ff=draw(st.none() | st.integers(1, 20)),
        context=draw(st.integers(1, 9)),
        dropout=draw(st.sampled_from([0.0, 0.3])),
        qk_norm=draw(st.booleans()),
        tie_embeddings=draw(st.booleans()),
    )


@settings(max_examples=40, deadline=None)
@given(configs(), st.integers(1, 3), st.integers(1, 12), st.data())
def test_a_gpt_of_any_size_trains(config, batch, vocab, data):
    model = GPT(config, vocab, seed=1).train()
    length = data.draw(st.integers(1, config.context))
    tokens = torch.randint(0, vocab, (batch, length))
    set_keys(model, example_keys(0, 0, 0, batch))
    loss = model(tokens, tokens)
    loss.backward()
    assert loss.shape == () and loss.dtype == torch.float32 and loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    model.eval()
    with torch.no_grad():
        logits = model(tokens)
        assert logits.shape == (batch, length, vocab)
        one = model(tokens[:1])
    assert torch.allclose(logits[:1], one, atol=1e-5), "examples do not see each other"
    assert model.num_parameters == sum(p.numel() for p in model.parameters())
    assert model.flops_per_token() > 0


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["sdpa", "sdpa_fp32", "matmul", "tiles"]),
    st.integers(1, 3), st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3)]), st.integers(1, 40),
    st.sampled_from([1, 2, 5, 16]), st.integers(0, 99),
)  # fmt: skip
def test_attention_is_the_reference_at_any_size(way, batch, heads, length, width, seed):
    stream = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, heads[0], length, width, generator=stream)
    k, v = (torch.randn(batch, heads[1], length, width, generator=stream) for _ in range(2))
    expected = ATTENTION.ways["reference"].call(q, k, v)
    found = ATTENTION.ways[way].call(q, k, v)
    assert found.shape == expected.shape == q.shape
    bound = ATTENTION.ways[way].tolerance * expected.abs().max()
    assert (found - expected).abs().max() <= max(bound, 1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 600), st.integers(1, 9), st.integers(1, 40), st.integers(0, 99))
def test_losses_add_up_over_any_split(positions, width, vocab, seed):
    stream = torch.Generator().manual_seed(seed)
    hidden = torch.randn(positions, width, generator=stream)
    weight = torch.randn(vocab, width, generator=stream)
    targets = torch.randint(0, vocab, (positions,), generator=stream)
    targets[torch.rand(positions, generator=stream) < 0.2] = -100
    for way in map(CROSS_ENTROPY.ways.get, ("reference", "chunked")):
        whole = way.call(hidden, weight, targets)
        cut = positions // 3
        parts = [way.call(hidden[s], weight, targets[s]) for s in (slice(cut), slice(cut, None))]
        assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-5, abs=1e-4)
