"""What a card does differently from the processor on which its steps are played."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from surefoot.nn import lean
from surefoot.ops import cross_entropy

__all__ = ["WIDENED", "as_on_card"]

# Where autocast of CUDA widens what it is given, and that of a processor does not.
WIDENED = (
    "pow", "__pow__", "rsqrt", "reciprocal", "exp", "expm1", "log", "log1p", "logsumexp", "softplus",
    "tan", "sinh", "cosh", "group_norm", "layer_norm",
)  # fmt: skip
_HALVES = (torch.float16, torch.bfloat16)


@contextmanager
def as_on_card(processors: int) -> Iterator[None]:
    """Within the block a play takes the pieces, types and copies of a card with so many multiprocessors.

    0 stands for one without flash attention.
    """

    def taken(key: Tensor, frugal: bool = False) -> bool:
        half = key.dtype in _HALVES or torch.is_autocast_enabled("cpu")
        return half and processors > 0 and not frugal

    with ExitStack() as stack:
        pieces = cross_entropy.pieces(on_processor=False)
        stack.enter_context(mock.patch.object(cross_entropy, "pieces", return_value=pieces))
        stack.enter_context(mock.patch.object(lean, "takes_shared", taken))
        stack.enter_context(_Widening())
        yield


class _Widening(TorchFunctionMode):
    """Does to the arguments of some functions what autocast of CUDA does."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in WIDENED and torch.is_autocast_enabled("cpu"):
            args = tuple(_wide(x) for x in args)
        return func(*args, **(kwargs or {}))


def _wide(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype in _HALVES else x
