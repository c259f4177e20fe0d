"""Operations that can be computed in more than one way, and the ways there are.

Each operation is an `Op` with a *reference* in plain torch, which is the specification, and other
ways to get the same numbers within a declared tolerance. A caller names a way and gets exactly
that one, or an error that says why not: nothing here falls back or chooses.
"""

from __future__ import annotations

from surefoot.ops.adamw import ADAMW
from surefoot.ops.attention import ATTENTION
from surefoot.ops.cross_entropy import CROSS_ENTROPY
from surefoot.ops.keyed_dropout import KEYED_DROPOUT
from surefoot.ops.norm import NORM
from surefoot.ops.orthogonalise import ORTHOGONALISE
from surefoot.ops.rotary import ROTARY
from surefoot.ops.slots import Slot, slots
from surefoot.ops.squared_relu import SQUARED_RELU
from surefoot.ops.swiglu import SWIGLU
from surefoot.ops.way import Op, Way
from surefoot.ops.within import WITHIN

__all__ = [
    "ADAMW",
    "ATTENTION",
    "CROSS_ENTROPY",
    "KEYED_DROPOUT",
    "NORM",
    "OPS",
    "ORTHOGONALISE",
    "ROTARY",
    "SQUARED_RELU",
    "SWIGLU",
    "WITHIN",
    "Op",
    "Slot",
    "Way",
    "slots",
]

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        ATTENTION, CROSS_ENTROPY, NORM, ROTARY, SWIGLU, SQUARED_RELU, KEYED_DROPOUT, ADAMW,
        ORTHOGONALISE, WITHIN,
    )
}  # fmt: skip
