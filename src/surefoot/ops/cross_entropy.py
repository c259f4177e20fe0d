"""Output head and loss together: hidden [N, C], weight [V, C], targets [N] -> summed nats, fp32.

N positions, C width, V words. Targets of -100 do not count. The sum, not the mean: the engine
divides by the weight of the whole batch, so micro-batches and devices add up exactly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from surefoot.ops import kernels
from surefoot.ops.compiled import compiled
from surefoot.ops.draw import numbers, sizes
from surefoot.ops.way import Case, Op, Way, wide

__all__ = ["CROSS_ENTROPY"]

_CHUNK = 256  # positions whose logits exist at the same time on a processor
_CHUNK_GPU = 1024  # and elsewhere, where small products waste the device
_IGNORED = -100


def _reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """All logits at once, softmax in fp32."""
    logits = wide(F.linear(hidden, weight))
    return F.cross_entropy(logits, targets, ignore_index=_IGNORED, reduction="sum")


def _chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Logits of some positions at a time, whose gradient is taken at once and kept instead.

    Memory for logits does not grow with the batch (the idea of Wijmans et al., "Cut your losses in
    large-vocabulary language models", 2024, in plain torch).
    """
    found: Tensor = _Chunked.apply(*_narrowed(hidden, weight), targets)
    return found


def _triton(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The same with one kernel for softmax, loss and gradient, in the memory of the logits."""
    found: Tensor = kernels.load("triton_loss").head_loss(*_narrowed(hidden, weight), targets)
    return found


def _narrowed(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in the type of autocast, where that is on."""
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        return hidden, weight
    kind = torch.get_autocast_dtype(device)
    return hidden.to(kind), weight.to(kind)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        exact = wide(hidden[:0]).dtype
        total = torch.zeros((), dtype=exact, device=hidden.device)
        wanted = any(ctx.needs_input_grad[:2])
        by_hidden = torch.empty_like(hidden) if wanted else None
        trained = ctx.needs_input_grad[1]  # a head that nobody trains needs none
        by_weight = torch.zeros_like(weight, dtype=exact) if trained else None
        with torch.autocast(hidden.device.type, enabled=False):
            step = _CHUNK if hidden.device.type == "cpu" else _CHUNK_GPU
            for start in range(0, hidden.size(0), step):
                span = slice(start, start + step)
                h, t = hidden[span], targets[span]
                logs = wide(F.linear(h, weight)).log_softmax(-1)
                total += F.nll_loss(logs, t, ignore_index=_IGNORED, reduction="sum")
                if by_hidden is not None:
                    by_logits = _by_logits(logs, t).to(weight.dtype)
                    torch.mm(by_logits, weight, out=by_hidden[span])
                    if by_weight is not None:
                        by_weight += by_logits.T @ h
        ctx.save_for_backward(by_hidden, by_weight)
        ctx.kind = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        by_hidden, by_weight = (
            ctx.saved_tensors
        )  # ours alone, so no copy: torch refuses a second time
        for_weight = None if by_weight is None else by_weight.mul_(grad).to(ctx.kind)
        return by_hidden.mul_(grad.to(by_hidden.dtype)), for_weight, None


def _by_logits(logs: Tensor, targets: Tensor) -> Tensor:
    """softmax minus one at the target, zero where ignored; in the memory of `logs` [n, V]."""
    counted = (targets != _IGNORED).unsqueeze(-1)
    found = logs.exp_()
    found.scatter_add_(-1, targets.clamp(min=0).unsqueeze(-1), -torch.ones_like(found[:, :1]))
    return found.mul_(counted)


def _torch(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Torch's own fusion of both, in fp32 also under autocast: it would add the loss in bf16."""
    fused: Any = getattr(F, "linear_cross_entropy")  # noqa: B009 - newer than the oldest torch
    with torch.autocast(hidden.device.type, enabled=False):
        found: Tensor = fused(
            hidden.to(weight.dtype), weight, targets, ignore_index=_IGNORED, reduction="sum"
        )
    return found


def _has_fusion(device: torch.device) -> str | None:
    return None if hasattr(F, "linear_cross_entropy") else f"torch {torch.__version__} lacks it"


def _draw(stream: torch.Generator, large: bool) -> Case:
    n, c, v = (1024, 128, 2048) if large else sizes(stream, 600, 40, 90)
    hidden, weight = numbers(stream, n, c), numbers(stream, v, c)
    targets = torch.randint(0, v, (n,), generator=stream)
    targets[1::5] = _IGNORED
    return [hidden.requires_grad_(), weight.requires_grad_(), targets]


CROSS_ENTROPY = Op(
    "cross_entropy",
    {
        "reference": Way(_reference, tolerance=0.0),
        "chunked": Way(_chunked, tolerance=1e-5),
        "torch": Way(
            _torch, tolerance=1e-5, dtypes=(torch.float64, torch.float32), obstacle=_has_fusion
        ),
        "compile": compiled(_reference, tolerance=1e-5),
        "triton": kernels.way(_triton, tolerance=1e-5),
    },
    draw=_draw,
)
