"""Weights under other names, and what their shapes tell."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from surefoot.config.model import GPTConfig
from surefoot.errors import DataError
from surefoot.nn.foreign import gpt_sizes, gpt_weights
from surefoot.nn.gpt import GPT

SMALL = {"d_model": 32, "num_layers": 2, "num_heads": 4, "context": 16}
GPT2 = GPTConfig(layout="gpt2", **SMALL)
THEIRS = {
    "embed": "wte", "positions": "wpe", "norm": "ln_f", "head": "lm_head", "blocks": "h",
    "norm1": "ln_1", "norm2": "ln_2", "qkv": "c_attn", "out": "c_proj", "up": "c_fc",
    "down": "c_proj",
}  # fmt: skip


def saved(model: GPT, prefix: str = "transformer.") -> dict[str, Tensor]:
    """The weights as nanoGPT names them, with the shared head and a mask."""
    tensors = {n: p.detach().clone() for n, p in model.named_parameters()}
    found = {}
    for name, tensor in tensors.items():
        found[prefix + ".".join(THEIRS.get(part, part) for part in name.split("."))] = tensor
    found["lm_head.weight"] = found[f"{prefix}wte.weight"]
    found[f"{prefix}h.0.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
    return found


def published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with the matrices of all blocks transposed."""
    return {n: t.T if re.search(r"c_\w+\.weight", n) else t for n, t in tensors.items()}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("prefix", ["", "transformer.", "_orig_mod.transformer."])
def test_gpt2_names_become_ours(prefix: str, turned: bool) -> None:
    model = GPT(GPT2, 50, seed=3)
    tensors = saved(model, prefix)
    found, notes = gpt_weights(published(tensors) if turned else tensors)
    assert "names of GPT-2" in notes and len(notes) == 1 + turned
    sizes, left = gpt_sizes(found, {"model_args": {"n_head": 4}})
    assert not left and GPTConfig(**sizes) == GPT2.model_copy(update={"d_ff": 128})
    again = GPT(GPTConfig(**sizes), 50)
    again.load_state_dict(found, strict=False)
    tokens = torch.arange(12)[None]
    assert torch.equal(again(tokens), model(tokens))


def test_biases_that_are_not_there_are_zeros() -> None:
    tensors = {n: t for n, t in saved(GPT(GPT2, 50)).items() if not n.endswith(".bias")}
    found, notes = gpt_weights(tensors)
    assert "13 biases that the file does without begin as zeros" in notes
    assert set(found) == {n for n, _ in GPT(GPT2, 50).named_parameters()}
    assert not found["blocks.1.attn.qkv.bias"].any()


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({}, {"context"}),
        ({"num_kv_heads": 2, "tie_embeddings": False}, {"context"}),
        ({"qk_norm": False}, {"context", "num_heads"}),
        ({"qk_norm": False, "num_kv_heads": 1}, {"context", "num_heads", "num_kv_heads"}),
        ({"layout": "gpt2", "d_ff": 40}, {"num_heads"}),
    ],
)
def test_shapes_tell_all_but_what_is_named(changes: dict[str, Any], left: set[str]) -> None:
    config = GPTConfig(**SMALL | changes)
    tensors = dict(GPT(config, 50).named_parameters())
    sizes, open_ = gpt_sizes(gpt_weights(tensors)[0], {})
    assert set(open_) == left
    given = {field: getattr(config, field) for field in left}
    again = GPT(GPTConfig(**sizes, **given), 50)
    assert {n: p.shape for n, p in again.named_parameters()} == {
        n: p.shape for n, p in tensors.items()
    }


def test_something_else_is_named_as_such() -> None:
    with pytest.raises(DataError, match=r"embed.weight is missing; did you mean embd.weight\?"):
        gpt_sizes({"embd.weight": torch.zeros(4, 4)}, {})
    with pytest.raises(DataError, match="the file has a, b, "):
        gpt_sizes({"a": torch.zeros(1), "b": torch.zeros(2)}, {})
