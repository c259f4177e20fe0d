"""Operations that can be computed in more than one way, and the ways there are.

Each operation is an `Op` with a *reference* in plain torch, which is the specification, and other
ways to get the same numbers within a declared tolerance. A caller names a way and gets exactly
that one, or an error that says why not: nothing here falls back, chooses or times anything.
"""

from __future__ import annotations

from surefoot.ops.attention import ATTENTION
from surefoot.ops.cross_entropy import CROSS_ENTROPY
from surefoot.ops.way import Op, Way

__all__ = ["ATTENTION", "CROSS_ENTROPY", "OPS", "Op", "Way"]

OPS: dict[str, Op] = {op.name: op for op in (ATTENTION, CROSS_ENTROPY)}
