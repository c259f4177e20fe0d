"""Output head and loss together: hidden [N, C], weight [V, C], targets [N] -> summed nats, fp32.

N positions, C width, V words. Targets of -100 do not count. The sum, not the mean: the engine
divides by the weight of the whole batch, so micro-batches and devices add up exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from surefoot.ops import kernels
from surefoot.ops.compiled import compiled
from surefoot.ops.draw import numbers, sizes
from surefoot.ops.way import Case, Op, Way, compiling_for_cpu, wide

__all__ = ["CROSS_ENTROPY", "alike", "pieces"]

T = TypeVar("T")

_CHUNK = (
    2048  # positions whose logits exist at the same time on a processor, in the type of products
)
_ROWS = 64  # of them whose softmax is made at a time there: few enough for the cache of a core
_CHUNK_GPU = 1024  # positions elsewhere, all at a time: small pieces waste the device
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
        wanted = any(ctx.needs_input_grad[:2])
        trained = ctx.needs_input_grad[1]  # a head that nobody trains needs none
        compute = _as_one if compiling_for_cpu(hidden) else _by_chunks
        total, by_hidden, by_weight = compute(hidden, weight, targets, wanted, trained)
        ctx.save_for_backward(by_hidden if wanted else None, by_weight if trained else None)
        ctx.kind = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        by_hidden, by_weight = (
            ctx.saved_tensors
        )  # ours alone, so no copy: torch refuses a second time
        for_weight = None if by_weight is None else by_weight.mul_(grad).to(ctx.kind)
        return by_hidden.mul_(grad.to(by_hidden.dtype)), for_weight, None


def _by_chunks(
    hidden: Tensor, weight: Tensor, targets: Tensor, wanted: bool, trained: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed loss, and its gradients for `hidden` and `weight`, empty where not asked for.

    That of `weight` is a product of its type where one was enough, and a sum of them in fp32.
    """
    exact = wide(hidden[:0]).dtype
    total = torch.zeros((), dtype=exact, device=hidden.device)
    by_hidden = torch.empty_like(hidden) if wanted else hidden.new_empty(0)
    by_weight = weight.new_empty(0)
    step, rows = pieces(hidden.device.type == "cpu")
    with torch.autocast(hidden.device.type, enabled=False):
        for start in alike(range(0, max(1, hidden.size(0)), step)):  # none: a gradient of zeros
            span = slice(start, start + step)
            h = hidden[span]
            logits = F.linear(h, weight)
            for some, t in alike(zip(logits.split(rows), targets[span].split(rows), strict=True)):
                loss, by_logits = _loss_of(wide(some), t)
                total = total + loss  # in place, the compiler of torch 2.11 would lose the gradient
                if wanted:
                    some.copy_(by_logits)  # where the logits were
                del some, by_logits  # else they would be there while the next are made
            if wanted:
                torch.mm(logits, weight, out=by_hidden[span])
            if trained:
                part = logits.T @ h
                by_weight = wide(by_weight).add_(part) if start else part
                del part
            del logits
    return total, by_hidden, by_weight


def pieces(on_processor: bool) -> tuple[int, int]:
    """Return how many positions have logits at the same time, and a softmax.

    Who foresees a step on a card asks for that, too.
    """
    return (_CHUNK, _ROWS) if on_processor else (_CHUNK_GPU, _CHUNK_GPU)


def alike(rounds: Iterable[T]) -> Iterable[T]:
    """Return `rounds` of a loop that do all the same. Who foresees a step plays only some of them."""
    return rounds


@torch.library.custom_op("surefoot::chunked_loss", mutates_args=())
def _as_one(
    hidden: Tensor, weight: Tensor, targets: Tensor, wanted: bool, trained: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, as one operation to torch's compiler, which would take a minute for all the pieces."""
    return _by_chunks(hidden, weight, targets, wanted, trained)


@_as_one.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, wanted: bool, trained: bool
) -> tuple[Tensor, Tensor, Tensor]:
    exact = wide(hidden[:0]).dtype
    by_hidden = torch.empty_like(hidden) if wanted else hidden.new_empty(0)
    # The length is asked for only where it decides: who asks has code made for both answers.
    summed = exact if weight.dtype == exact or hidden.size(0) > _CHUNK else weight.dtype
    by_weight = torch.empty_like(weight, dtype=summed) if trained else weight.new_empty(0)
    return hidden.new_empty((), dtype=exact), by_hidden, by_weight


def _loss_of(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed loss of logits [n, V], and its gradient: softmax minus one at the target.

    One exponential of each logit does for both: the largest share p = exp(m - log sum exp) of a row
    is at least 1 / V, so the logarithm of it gives back the sum without loss.
    """
    shares = logits.softmax(-1)
    counted = targets != _IGNORED
    at = targets.clamp(min=0).unsqueeze(-1)
    log_sum = logits.amax(-1) - shares.amax(-1).log()
    losses = (log_sum - logits.gather(-1, at).squeeze(-1)).where(counted, 0)
    shares.scatter_add_(-1, at, -torch.ones_like(at, dtype=shares.dtype))
    return losses.sum(), shares.mul_(counted.unsqueeze(-1))


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
