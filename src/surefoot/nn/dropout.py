"""Dropout whose masks are a function of keys, and of nothing else.

An element's mask depends on the key of its example (which the engine derives from seed, step and
place in the batch), on the layer, and on its place in the example. It does not depend on the
micro-batch split, the number of devices, or any other random draw; and being integer arithmetic
it is the same on every device, compiled or not. `surefoot.ops.keyed_dropout` has the formula.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from surefoot.ops import KEYED_DROPOUT, Op
from surefoot.ops.keyed_dropout import GOLDEN, mix

__all__ = ["Dropout", "keyed_layers", "set_keys"]


class Dropout(nn.Module):
    """Zero each number with probability `p` in training and scale the rest by 1/(1-p).

    Takes [B, ...]; `set_keys` must have given each of the B examples a key. Examples that are cut
    into equal parts, [B parts, ...], drop what they would whole. Evaluation returns the input itself.
    """

    kernels: ClassVar[dict[str, Op]] = {"compute": KEYED_DROPOUT}

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.keys: Tensor | None = None  # i32[2, B, 1]: a and b of this layer
        self.compute = KEYED_DROPOUT.call

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        if self.keys is None or x.size(0) % self.keys.size(1):
            raise RuntimeError("set_keys(model, keys) must give each example of the batch a key")
        whole = x if x.size(0) == self.keys.size(1) else x.reshape(self.keys.size(1), -1)
        found: Tensor = self.compute(whole, self.keys, self.p)
        return found.view(x.shape)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def keyed_layers(model: nn.Module) -> list[Dropout]:
    """Return the layers of `model` that draw masks, in order."""
    return [m for m in model.modules() if isinstance(m, Dropout) and m.p > 0.0]


def set_keys(model: nn.Module, keys: Tensor) -> None:
    """Give each example of the coming batch its key: i64[B], on the model's device."""
    layers = keyed_layers(model)
    salt = torch.arange(1, len(layers) + 1, device=keys.device).unsqueeze(1) * GOLDEN
    mixed = mix(keys + salt)  # [layers, B]
    a = (mixed | 1).to(torch.int32)
    b = (mixed >> 32).to(torch.int32)
    for layer, pair in zip(layers, torch.stack((a, b), 1).unsqueeze(-1), strict=True):
        layer.keys = pair
