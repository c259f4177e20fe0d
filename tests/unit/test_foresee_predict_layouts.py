"""Tuning of public layouts: a step played without contents needs to the byte what a real one does.

The real side has random weights, in 4 bits by bitsandbytes itself; its layers open their weights for
each product as they do on a card, where it can be seen.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surefoot import recipes
from surefoot.config.fields import changed
from surefoot.config.schema import RunConfig
from surefoot.data.packed import Blank
from surefoot.engine import Job, Learner, Loss, World
from surefoot.engine.auto.fit import Pins
from surefoot.engine.foresee.predict import predict
from surefoot.nn import lean
from surefoot.nn.adapters import (
    Lora,
    Pretrained,
    adapt,
    adapter_groups,
    guard_four_bit,
    recompute_layers,
)
from surefoot.nn.optimiser import AdamW
from surefoot.nn.pretend import hollow, pretending

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
bitsandbytes = pytest.importorskip("bitsandbytes")

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "vocab_size": 320, "max_position_embeddings": 128,
}  # fmt: skip
LAYOUTS = {
    "llama": partial(transformers.LlamaConfig, num_key_value_heads=2, **SIZES),
    "qwen3": partial(
        transformers.Qwen3Config,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        **SIZES,
    ),
    "phi": partial(transformers.PhiConfig, **SIZES),
}
CASES = [  # layout, bits and constants, layers computed again, loss, examples at once
    ("llama", "lora", True, "chunked", 2), ("llama", "lora", False, "reference", 1),
    ("llama", "qlora", True, "chunked", 1), ("llama", "qlora", False, "reference", 2),
    ("llama", "qlora+double", True, "reference", 2), ("qwen3", "lora", True, "reference", 1),
    ("qwen3", "lora", False, "chunked", 2), ("qwen3", "qlora", True, "reference", 2),
    ("qwen3", "qlora+double", False, "chunked", 1), ("qwen3", "qlora+double", True, "chunked", 2),
    ("phi", "lora", True, "chunked", 1), ("phi", "lora", False, "reference", 2),
    ("phi", "qlora", True, "chunked", 2), ("phi", "qlora+double", True, "reference", 1),
    ("phi", "qlora+double", False, "reference", 1),
]  # fmt: skip
TOKENS = 48
LONG = [("llama", "lora"), ("qwen3", "qlora+double"), ("phi", "qlora")]


class Opened(torch.autograd.Function):
    """A product with weights of 4 bits that are made numbers before it, and again for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        with torch.autocast("cpu", enabled=False):
            return nn.functional.linear(x, opened(layer), layer.bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None
        return grad @ opened(ctx.layer).to(grad.dtype), None


def opened(layer: Any) -> Tensor:
    found: Tensor = bitsandbytes.functional.dequantize_4bit(
        layer.weight.data, layer.weight.quant_state
    )
    return found


def real_model(layout: str, bits: str) -> nn.Module:
    model: Any = transformers.AutoModelForCausalLM.from_config(
        LAYOUTS[layout](), dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    if bits == "lora":
        return model
    head = model.get_output_embeddings()
    for name, linear in list(model.named_modules()):
        if type(linear) is nn.Linear and linear is not head:
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], four_bits(linear, bits))
    model.is_loaded_in_4bit = True
    guard_four_bit(model)
    bitsandbytes.functional.name2qmap.clear()  # a table of the library's, held for the process
    return model


def four_bits(linear: nn.Linear, bits: str) -> nn.Module:
    layer: Any = bitsandbytes.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16,
        compress_statistics=bits == "qlora+double", quant_type="nf4",
    )  # fmt: skip
    layer.weight = bitsandbytes.nn.Params4bit(
        linear.weight.data, requires_grad=False, quant_type="nf4",
        compress_statistics=bits == "qlora+double",
    )  # fmt: skip
    layer.bias = linear.bias
    layer.to("cpu")
    layer.weight = layer.weight.to("cpu")
    layer.forward = lambda x: Opened.apply(x.to(torch.bfloat16), layer).to(x.dtype)
    return layer  # type: ignore[no-any-return]


def recipe_of(
    layout: str, bits: str, again: bool, long: bool = False, dora: bool = False
) -> recipes.Recipe:
    def build(config: RunConfig, world: World) -> Job:
        if pretending():
            base: Any = hollow(
                LAYOUTS[layout](), torch.bfloat16, four_bit=bits != "lora",
                double_quant=bits == "qlora+double",
            )  # fmt: skip
        else:
            base = real_model(layout, bits)
        base.requires_grad_(False)
        if again:
            recompute_layers(base)
        if long:
            lean.fuse_gelu(base)
            lean.offload_inputs(base)
        model = Pretrained(adapt(base, Lora(rank=4, dora=dora), 0), TOKENS).train()
        if long:
            lean.tile_feed_forward(model.causal, 16)
        groups = adapter_groups(model, 1e-3, 1.0, 0.0)
        learner = Learner(
            model, lambda m, b: Loss(m(b.fields["x"], b.fields["y"])), [AdamW(groups)]
        )
        return Job(Blank(TOKENS, 8), {"main": learner})

    return recipes.Recipe("layouts", "", RunConfig, build)


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)))
@pytest.mark.filterwarnings("ignore")
def test_prediction_is_the_real_step_to_the_byte(case: tuple[str, str, bool, str, int]) -> None:
    layout, bits, again, loss, micro = case
    config = changed(RunConfig(), {"train.batch_size": 2, "train.max_steps": 500})
    pins = Pins("cpu", precision="bf16", ops={"cross_entropy": loss})
    ask = partial(predict, recipe_of(layout, bits, again), config, pins, micro=micro)
    foreseen, real = ask(), ask(real=True)
    assert foreseen.peak == real.peak > foreseen.state > 0
    assert foreseen.parts == real.parts


@pytest.mark.parametrize(("layout", "bits"), [("llama", "lora"), *LONG[1:]])
@pytest.mark.filterwarnings("ignore")
def test_so_it_is_where_the_lengths_of_rows_are_learned(layout: str, bits: str) -> None:
    """For them weights of 4 bits are opened once more."""
    config = changed(RunConfig(), {"train.batch_size": 2, "train.max_steps": 500})
    pins = Pins("cpu", precision="bf16", ops={"cross_entropy": "chunked"})
    ask = partial(predict, recipe_of(layout, bits, True, dora=True), config, pins, micro=1)
    foreseen, real = ask(), ask(real=True)
    assert foreseen.peak == real.peak and foreseen.parts == real.parts


@pytest.mark.parametrize(("layout", "bits"), LONG)
@pytest.mark.filterwarnings("ignore")
def test_so_it_is_with_all_that_makes_room_for_long_rows(
    layout: str, bits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs of layers that wait on the host, tiles, few heads at a time, and a head in pieces."""
    monkeypatch.setattr(lean, "_HEAD_TOKENS", 2 * TOKENS)
    monkeypatch.setattr("surefoot.nn.adapters._PIECE", 20)
    config = changed(RunConfig(), {"train.batch_size": 2, "train.max_steps": 500})
    pins = Pins("cpu", precision="bf16", ops={"cross_entropy": "chunked"})
    ask = partial(predict, recipe_of(layout, bits, True, long=True), config, pins, micro=1)
    foreseen, real = ask(), ask(real=True)
    assert foreseen.peak == real.peak and foreseen.parts == real.parts
    assert foreseen.host == real.host == SIZES["num_hidden_layers"] * TOKENS * 64 * 2
