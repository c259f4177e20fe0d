"""Compiled models compute what eager ones do, dropout masks included."""

from __future__ import annotations

import warnings

import pytest
import torch

from surefoot.config.model import GPTConfig
from surefoot.engine.random import example_keys
from surefoot.nn.dropout import set_keys
from surefoot.nn.gpt import GPT
from surefoot.ops import ATTENTION, CROSS_ENTROPY, attention_tiles

pytestmark = pytest.mark.slow  # compiling takes tens of seconds


@pytest.mark.parametrize("way", ["sdpa", "matmul", "tiles"])
@pytest.mark.parametrize("layout", ["modern", "gpt2"])
def test_a_compiled_model_is_the_eager_one(layout, way, monkeypatch):
    monkeypatch.setattr(attention_tiles, "TILE", 6)
    config = GPTConfig(
        layout=layout, d_model=32, num_layers=1, num_heads=2, context=16, dropout=0.2
    )
    eager, compiled = (GPT(config, 31, seed=1) for _ in range(2))
    for model in (eager, compiled):
        model.blocks[0].attn.attend = ATTENTION.pick(way, "cpu")
        model.cross_entropy = CROSS_ENTROPY.pick(
            "chunked" if way == "tiles" else "reference", "cpu"
        )
    tokens = torch.randint(0, 31, (4, 16), generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's compiler warns about its own parts
        compiled.compile(fullgraph=True)
        for step in range(2):
            for model in (eager, compiled):
                set_keys(model, example_keys(1, step, 0, 4))
                model.zero_grad()
                loss = model(tokens, tokens)
                loss.backward()
                model.last = loss.item()
            assert compiled.last == pytest.approx(eager.last, rel=1e-5)
    assert set(dict(compiled.named_parameters())) == set(dict(eager.named_parameters()))
    for (name, a), b in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        assert (a.grad - b.grad).abs().max() <= 1e-4 * a.grad.abs().max(), name


@pytest.mark.parametrize("layout", ["modern", "gpt2"])
def test_compiled_layers_are_computed_again_too(layout):
    """Of a layer its input is kept, and gradients are those of a model that keeps all, but for rounding."""
    kept, grads = [], []
    for checkpointing in (False, True):
        config = GPTConfig(layout=layout, d_model=32, num_layers=4, num_heads=2, context=64)
        model = GPT(config, 31, seed=1, checkpointing=checkpointing)
        owned, sizes = {p.data_ptr() for p in model.parameters()}, {}

        def pack(tensor, owned=owned, sizes=sizes):
            if tensor.data_ptr() not in owned:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        tokens = torch.randint(0, 31, (4, 64), generator=torch.Generator().manual_seed(0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.compile(fullgraph=True)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                loss = model(tokens, tokens)
            loss.backward()
        kept.append(sum(sizes.values()))
        grads.append([p.grad for p in model.parameters()])
    assert kept[1] < 0.3 * kept[0]
    for a, b in zip(*grads, strict=True):
        assert (a - b).abs().max() <= 1e-4 * a.abs().max()
