"""How many bytes a step moves through a card's memory, as predicted; with its time, the bandwidth.

No card tells how much it read and wrote. What its operations must read and write is known from a step
that is played without contents (`predict`), once for a question, and kept with the other answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from surefoot.config.schema import RunConfig
from surefoot.engine.auto.fit import Pins, usable_cores
from surefoot.engine.auto.known import question, recall, remember
from surefoot.engine.rebuild import Buildable
from surefoot.engine.world import World

if TYPE_CHECKING:  # which load torch's compiler
    from surefoot.engine.auto.ledger import Work
    from surefoot.engine.foresee.predict import Need

__all__ = ["foreseen", "moved"]


def foreseen(
    recipe: Buildable, config: RunConfig, pins: Pins, source: str, world: World, cache: Path | None
) -> tuple[int, float] | None:
    """Return the bytes that a step moves, and how many a second the device moves at most.

    None where nobody watches a card, where several share a step, or where the step cannot be played.
    """
    if world.device.type != "cuda" or world.size > 1 or not config.track.monitor or cache is None:
        return None
    from surefoot.engine.auto.ceilings import measured

    what = f"traffic {pins.precision} {pins.micro_batch_size} {pins.compile}"
    asked = f"{what} {question(config, source, (), world.device, usable_cores())}"
    known = recall(cache, asked)
    if known is None:
        known = {"moved": _played(recipe, config, pins)}
        remember(cache, asked, known)
    if known["moved"] is None:
        return None
    ceilings = measured(cache.with_name("ceilings.json"), device=world.device)
    return int(known["moved"]), ceilings.bandwidth


def _played(recipe: Buildable, config: RunConfig, pins: Pins) -> int | None:
    from surefoot.engine.foresee.outlook import playable
    from surefoot.engine.foresee.predict import predict

    try:
        need = predict(recipe, config, playable(pins), micro=pins.micro_batch_size)
    except Exception:  # a recipe of one's own may ask for contents, and a run needs no such figure
        return None
    return moved(need, pins.compile)


def moved(need: Need, compiled: bool) -> int:
    """Return the bytes that the operations of a whole step read and write.

    A compiler keeps what lies between products from memory, so where it works only products, attention
    and updates count: so many bytes at least.
    """
    passes = [work for work in need.passes if work.flops] if compiled else need.passes
    return _bytes(passes) * need.examples // need.micro + _bytes(need.updates)


def _bytes(works: Sequence[Work]) -> int:
    return sum(work.nbytes for work in works)
