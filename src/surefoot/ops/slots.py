"""Where a model or an optimiser calls an operation: the places where its way can be exchanged.

Whoever calls an operation says so in a class attribute `kernels`, which maps the attribute that
holds the callable to the operation: `kernels = {"compute": NORM}`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from surefoot.ops.way import Op

__all__ = ["Slot", "slots"]


@dataclass(frozen=True)
class Slot:
    """One attribute of one module or optimiser that holds a way of an operation."""

    owner: Any
    attribute: str
    op: Op

    @property
    def call(self) -> Callable[..., Any]:
        """What is called there now."""
        found: Callable[..., Any] = getattr(self.owner, self.attribute)
        return found

    def put(self, call: Callable[..., Any]) -> None:
        """Let `call` be called there from now on."""
        setattr(self.owner, self.attribute, call)


def slots(owners: Iterable[Any]) -> Iterator[Slot]:
    """Yield the slots of models, with all that is in them, and of optimisers."""
    for owner in owners:
        for part in owner.modules() if isinstance(owner, nn.Module) else (owner,):
            for attribute, op in getattr(part, "kernels", {}).items():
                yield Slot(part, attribute, op)
