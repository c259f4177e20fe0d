"""Triton's kernels: RMSNorm, SwiGLU's gate, squared ReLU, keyed dropout. Imported only when one is chosen.

Sums have a fixed order (no atomics), so a run through them can be proven like any other. The
arithmetic is fp32, or fp64 for fp64 input.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["keyed_dropout", "rms_norm", "squared_relu", "swiglu"]

_BLOCK = 1024  # elements of one program
_ROWS = 16  # rows of one program in the backward pass of RMSNorm


def rms_norm(x: Tensor, weight: Tensor, eps: float, kind: torch.dtype) -> Tensor:
    """Return weight x / rms(x) of type `kind`, for x [..., C] and weight [C]."""
    found: Tensor = _RMSNorm.apply(x, weight, eps, kind)
    return found


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) up, for two tensors of one shape."""
    found: Tensor = _SwiGLU.apply(gate, up)
    return found


def squared_relu(x: Tensor) -> Tensor:
    """Return relu(x)²."""
    found: Tensor = _SquaredReLU.apply(x)
    return found


def keyed_dropout(x: Tensor, places: Tensor, keys: Tensor, least: int, scale: float) -> Tensor:
    """Return x [B, ...] times `scale` where a e + b is at least `least`, else 0.

    places i32[1, elements of an example] are e; keys i32[2, B, 1] are a and b.
    """
    found: Tensor = _Dropout.apply(x, places, keys, least, scale)
    return found


@triton.jit
def _norm_forward(x, weight, out, scales, width, eps, BLOCK: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    value = tl.load(x + row * width + at, mask=inside, other=0.0).to(WIDE)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, 0) / width + eps)
    w = tl.load(weight + at, mask=inside, other=0.0).to(WIDE)
    tl.store(out + row * width + at, value * scale * w, mask=inside)
    tl.store(scales + row, scale)


