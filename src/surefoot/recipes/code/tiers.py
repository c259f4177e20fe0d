"""How long rows may be on a card: computed by playing steps without contents, never tabulated.

Two limits are told side by side, because neither says anything of the other: what fits into
memory, and how long the rows were that the base was trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from surefoot.config.fields import changed
from surefoot.engine.auto.fit import Pins
from surefoot.engine.foresee.cards import Place
from surefoot.engine.foresee.duration import seconds
from surefoot.engine.foresee.outlook import asked_ways
from surefoot.engine.foresee.predict import Known, predict
from surefoot.engine.foresee.tier import Tier
from surefoot.recipes import Recipe
from surefoot.recipes.code.base import most_positions, public_config
from surefoot.recipes.code.settings import CodeConfig

__all__ = ["TIERS", "chosen_context", "measures", "tiers", "trained_for"]

TIERS = tuple(1 << n for n in range(12, 19))  # 4 K to 256 K tokens
_SHORTER = (
    2048,
    1024,
    512,
    256,
    128,
    64,
)  # for machines, and bases, that the first tier is too long for
_LEARNED = ("llama3", "longrope")  # ways that bases were trained on; others are set by hand, too
_TILE, _TILES = 4096, 16  # the least tokens of a tile, and how many tiles a row has at most


def trained_for(public: Any) -> int | None:
    """Return the tokens of the rows that a base was trained on, as its configuration says it."""
    stretched = getattr(public, "rope_parameters", None) or {}
    if stretched.get("rope_type") in _LEARNED:
        stretched = {}
    told = stretched.get("original_max_position_embeddings") or getattr(
        public, "max_position_embeddings", None
    )
    return None if told is None else int(told)


def measures(config: CodeConfig, context: int) -> list[dict[str, Any]]:
    """Return what can be done to save memory beside what is set, from what costs least time on."""
    steps: list[dict[str, Any]] = [{}]
    if not config.memory.checkpointing:
        steps.append({"memory.checkpointing": True})
    if config.memory.mlp_tile is None and not config.adapter.dropout:
        steps.append({"memory.mlp_tile": max(_TILE, context // _TILES)})
    if not config.memory.offload:
        steps.append({"memory.offload": True})
    found: list[dict[str, Any]] = []
    for step in steps:
        found.append({**(found[-1] if found else {}), **step})
    return found


def tiers(recipe: Recipe, config: CodeConfig, place: Place) -> Iterator[Tier]:
    """Yield each tier with the least that makes it fit; the last one is the first that does not."""
    public, known, first = public_config(config.model.base), Known(), 0
    trained, most = trained_for(public), most_positions(public) or TIERS[-1]
    for context in [c for c in TIERS if c <= most] or [most]:
        ways = measures(config, context)
        for at in range(first, len(ways)):
            found = _tier(recipe, config, place, context, ways[at], trained, known)
            if found.fits:
                break
            first = min(at + 1, len(ways) - 1)  # what is too little here is so for longer rows
        yield found
        if not found.fits:
            return


def chosen_context(recipe: Recipe, config: CodeConfig, place: Place, most: int) -> Tier:
    """Return the largest context up to `most` that fits as things are set, and that the base knows.

    Where not even the smallest fits, that one is returned.
    """
    trained, known = trained_for(public_config(config.model.base)), Known()
    most = min(most, trained or most)
    ladder = [c for c in (*reversed(TIERS), *_SHORTER) if c <= most]
    for context in ladder or _SHORTER[-1:]:
        found = _tier(recipe, config, place, context, {}, trained, known)
        if found.fits:
            break
    return found


def _tier(
    recipe: Recipe, config: CodeConfig, place: Place, context: int, way: Mapping[str, Any],
    trained: int | None, known: Known,
) -> Tier:  # fmt: skip
    asked = {"model.context": context, "train.batch_size": 1, "machine.micro_batch_size": 1}
    peak, host, time = _played(recipe, changed(config, {**asked, **way}), place, known)
    total = round(peak * (1 + place.fragments)) + sum(place.extra.values())
    return Tier(context, total, host, place.room, time, way, trained)


def _played(
    recipe: Recipe, config: CodeConfig, place: Place, known: Known
) -> tuple[int, int, float | None]:
    """Return bytes at the peak and beside the card, and seconds a row."""
    asked = config.machine.precision
    pins = Pins(
        "cpu", precision=place.precision if asked == "auto" else asked, ops=asked_ways(config)
    )
    need = predict(
        recipe, config, pins, micro=1, block=place.block, processors=place.processors, known=known
    )  # fmt: skip
    return need.peak, need.host, seconds(need, place.ceilings) if place.ceilings else None
