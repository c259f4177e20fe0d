"""What an optimiser is here: parameter groups, state by parameter, and `step`.

`torch.optim` optimisers fit. Ours do not inherit from `torch.optim.Optimizer`, because building
one imports torch's compiler, a second of every start, and its step wrappers cost more than the
step of a small model. Learning rates are written into `param_groups` before each step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from surefoot.ops import ADAMW, Op

__all__ = ["AdamW", "Optimiser", "groups_of"]


class Optimiser(Protocol):
    """Updates parameters in place from their gradients."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...
    @property
    def state(self) -> Any: ...
    def step(self) -> Any: ...


def groups_of(
    params: Iterable[nn.Parameter] | Iterable[Mapping[str, Any]], **defaults: Any
) -> list[dict[str, Any]]:
    """Return parameter groups: `params` is a list of parameters, or of groups with `params`."""
    listed: list[Any] = list(params)
    if listed and not isinstance(listed[0], Mapping):
        listed = [{"params": listed}]
    return [{**defaults, **group, "params": list(group["params"])} for group in listed]


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019).

    State of each parameter: `step` f32[] (on the parameter's device), `exp_avg`, `exp_avg_sq`;
    the same names as `torch.optim.AdamW(fused=True)`, and with the way `fused` the same bits.
    """

    kernels: ClassVar[dict[str, Op]] = {"compute": ADAMW}

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[Mapping[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        self.param_groups = groups_of(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay
        )
        for group in self.param_groups:
            group["fused"] = True
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self.compute = ADAMW.call

    @torch.no_grad()
    def step(self) -> None:
        """Apply one update from the gradients at hand."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            states = [self.state.get(p) or self._begin(p) for p in params]
            counts = [s["step"] for s in states]
            torch._foreach_add_(counts, 1)
            self.compute(
                params, [p.grad for p in params], [s["exp_avg"] for s in states],
                [s["exp_avg_sq"] for s in states], counts,
                (group["lr"], *group["betas"], group["eps"], group["weight_decay"]),
            )  # fmt: skip

    def _begin(self, param: Tensor) -> dict[str, Tensor]:
        state = {
            "step": torch.zeros((), dtype=torch.float32, device=param.device),
            "exp_avg": torch.zeros_like(param),
            "exp_avg_sq": torch.zeros_like(param),
        }
        self.state[param] = state
        return state
