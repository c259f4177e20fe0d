"""Which parameter gets which optimiser, and clipping."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from surefoot.config.schema import Optim
from surefoot.nn.muon import Muon
from surefoot.nn.optimiser import AdamW, Optimiser

__all__ = ["build_optimisers", "clip_", "optimiser_groups"]


def optimiser_groups(model: nn.Module) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Sort the trained parameters into (hidden matrices, embeddings and head, vectors)."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = getattr(model, "head", None)
    if isinstance(head, nn.Linear):
        tables.add(id(head.weight))
    matrices: list[Tensor] = []
    embeddings: list[Tensor] = []
    vectors: list[Tensor] = []
    for p in model.parameters():
        if p.requires_grad:
            kind = vectors if p.dim() < 2 else embeddings if id(p) in tables else matrices
            kind.append(p)
    return matrices, embeddings, vectors


def build_optimisers(model: nn.Module, optim: Optim) -> list[Optimiser]:
    """Return the optimisers of `model`: AdamW, or Muon for hidden matrices and then AdamW.

    Every group carries its peak rate as `peak`; a schedule multiplies it. Vectors (norms, biases)
    do not decay.
    """
    matrices, embeddings, vectors = optimiser_groups(model)
    found: list[Optimiser] = []
    if optim.kind == "muon" and matrices:
        found.append(
            Muon(
                matrices,
                lr=optim.muon_lr,
                weight_decay=optim.weight_decay,
                momentum=optim.momentum,
                rows=_stacked(model),
            )
        )
        matrices = []
    decayed, plain = matrices + embeddings, vectors
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((decayed, optim.weight_decay), (plain, 0.0))
        if params
    ]
    if groups:
        betas = (optim.beta1, optim.beta2)
        found.append(AdamW(groups, lr=optim.lr, betas=betas, eps=optim.eps))
    for optimiser in found:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return found


def _stacked(model: nn.Module) -> dict[int, list[int]]:
    """Return the heights of matrices that lie on top of each other, by their parameter's id."""
    found = (getattr(module, "stacked", None) for module in model.modules())
    return {id(weight): heights for weight, heights in filter(None, found)}


def clip_(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale the gradients so that their joint 2-norm is at most `max_norm`; 0 leaves them.

    Returns the norm before clipping, NaN or infinite where a gradient is. Reading it waits for
    the device; the engine must know it before the optimiser may move a weight.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return 0.0
    norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))))
    if 0 < max_norm < norm:
        torch._foreach_mul_(grads, max_norm / norm)
    return norm
