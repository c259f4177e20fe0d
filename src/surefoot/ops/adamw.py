"""One step of AdamW in place: lists of parameters, gradients, two moments and step counts.

Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019). Counts are f32[] and stand
at the number of this step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from surefoot.ops.draw import numbers, sizes
from surefoot.ops.way import Case, Op, Way

__all__ = ["ADAMW", "AdamRates"]

Tensors = Sequence[Tensor]
AdamRates = tuple[float, float, float, float, float]  # lr, beta1, beta2, eps, weight decay


def _reference(
    params: Tensors, grads: Tensors, means: Tensors, squares: Tensors, counts: Tensors,
    rates: AdamRates,
) -> None:  # fmt: skip
    """The formula, one parameter after the other."""
    lr, beta1, beta2, eps, decay = rates
    for p, g, m, v, t in zip(params, grads, means, squares, counts, strict=True):
        p.mul_(1 - lr * decay)
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        step = float(t)
        root = v.sqrt() / (1 - beta2**step) ** 0.5
        p.sub_(m / (root + eps), alpha=lr / (1 - beta1**step))


def _fused(
    params: Tensors, grads: Tensors, means: Tensors, squares: Tensors, counts: Tensors,
    rates: AdamRates,
) -> None:  # fmt: skip
    """Torch's fused kernel: all parameters in one call."""
    lr, beta1, beta2, eps, decay = rates
    torch._fused_adamw_(
        list(params), list(grads), list(means), list(squares), [], list(counts),
        lr=lr, beta1=beta1, beta2=beta2, weight_decay=decay, eps=eps, amsgrad=False,
        maximize=False,
    )  # fmt: skip


def _foreach(
    params: Tensors, grads: Tensors, means: Tensors, squares: Tensors, counts: Tensors,
    rates: AdamRates,
) -> None:  # fmt: skip
    """Each operation on all parameters at once."""
    lr, beta1, beta2, eps, decay = rates
    ps, gs, ms, vs = list(params), list(grads), list(means), list(squares)
    steps = [float(t) for t in counts]
    torch._foreach_mul_(ps, 1 - lr * decay)
    torch._foreach_lerp_(ms, gs, 1 - beta1)
    torch._foreach_mul_(vs, beta2)
    torch._foreach_addcmul_(vs, gs, gs, 1 - beta2)
    roots = torch._foreach_sqrt(vs)
    torch._foreach_div_(roots, [(1 - beta2**t) ** 0.5 for t in steps])
    torch._foreach_add_(roots, eps)
    torch._foreach_addcdiv_(ps, ms, roots, [-lr / (1 - beta1**t) for t in steps])


def _draw(stream: torch.Generator, large: bool) -> Case:
    shapes = [(256, 256)] * 8 if large else [tuple(sizes(stream, 20, 9)) for _ in range(3)]
    params, grads, means = ([numbers(stream, *s) for s in shapes] for _ in range(3))
    squares = [numbers(stream, *s).square() for s in shapes]
    counts = [torch.tensor(7.0) for _ in shapes]
    return [params, grads, means, squares, counts, (1e-2, 0.9, 0.99, 1e-8, 0.1)]


def _outcome(call: Callable[..., Any], case: Case) -> list[Tensor]:
    """Take a step on copies and return what became of parameters and moments."""
    params, grads, means, squares, counts, rates = case
    moved = [[t.clone() for t in tensors] for tensors in (params, means, squares)]
    with torch.no_grad():
        call(moved[0], grads, moved[1], moved[2], counts, rates)
    return [t for tensors in moved for t in tensors]


ADAMW = Op(
    "adamw",
    {
        "reference": Way(_reference, tolerance=0.0),
        "foreach": Way(_foreach, tolerance=1e-5),
        "fused": Way(_fused, tolerance=1e-5),
    },
    standard="fused",
    draw=_draw,
    outcome=_outcome,
)
