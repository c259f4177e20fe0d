"""Matrices in 8 or 4 bits, for writing on processors, where reading weights is what takes time.

8 bits: whole numbers from -127 to 127 and one scale a row. 4 bits: sixteen steps between the least
and the largest of every 32 numbers of a row. Both round to the nearest and look at no data. The
products are torch's, with bf16 inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.errors import Unsupported

__all__ = ["Packed", "pack_"]

_GROUP, _ROWS = 32, 16  # numbers that share a scale; rows that the product takes at once


class Packed(nn.Module):
    """A linear layer whose matrix [N, C] is held in `bits` (8 or 4). Takes [..., C], gives bf16.

    Raises Unsupported where C is no multiple of what shares a scale.
    """

    def __init__(self, linear: nn.Linear, bits: int) -> None:
        super().__init__()
        self.rows, self.bits = linear.out_features, bits
        self.bias = None if linear.bias is None else linear.bias.detach().bfloat16()
        hold = _in_8 if bits == 8 else _in_4
        self.weight, self.scales = hold(linear.weight.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.size(-1)).bfloat16()
        if self.bits == 8:
            found = torch._weight_int8pack_mm(flat, self.weight, self.scales)
        else:
            product = torch.ops.aten._weight_int4pack_mm_for_cpu
            found = product(flat, self.weight, _GROUP, self.scales)[:, : self.rows]
        if self.bias is not None:
            found = found + self.bias
        return found.view(*x.shape[:-1], self.rows)


def pack_(model: nn.Module, bits: int) -> None:
    """Hold the matrices of all linear layers of `model` in 8 or 4 bits, and tables in bf16.

    The model writes from now on, and cannot be trained. Raises Unsupported for other devices than
    a processor.
    """
    if (device := next(model.parameters()).device).type != "cpu":
        raise Unsupported(
            f"weights in {bits} bits are for processors, not {device.type}",
            fix="--dtype bf16, or --device cpu",
        )
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, Packed(child, bits))
            elif isinstance(child, nn.Embedding):
                child.weight = nn.Parameter(child.weight.detach().bfloat16(), requires_grad=False)


def _in_8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = (weight.abs().amax(1) / 127).clamp_min(1e-12).bfloat16()
    return (weight / scale[:, None].float()).round_().clamp_(-127, 127).to(torch.int8), scale


def _in_4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return packed rows, and for each group bf16 [C / 32, N, 2]: a step, and the middle."""
    if weight.size(1) % _GROUP:
        raise Unsupported(
            f"4 bits need widths that are multiples of {_GROUP}, not {weight.size(1)}",
            fix="--dtype int8",
        )
    groups = F.pad(weight, (0, 0, 0, -weight.size(0) % _ROWS)).unflatten(1, (-1, _GROUP))
    low, high = groups.aminmax(dim=-1, keepdim=True)
    step = ((high - low) / 15).clamp_min(1e-12).bfloat16()
    middle = (low + 8 * step.float()).bfloat16()
    whole = ((groups - middle.float()) / step.float() + 8).round_().clamp_(0, 15)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole.flatten(1).int(), 1)
    return packed, torch.cat((step, middle), -1).transpose(0, 1).contiguous()
