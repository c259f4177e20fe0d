"""Dropout by keys: x [B, ...], keys i32[2, B, 1], p -> x with a share p of zeros, the rest / (1-p).

An element stays where a e + b mod 2^32 is not below a threshold: `a` (odd) and `b` are the two
keys of its example, and `e` is a fixed random number of its place. For random a and b that is
pairwise independent over places (Dietzfelbinger, 1996). Being integer arithmetic, every way drops
the same elements on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from surefoot.ops import kernels
from surefoot.ops.compiled import compiled
from surefoot.ops.draw import numbers, sizes
from surefoot.ops.kept import kept
from surefoot.ops.way import Case, Op, Way

__all__ = ["GOLDEN", "KEYED_DROPOUT", "mix"]

# SplitMix64 (Steele et al., 2014) as signed 64-bit constants.
GOLDEN = -0x61C8864680B583EB
_MIX1, _MIX2 = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser on i64; the shifts are made logical by masking."""
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _MIX1
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _MIX2
    return z ^ ((z >> 31) & (2**33 - 1))


def _mask(x: Tensor, places: Tensor, keys: Tensor, p: float) -> Tensor:
    """Return what `x` is multiplied with: zeros, and 1/(1-p) elsewhere, of x's type."""
    a, b = keys
    kept = torch.addcmul(b, places, a) >= _threshold(p)
    return (kept.to(x.dtype) * (1.0 / (1.0 - p))).view(x.shape)


def _reference(x: Tensor, keys: Tensor, p: float) -> Tensor:
    """The formula; the numbers of the places are computed each time."""
    with torch.no_grad():
        found = _mask(x, _places(x[0].numel(), x.device), keys, p)
    return x * found


def _table(x: Tensor, keys: Tensor, p: float) -> Tensor:
    """The numbers of the places are kept from the last time."""
    with torch.no_grad():
        found = _mask(x, _remembered(x[0].numel(), x.device), keys, p)
    return x * found


def _triton(x: Tensor, keys: Tensor, p: float) -> Tensor:
    """One kernel that computes the mask as it goes, and again in backward: nothing is kept."""
    places = _remembered(x[0].numel(), x.device)
    return kernels.load().keyed_dropout(x, places, keys, _threshold(p), 1.0 / (1.0 - p))


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
    mixed = mix(torch.arange(elements, device=device) ^ GOLDEN)
    return (mixed >> 32).to(torch.int32).unsqueeze(0)


_kept_places = kept(_places)


def _draw(stream: torch.Generator, large: bool) -> Case:
    b, t, c = (8, 128, 256) if large else sizes(stream, 5, 9, 70)
    keys = torch.randint(-(2**31), 2**31, (2, b, 1), generator=stream).to(torch.int32)
    keys[0] |= 1
    return [numbers(stream, b, t, c).requires_grad_(), keys, 0.2]


KEYED_DROPOUT = Op(
    "keyed_dropout",
    {
        "reference": Way(_reference, tolerance=0.0),
        "table": Way(_table, tolerance=1e-6),
        "compile": compiled(_reference, tolerance=1e-6),
        "triton": kernels.way(_triton, tolerance=1e-6),
    },
    standard="table",
    draw=_draw,
)
