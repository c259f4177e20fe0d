"""Count the layers of a deep model from plays of a few: memory and work grow by the same with each.

A step is cut into phases (forward, two halves of backward, update), for within each the same layer
decides the peak however many there are; so each phase is a straight line in the number of layers,
and the peak is that of the highest. That it is straight is looked at and not assumed; where it is not,
one layer more is played: in the shallowest models, a phase may end before its usual peak.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from surefoot.config.fields import changed, flatten
from surefoot.config.schema import RunConfig
from surefoot.engine.rebuild import Buildable

if TYPE_CHECKING:
    from surefoot.engine.auto.ledger import Work
    from surefoot.engine.foresee.predict import Need

__all__ = ["PLAYED", "TRIED", "WORTH", "depth_of", "shallow", "stretch"]

_LAYERS = "model.num_layers"
PLAYED = (1, 2, 3)  # layers that are played first
TRIED = 4  # times that more are played, one after the other, until the line is straight
WORTH = 12  # layers from which on that is less work than to play all


def depth_of(recipe: Buildable, config: RunConfig) -> int | None:
    """Return how many equal layers the model has, None where nobody says so.

    A recipe may say it (`depth`); it then builds as many as the world's `layers` tell, if they do.
    """
    told = getattr(recipe, "depth", None)
    if told is not None:
        found: int | None = told(config)
        return found
    flat = flatten(config)
    own = [path for path in flat if path.startswith("learners.") and path.endswith("num_layers")]
    value = flat.get(_LAYERS)
    return value if isinstance(value, int) and not own else None


def shallow(config: RunConfig, layers: int | None) -> RunConfig:
    """Return `config` with another number of layers, where it says how many there are."""
    if layers is None or _LAYERS not in flatten(config):
        return config
    return changed(config, {_LAYERS: layers})


def stretch(few: Sequence[Need], played: int, depth: int) -> Need | None:
    """Return what `depth` layers need, from three plays, each a layer deeper; the last had `played`.

    None where it is no straight line.
    """
    before, last = few[-2:]
    if len({len(need.phases) for need in few}) > 1:
        return None
    more = depth - played
    lines = list(zip(before.phases, last.phases))
    peak, index = max((b[0] + more * (b[0] - a[0]), i) for i, (a, b) in enumerate(lines))
    sizes = [need.phases[index][0] for need in few]
    if sizes[2] - sizes[1] != sizes[1] - sizes[0]:
        return None
    ahead = _Ahead(more)
    parts = ahead.parts(*(pair[1] for pair in lines[index]))
    if sum(parts.values()) != peak:
        return None
    return replace(
        last,
        peak=peak,
        parts=parts,
        state=ahead.number(before.state, last.state),
        weights=ahead.number(before.weights, last.weights),
        parameters=ahead.parts(before.parameters, last.parameters),
        passes=ahead.works(before.passes, last.passes),
        updates=ahead.works(before.updates, last.updates),
        host=ahead.number(before.host, last.host),
        phases=[(ahead.number(a[0], b[0]), ahead.parts(a[1], b[1])) for a, b in lines],
    )


class _Ahead:
    """Goes on from two values as far as `more` layers are away."""

    def __init__(self, more: int) -> None:
        self.more = more

    def number(self, before: int, last: int) -> int:
        return last + self.more * (last - before)

    def parts(self, before: Mapping[str, int], last: Mapping[str, int]) -> dict[str, int]:
        return {name: self.number(before[name], value) for name, value in last.items()}

    def works(self, before: list[Work], last: list[Work]) -> list[Work]:
        """Return the operations of `last`: either each grew by a layer, or some came for it."""
        if len(before) == len(last):  # one operation for the matrices of all layers
            return [self._grown(a, b) for a, b in zip(before, last)]
        had, has = Counter(before), Counter(last)
        return [w for work in has for w in [work] * max(0, self.number(had[work], has[work]))]

    def _grown(self, a: Work, b: Work) -> Work:
        flops, nbytes = self.number(a.flops, b.flops), self.number(a.nbytes, b.nbytes)
        return replace(b, flops=max(0, flops), nbytes=max(0, nbytes))
