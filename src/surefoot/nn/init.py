"""First values of parameters, as a function of the seed and the parameter's own name.

Each parameter draws from a generator of its own, so adding or removing a layer changes no other
layer's start, and no global generator is touched.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.ops.bias import add_bias
from surefoot.ops.rows import rows
from surefoot.ops.way import compiling_for_cpu
from surefoot.seeds import derive

__all__ = ["Embedding", "Linear", "fill_", "normal_"]


class Linear(nn.Linear):
    """`nn.Linear` whose values are left unset, for a model that fills them by name."""

    def reset_parameters(self) -> None:
        """Draw nothing: the global generator is not ours."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x W' + b [..., rows] of x [..., C]."""
        if self.bias is not None and compiling_for_cpu(x):
            return add_bias(F.linear(x, self.weight), self.bias)
        return super().forward(x)


class Embedding(nn.Embedding):
    """`nn.Embedding` whose values are left unset, for a model that fills them by name."""

    def reset_parameters(self) -> None:
        """Draw nothing: the global generator is not ours."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the rows of `tokens` [...]: [..., C]."""
        if torch.compiler.is_compiling() and self.weight.is_cuda:
            return rows(self.weight, tokens)
        return super().forward(tokens)


@torch.no_grad()
def normal_(tensor: Tensor, std: float, seed: int, name: str) -> Tensor:
    """Fill `tensor` in place from N(0, std²) with the stream of `name`; std 0 fills with zeros."""
    if std == 0.0:
        return tensor.zero_()
    generator = torch.Generator(tensor.device).manual_seed(derive(seed, "init", name))
    return tensor.normal_(0.0, std, generator=generator)


def fill_(model: nn.Module, seed: int, *, branches: int, zero: bool = False) -> None:
    """Fill all parameters: matrices from N(0, 0.02), weights of norms with 1, other vectors with 0.

    Matrices that write into the residual stream are scaled by 1/sqrt(branches), the number of
    branches that add up there, as in GPT-2; with `zero` they are zeros.
    """
    scaled = 0.0 if zero else 0.02 / branches**0.5
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            residual = name.endswith((".out.weight", ".down.weight"))
            normal_(parameter, scaled if residual else 0.02, seed, name)
        else:
            nn.init.constant_(parameter, float("norm" in name and name.endswith("weight")))
