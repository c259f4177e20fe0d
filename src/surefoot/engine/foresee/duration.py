"""How long a predicted step takes, by what the device reaches at most."""

from __future__ import annotations

from collections.abc import Sequence

from surefoot.engine.auto.ceilings import Ceilings
from surefoot.engine.auto.ledger import Work
from surefoot.engine.foresee.predict import Need

__all__ = ["seconds"]

_LARGE = 3 * 2**24  # bytes from which a tensor is new memory


def seconds(need: Need, ceilings: Ceilings) -> float:
    """Return the seconds of a step: each operation is bound by arithmetic, or by moving its bytes."""
    passes = need.examples / need.micro
    return passes * _sum(need.passes, ceilings) + _sum(need.updates, ceilings)


def _sum(works: Sequence[Work], ceilings: Ceilings) -> float:
    rates = {"fp32": ceilings.fp32, "half": ceilings.half}

    def moving(nbytes: int) -> float:
        return nbytes / (ceilings.usual if nbytes < _LARGE else ceilings.fresh)

    busy = sum(max(work.flops / rates[work.dtype], moving(work.nbytes)) for work in works)
    starts = ceilings.start * len(works)
    return max(busy, starts) if ceilings.ahead else busy + starts