@triton.jit
def _norm_backward(  # type: ignore[no-untyped-def]
    grad, x, weight, scales, by_x, by_weight, rows, width,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    w = tl.load(weight + at, mask=inside, other=0.0).to(WIDE)
    summed = tl.zeros((BLOCK,), WIDE)
    for place in range(ROWS):
        row = group * ROWS + place
        here = at < tl.where(row < rows, width, 0)  # nothing beyond the last row
        g = tl.load(grad + row * width + at, mask=here, other=0.0).to(WIDE)
        scale = tl.load(scales + tl.minimum(row, rows - 1))
        unit = tl.load(x + row * width + at, mask=here, other=0.0).to(WIDE) * scale
        along = tl.sum(g * w * unit, 0) / width
        tl.store(by_x + row * width + at, (g * w - unit * along) * scale, mask=here)
        summed += g * unit
    tl.store(by_weight + group * width + at, summed, mask=inside)


@triton.jit
def _gate_forward(gate, up, out, count, BLOCK: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    g = tl.load(gate + at, mask=inside, other=0.0).to(WIDE)
    u = tl.load(up + at, mask=inside, other=0.0).to(WIDE)
    tl.store(out + at, g / (1.0 + tl.exp(-g)) * u, mask=inside)


@triton.jit
def _gate_backward(  # type: ignore[no-untyped-def]
    grad, gate, up, by_gate, by_up, count, BLOCK: tl.constexpr, WIDE: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    d = tl.load(grad + at, mask=inside, other=0.0).to(WIDE)
    g = tl.load(gate + at, mask=inside, other=0.0).to(WIDE)
    u = tl.load(up + at, mask=inside, other=0.0).to(WIDE)
    s = 1.0 / (1.0 + tl.exp(-g))
    tl.store(by_gate + at, d * u * s * (1.0 + g * (1.0 - s)), mask=inside)
    tl.store(by_up + at, d * g * s, mask=inside)


@triton.jit
def _square_forward(x, out, count, BLOCK: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    value = tl.load(x + at, mask=inside, other=0.0).to(WIDE)
    tl.store(out + at, tl.where(value <= 0, 0.0, value * value), mask=inside)


@triton.jit
def _square_backward(grad, x, by_x, count, BLOCK: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    value = tl.load(x + at, mask=inside, other=0.0).to(WIDE)
    d = tl.load(grad + at, mask=inside, other=0.0).to(WIDE)
    tl.store(by_x + at, tl.where(value <= 0, 0.0, 2.0 * value * d), mask=inside)


@triton.jit
def _drop(  # type: ignore[no-untyped-def]
    x, places, keys, out, examples, elements, least, scale,
    BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    example = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    a = tl.load(keys + example)
    b = tl.load(keys + examples + example)
    kept = tl.load(places + at, mask=inside, other=0) * a + b >= least
    value = tl.load(x + example * elements + at, mask=inside, other=0.0).to(WIDE)
    tl.store(out + example * elements + at, tl.where(kept, value * scale, 0.0), mask=inside)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, kind: torch.dtype) -> Tensor:
        flat = x.contiguous().view(-1, x.size(-1))
        rows, width = flat.shape
        out = torch.empty(x.shape, dtype=kind, device=x.device)
        scales = torch.empty(rows, dtype=_wide(x), device=x.device)
        block = triton.next_power_of_2(width)
        _norm_forward[(rows,)](
            flat, weight, out, scales, width, eps, BLOCK=block, WIDE=_kernel_type(x)
        )
        ctx.save_for_backward(flat, weight, scales)
        ctx.shape, ctx.block = x.shape, block
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        flat, weight, scales = ctx.saved_tensors
        rows, width = flat.shape
        groups = triton.cdiv(rows, _ROWS)
        by_x = torch.empty_like(flat)
        by_weight = torch.empty(groups, width, dtype=scales.dtype, device=flat.device)
        _norm_backward[(groups,)](
            grad.contiguous(), flat, weight, scales, by_x, by_weight, rows, width,
            BLOCK=ctx.block, ROWS=_ROWS, WIDE=_kernel_type(flat),
        )  # fmt: skip
        return by_x.view(ctx.shape), by_weight.sum(0).to(weight.dtype), None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        grid = (triton.cdiv(gate.numel(), _BLOCK),)
        _gate_forward[grid](gate, up, out, gate.numel(), BLOCK=_BLOCK, WIDE=_kernel_type(gate))
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        by_gate, by_up = torch.empty_like(gate), torch.empty_like(up)
        grid = (triton.cdiv(gate.numel(), _BLOCK),)
        _gate_backward[grid](
            grad.contiguous(), gate, up, by_gate, by_up, gate.numel(),
            BLOCK=_BLOCK, WIDE=_kernel_type(gate),
        )  # fmt: skip
        return by_gate, by_up


class _SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        grid = (triton.cdiv(x.numel(), _BLOCK),)
        _square_forward[grid](x, out, x.numel(), BLOCK=_BLOCK, WIDE=_kernel_type(x))
        ctx.save_for_backward(x)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        by_x = torch.empty_like(x)
        grid = (triton.cdiv(x.numel(), _BLOCK),)
        _square_backward[grid](
            grad.contiguous(), x, by_x, x.numel(), BLOCK=_BLOCK, WIDE=_kernel_type(x)
        )
        return by_x


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, places: Tensor, keys: Tensor, least: int, scale: float
    ) -> Tensor:
        ctx.save_for_backward(places, keys)
        ctx.facts = least, scale
        return _dropped(x, places, keys, least, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _dropped(grad, *ctx.saved_tensors, *ctx.facts), None, None, None, None


def _dropped(x: Tensor, places: Tensor, keys: Tensor, least: int, scale: float) -> Tensor:
    x, keys = x.contiguous(), keys.contiguous()
    out, elements = torch.empty_like(x), x[0].numel()
    grid = (x.size(0), triton.cdiv(elements, _BLOCK))
    _drop[grid](
        x, places, keys, out, x.size(0), elements, least, scale,
        BLOCK=_BLOCK, WIDE=_kernel_type(x),
    )  # fmt: skip
    return out


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _kernel_type(x: Tensor) -> Any:
    return tl.float64 if x.dtype == torch.float64 else tl.float32
