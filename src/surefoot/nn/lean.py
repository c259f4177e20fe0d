"""Long rows on small cards: what is kept for the gradient, and where.

A model of `transformers` whose layers are computed again for the gradient keeps one tensor for
each layer, its input, and while it works on a layer all that is inside. Here these inputs wait in
the host's memory, and the feed-forward part of a layer is computed for some tokens at a time. The
gradients are the same: bit for bit with the first, but for rounding with the second.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["offload_inputs", "tile_feed_forward"]


def tile_feed_forward(model: nn.Module, tokens: int) -> int:
    """Compute the module `mlp` of each layer for `tokens` tokens at a time; return how many.

    Its inner width then costs memory for one tile only, once more time in the backward pass.
    Dropout inside would draw the same mask for every tile, so there must be none.
    """
    found = [m for n, m in model.named_modules() if n.rpartition(".")[2] == "mlp"]
    for module in found:
        module.forward = partial(_tiled, module.forward, tokens)
    return len(found)


def _tiled(forward: Callable[[Tensor], Tensor], tokens: int, x: Tensor) -> Tensor:
    """Return `forward` of x [B, T, C], computed piece by piece along T."""
    if x.size(1) <= tokens:
        return forward(x)
    if not torch.is_grad_enabled():
        return torch.cat([forward(piece) for piece in x.split(tokens, 1)], 1)
    pieces = [checkpoint(forward, piece, use_reentrant=False) for piece in x.split(tokens, 1)]
    return torch.cat(pieces, 1)


def offload_inputs(model: nn.Module) -> int:
    """Let the inputs of layers that are computed again wait in host memory; return how many.

    The layers must have been told to be computed again before (`adapters.recompute_layers`).
    """
    layers = [m for m in model.modules() if hasattr(m, "_gradient_checkpointing_func")]
    for layer in layers:
        layer._gradient_checkpointing_func = _offloaded  # type: ignore[assignment]
    return len(layers)


def _offloaded(run: Callable[..., Tensor], hidden: Tensor, *rest: Any) -> Tensor:
    anchor = torch.zeros(
        (), device=hidden.device, requires_grad=True
    )  # hidden may need no gradient
    found: Tensor = _Offloaded.apply(run, anchor, hidden, *rest)
    return found


class _Offloaded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, run: Callable[..., Tensor], anchor: Tensor, hidden: Tensor, *rest: Any
    ) -> Tensor:
        device = hidden.device
        on_card = device.type == "cuda"
        ctx.run, ctx.rest, ctx.device = run, rest, device
        ctx.host = torch.empty(hidden.shape, dtype=hidden.dtype, pin_memory=on_card)
        ctx.host.copy_(hidden, non_blocking=on_card)
        ctx.streams = (torch.get_rng_state(), torch.cuda.get_rng_state(device) if on_card else None)
        kind = device.type
        ctx.mixed = (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        return run(hidden, *rest)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        hidden = ctx.host.to(ctx.device, non_blocking=True).detach().requires_grad_(True)
        ctx.host = None
        devices = [ctx.device] if ctx.device.type == "cuda" else []
        enabled, dtype = ctx.mixed
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            torch.set_rng_state(ctx.streams[0])
            if devices:
                torch.cuda.set_rng_state(ctx.streams[1], ctx.device)
            with torch.autocast(ctx.device.type, dtype=dtype, enabled=enabled):
                found = ctx.run(hidden, *ctx.rest)
            torch.autograd.backward(found, grad)
        return None, None, hidden.grad, *(None for _ in ctx.rest)
