"""Pretrained models without contents, for planning: shapes, types and lifetimes are true.

Inside a play on fake tensors (`engine/foresee/predict.py`) a model of any size is there at once and holds
nothing. Layers of 4 bits cannot be wrapped around such tensors by `bitsandbytes`, so here stands
one that holds the same bytes and works in the same steps as it does on a card.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["for_real", "hollow", "pretending"]

_BLOCK, _OUTER = 64, 256  # weights that share a constant, and constants that share one
_CODES = (16, 256)  # numbers in the tables of both


def pretending() -> bool:
    """Whether tensors that are made now have no contents."""
    return detect_fake_mode() is not None


@contextmanager
def for_real() -> Iterator[None]:
    """Inside the block tensors have contents, whatever is played around it."""
    with _disable_current_modes():
        yield


def hollow(
    config: Any, dtype: torch.dtype, *, four_bit: bool, double_quant: bool, attention: str = "sdpa"
) -> nn.Module:
    """Return the model of `transformers` that `config` describes, without contents.

    Raises what building it raises. All but the head is held in 4 bits if asked. `attention` is what
    transformers calls a way of it.
    """
    import transformers

    build: Any = transformers.AutoModelForCausalLM
    model: Any = build.from_config(config, dtype=dtype, attn_implementation=attention)
    model.generation_config = transformers.GenerationConfig()
    if four_bit:
        _let_peft_open()
        head = model.get_output_embeddings()
        for module in list(model.modules()):
            for name, child in module.named_children():
                if type(child) is nn.Linear and child is not head:
                    setattr(module, name, _four_bit(child, dtype, double_quant))
        model.is_loaded_in_4bit = True
    inner = model.base_model
    inner.forward = partial(_one_text_a_row, inner.forward)
    found: nn.Module = model
    return found


def _one_text_a_row(forward: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a model of `transformers` that must not ask the contents whether rows are packed.

    It would take a tensor without contents for one of an exporter, and make a mask [T, T] that no
    step on real tensors makes.
    """
    where = "transformers.masking_utils.find_packed_sequence_indices"
    with mock.patch(where, _alone):  # a plain function: mocks keep what they were called with
        return forward(*args, **options)


def _alone(*_: Any, **__: Any) -> None:
    return None


def _four_bit(linear: nn.Linear, dtype: torch.dtype, double_quant: bool) -> nn.Module:
    """Return a stand-in for `linear` in NF4, which `peft` takes for one of bitsandbytes."""
    import bitsandbytes

    library: Any = bitsandbytes
    four_bits: Any = library.nn.Linear4bit
    shape, device, bias = linear.weight.shape, linear.weight.device, linear.bias

    class FourBit(four_bits):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.out_features, self.in_features = shape
            self.compute_dtype = dtype
            size = shape.numel()
            byte: dict[str, Any] = {"dtype": torch.uint8, "device": device}
            weight: Any = nn.Parameter(torch.empty((size + 1) // 2, 1, **byte), requires_grad=False)
            weight.compress_statistics, weight.quant_type = double_quant, "nf4"
            self.weight, self.bias = weight, bias
            blocks = -(-size // _BLOCK)
            self.absmax = torch.empty(blocks, **byte) if double_quant else torch.empty(blocks)
            tables = [torch.empty(n) for n in (_CODES if double_quant else _CODES[:1])]
            outer = [torch.empty(-(-blocks // _OUTER)), torch.empty(())] if double_quant else []
            self.constants = [*tables, *outer]

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = _Product.apply(x.to(dtype), self, self.bias)
            return found.to(x.dtype)

        def opened(self) -> Tensor:
            """The weights as numbers, made by way of their constants."""
            absmax = self.absmax
            if double_quant:
                absmax = torch.empty(absmax.shape, device=device).add_(1.0)
            found = torch.empty(shape, dtype=dtype, device=device)
            del absmax
            return found

    return FourBit()


def _let_peft_open() -> None:
    """Let DoRA, which measures the rows of a layer's weights, open those of a stand-in, too."""
    from peft.tuners.lora import dora

    theirs: Any = dora
    if not isinstance(theirs.dequantize_module_weight, partial):
        theirs.dequantize_module_weight = partial(_opened, theirs.dequantize_module_weight)


def _opened(theirs: Callable[[Any], Tensor], layer: Any) -> Tensor:
    found: Tensor = layer.opened() if hasattr(layer, "constants") else theirs(layer)
    return found


class _Product(torch.autograd.Function):
    """Multiply with weights that are opened for the product, and again for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any, bias: Tensor | None) -> Tensor:
        ctx.layer = layer
        with torch.autocast(x.device.type, enabled=False):
            return nn.functional.linear(x, layer.opened(), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return grad @ ctx.layer.opened().to(grad.dtype), None, None
