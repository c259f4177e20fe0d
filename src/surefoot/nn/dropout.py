"""Dropout whose masks are a function of keys, and of nothing else.

An element's mask depends on the key of its example (which the engine derives from seed, step and
place in the batch), on the layer, and on its place in the example. It does not depend on the
micro-batch split, the number of devices, or any other random draw; and being integer arithmetic
it is the same on every device, compiled or not.

The hash is multiply-add, a*e + b mod 2^32 compared with a threshold: `e` is a fixed random number
of the element's place, and a (odd), b are two fresh random numbers of each (example, layer). For
random a and b that is pairwise independent over places (Dietzfelbinger, 1996).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

__all__ = ["Dropout", "keyed_layers", "set_keys"]

# SplitMix64 (Steele et al., 2014) as signed 64-bit constants.
_GOLDEN, _MIX1, _MIX2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


class Dropout(nn.Module):
    """Zero each number with probability `p` in training and scale the rest by 1/(1-p).

    Takes [B, ...]; `set_keys` must have given each of the B examples a key. Evaluation returns
    the input itself.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.keys: Tensor | None = None  # i32[2, B, 1]: a and b of this layer

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        return x * self.mask(x)

    @torch.no_grad()
    def mask(self, x: Tensor) -> Tensor:
        """Return what `x` is multiplied with: zeros, and 1/(1-p) elsewhere, of x's type."""
        if self.keys is None or self.keys.size(1) != x.size(0):
            raise RuntimeError("set_keys(model, keys) must give each example of the batch a key")
        places = _remembered(x[0].numel(), x.device)
        a, b = self.keys
        kept = torch.addcmul(b, places, a) >= _threshold(self.p)
        return (kept.to(x.dtype) * (1.0 / (1.0 - self.p))).view(x.shape)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def keyed_layers(model: nn.Module) -> list[Dropout]:
    """Return the layers of `model` that draw masks, in order."""
    return [m for m in model.modules() if isinstance(m, Dropout) and m.p > 0.0]


def set_keys(model: nn.Module, keys: Tensor) -> None:
    """Give each example of the coming batch its key: i64[B], on the model's device."""
    layers = keyed_layers(model)
    salt = torch.arange(1, len(layers) + 1, device=keys.device).unsqueeze(1) * _GOLDEN
    mixed = _mix(keys + salt)  # [layers, B]
    a = (mixed | 1).to(torch.int32)
    b = (mixed >> 32).to(torch.int32)
    for layer, pair in zip(layers, torch.stack((a, b), 1).unsqueeze(-1), strict=True):
        layer.keys = pair


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser on i64; the shifts are made logical by masking."""
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _MIX1
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _MIX2
    return z ^ ((z >> 31) & (2**33 - 1))


def _threshold(p: float) -> int:
    """Of the 2^32 values of a signed 32-bit integer, the share p lies below this."""
    return round(p * 2**32) - 2**31


def _remembered(elements: int, device: torch.device) -> Tensor:
    """Return `_places`, kept from the last time; compiled code computes them as it goes."""
    if torch.compiler.is_compiling():
        return _places(elements, device)
    return _kept_places(elements, device)


def _places(elements: int, device: torch.device) -> Tensor:
    """Return i32[1, elements] of fixed random numbers; a longer table begins with a shorter one."""
    mixed = _mix(torch.arange(elements, device=device) ^ _GOLDEN)
    return (mixed >> 32).to(torch.int32).unsqueeze(0)


_kept_places = lru_cache(maxsize=8)(_places)
