"""A kernel of your own, in one file: RMSNorm by way of torch's vector norm.

    surefoot ops check examples/own_kernel.py          # is it right?
    surefoot ops examples/own_kernel.py                # is it fast?
    surefoot parity charlm --preset tiny --b ops.norm=examples/own_kernel.py
    surefoot train charlm --norm examples/own_kernel.py

The run keeps the path and a hash of this file; a resume with another file is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from surefoot.ops import Way


def rms_norm(x: Tensor, weight: Tensor, eps: float, kind: torch.dtype) -> Tensor:
    """x [..., C], weight [C] -> weight x / rms(x) of type `kind`, in fp32 or wider."""
    wide = x if x.dtype == torch.float64 else x.float()
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    rms = (norm.square() / x.size(-1) + eps).sqrt()
    return (wide / rms * weight).to(kind)


ways = {"norm": Way(rms_norm, tolerance=1e-5)}
