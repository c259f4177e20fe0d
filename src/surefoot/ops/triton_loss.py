"""Output head and loss with one kernel of Triton's between two matrix products.

Logits of some thousand positions exist at a time, in the precision of the products; the kernel
turns them in place into the gradient that the products for backward take. To torch's compiler all
of it is one operation. Imported only when it is chosen.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["head_loss"]

_CHUNK = 4096  # positions whose logits exist at the same time: 67 MB of 8,192 words in bf16
_BLOCK = 8192  # words that one step of a program looks at
_IGNORED = -100


@triton.jit
def _softmax_gradient(  # type: ignore[no-untyped-def]
    logits, targets, losses, words, IGNORED: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    line = logits + row * words
    target = tl.load(targets + row)
    places = tl.arange(0, BLOCK)
    top = tl.max(tl.full((BLOCK,), -1e30, WIDE), 0)
    total = tl.sum(tl.zeros((BLOCK,), WIDE), 0)
    own = tl.sum(tl.zeros((BLOCK,), WIDE), 0)
    for begin in range(0, words, BLOCK):
        at = begin + places
        x = tl.load(line + at, mask=at < words, other=-1e30).to(WIDE)
        higher = tl.maximum(top, tl.max(x, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(x - higher), 0)
        own += tl.sum(tl.where(at == target, x, 0.0), 0)
        top = higher
    counted = tl.where(target == IGNORED, 0.0, 1.0).to(WIDE)
    tl.store(losses + row, (top + tl.log(total) - own) * counted)
    for begin in range(0, words, BLOCK):
        at = begin + places
        x = tl.load(line + at, mask=at < words, other=-1e30).to(WIDE)
        share = tl.exp(x - top) / total - tl.where(at == target, 1.0, 0.0)
        tl.store(line + at, share * counted, mask=at < words)


@torch.library.custom_op("surefoot::head_loss", mutates_args=())
def _head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed loss, and its gradients for `hidden` and `weight`."""
    exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    words, rows = weight.size(0), hidden.size(0)
    losses = torch.empty(rows, dtype=exact, device=hidden.device)
    by_hidden = torch.empty_like(hidden)
    by_weight = torch.zeros_like(weight, dtype=exact)
    block = min(_BLOCK, triton.next_power_of_2(words))
    wide = tl.float64 if exact == torch.float64 else tl.float32
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, rows, _CHUNK):
            span = slice(start, start + _CHUNK)
            part = hidden[span]
            logits = part @ weight.T
            _softmax_gradient[(part.size(0),)](
                logits, targets[span], losses[span], words,
                IGNORED=_IGNORED, BLOCK=block, WIDE=wide, num_warps=16,
            )  # fmt: skip
            torch.mm(logits, weight, out=by_hidden[span])
            by_weight += logits.T @ part
    return losses.sum(), by_hidden, by_weight


@_head_loss.register_fake
def _(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    total = hidden.new_empty((), dtype=exact)
    return total, torch.empty_like(hidden), torch.empty_like(weight, dtype=exact)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.kind = inputs[1].dtype


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor, None]:
    by_hidden, by_weight = ctx.saved_tensors  # ours alone: a copy would be another 100 MB
    return by_hidden.mul_(grad.to(by_hidden.dtype)), by_weight.mul_(grad).to(ctx.kind), None


_head_loss.register_autograd(_backward, setup_context=_keep)


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return nats summed over hidden [N, C] and targets [N] that are not -100, of weight [V, C]."""
    found: Tensor = _head_loss(hidden.contiguous(), weight, targets.contiguous())[0]
    return found
