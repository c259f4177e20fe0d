"""What a device can do, found by trying: kinds of numbers, and how fast each is against fp32."""

from __future__ import annotations

from functools import partial

import torch

from surefoot.engine.auto.ceilings import best_of

__all__ = ["numbers"]

_SIDE = {"cpu": 384, "cuda": 4096, "mps": 1024}


def numbers(device: torch.device) -> dict[str, float | None]:
    """Return for fp32, tf32 (on CUDA), bf16 and fp16 the FLOP/s of a product; None where there is none."""
    side = _SIDE.get(device.type, 512)
    found: dict[str, float | None] = {"fp32": _rate(torch.float32, side, device)}
    if device.type == "cuda":
        kept = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            found["tf32"] = _rate(torch.float32, side, device)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = kept
        major, _ = torch.cuda.get_device_capability(device)
        found["tf32"] = found["tf32"] if major >= 8 else None
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        found[name] = _rate(dtype, side, device)
    return found


def _rate(dtype: torch.dtype, side: int, device: torch.device) -> float | None:
    try:
        a = torch.ones(side, side, dtype=dtype, device=device)
        return 2 * side**3 / best_of(device, partial(torch.mm, a, a), 1)
    except (RuntimeError, TypeError):  # this device has no such product
        return None
