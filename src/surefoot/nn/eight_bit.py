"""AdamW whose moments are held in 8 bits, on CUDA: a quarter of the memory that they take in fp32.

Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (2021). The update is that of
`bitsandbytes`; the state is ours, so that it is saved and restored by name like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from surefoot.errors import Unsupported
from surefoot.nn.optimiser import AdamW, Optimiser, groups_of
from surefoot.nn.pretend import pretending

__all__ = ["AdamW8bit", "in_eight_bits"]

_BLOCK = 256  # numbers that share a scale
_SMALL = 4096  # numbers below which a tensor's moments stay in fp32


def in_eight_bits(optimisers: Iterable[Optimiser], device: torch.device) -> list[Optimiser]:
    """Return `optimisers` with AdamW's moments in 8 bits where a parameter is not too small for it.

    Raises Unsupported where they cannot be computed.
    """
    if device.type != "cuda" and not pretending():
        what = f"moments of 8 bits are computed on CUDA only, not on {device.type}"
        raise Unsupported(what, where="memory.moments", fix="--moments fp32")
    if find_spec("bitsandbytes") is None:
        what = "moments of 8 bits take bitsandbytes, which is not installed"
        raise Unsupported(what, fix='pip install "surefoot[code]", or --moments fp32')
    found: list[Optimiser] = []
    for optimiser in optimisers:
        if not isinstance(optimiser, AdamW):
            found.append(optimiser)
            continue
        for kind, large in ((AdamW8bit, True), (AdamW, False)):
            groups = [
                {**g, "params": params}
                for g in optimiser.param_groups
                if (params := [p for p in g["params"] if (p.numel() >= _SMALL) == large])
            ]
            if groups:
                found.append(kind(groups))
    return found


class AdamW8bit:
    """AdamW with `state1` and `state2` u8 for each parameter, and a scale of each block of 256."""

    def __init__(self, params: Iterable[Mapping[str, Any]]) -> None:
        self.param_groups = groups_of(params)
        for group in self.param_groups:
            group["fused"] = False
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self._codes: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def step(self) -> None:
        """Apply one update from the gradients at hand."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state.get(parameter) or self._begin(parameter)
        state["step"] += 1
        if pretending():
            return
        signed, unsigned = self._tables(parameter.device)
        beta1, beta2 = group["betas"]
        update: Any = torch.ops.bitsandbytes.optimizer_update_8bit_blockwise
        update(
            "adam", parameter.grad, parameter, state["state1"], state["state2"], beta1, beta2,
            0.0, 0.0, group["eps"], int(state["step"]), group["lr"], signed, unsigned,
            state["absmax1"], state["absmax2"], group["weight_decay"], 1.0, False,
        )  # fmt: skip

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        blocks = -(-parameter.numel() // _BLOCK)
        scale = torch.zeros(blocks, device=parameter.device)
        whole = torch.zeros_like(parameter, dtype=torch.uint8)
        state = {
            "step": torch.zeros((), dtype=torch.float32, device="cpu"),
            "state1": whole, "state2": whole.clone(), "absmax1": scale, "absmax2": scale.clone(),
        }  # fmt: skip
        self.state[parameter] = state
        return state

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the numbers that 8 bits stand for, with and without a sign."""
        if self._codes is None:
            from bitsandbytes.functional import create_dynamic_map

            signed, unsigned = (create_dynamic_map(signed=s).to(device) for s in (True, False))
            self._codes = (signed, unsigned)
        return self._codes
