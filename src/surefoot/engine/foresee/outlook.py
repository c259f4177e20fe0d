"""What a run will take at a place, whether it fits, and what one could change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from surefoot.config.fields import changed, flatten
from surefoot.config.schema import RunConfig
from surefoot.engine.auto import fit
from surefoot.engine.auto.fit import Pins
from surefoot.engine.foresee.cards import Place
from surefoot.engine.foresee.duration import seconds
from surefoot.engine.foresee.predict import Known, Need, predict
from surefoot.engine.own import pinned
from surefoot.engine.rebuild import Buildable
from surefoot.errors import SurefootError

__all__ = ["Change", "Outlook", "asked_ways", "changes", "cut", "look_ahead", "playable", "rescue"]

_SURE = 1.03  # of the room: what is guessed to take more is not played
_HALVED = ("model.context", "model.num_layers", "model.d_model", "train.batch_size")


@dataclass(frozen=True)
class Outlook:
    """A prediction at a place: bytes by part (with what is beside the tensors), seconds a step."""

    need: Need
    place: Place
    parts: Mapping[str, int]
    step: float | None
    pins: Pins
    disk: int
    timed: bool = False  # whether `step` was measured
    known: Known = field(default_factory=Known, repr=False, compare=False)

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether there is room."""
        return self.total <= self.place.room

    @property
    def time(self) -> float | None:
        """Seconds to the end, None where there is no end or no estimate."""
        steps = self.need.steps
        return None if self.step is None or steps is None else self.step * steps


@dataclass(frozen=True)
class Change:
    """Settings that could be changed, and the outlook with them."""

    settings: Mapping[str, Any]
    outlook: Outlook


def look_ahead(
    recipe: Buildable,
    config: RunConfig,
    place: Place,
    cache: Path | None,
    known: Known | None = None,
) -> Outlook:
    """Return the outlook of `config`, in the largest pieces of its batch that fit.

    The batch, and so the result, stays the same however it is cut; where not even one example at
    a time fits, that is returned. Where `cache` knows what this machine takes for this very run,
    its choices and its time are taken instead. `known` are steps of `recipe` that were played before.
    """
    known = Known() if known is None else known
    found = _search(recipe, config, place, known)
    if place.device is None or cache is None:
        return found
    need, device = found.need, torch.device(place.device)
    told = fit.earlier(config, need.source, need.parameters, device, cache)
    if told is None:
        return found
    pins, step = playable(told[0]), told[1]
    found = _at(recipe, config, place, pins, pins.micro_batch_size, known)
    past = place.overhead
    return replace(found, step=step * (past.time if past else 1.0), timed=True)


def playable(pins: Pins) -> Pins:
    """Return `pins` as they can be played on a processor: without kernels that only a card runs."""
    ways = {op: way for op, way in pins.ops.items() if way not in ("triton", "compile")}
    return replace(pins, device="cpu", ops=ways)


def _search(recipe: Buildable, config: RunConfig, place: Place, known: Known) -> Outlook:
    """Return the outlook with the largest pieces that fit, else with the smallest."""
    asked, batch = config.machine.micro_batch_size, config.train.batch_size
    sizes = [d for d in range(batch, 0, -1) if batch % d == 0]
    if asked != "auto":
        sizes = [int(asked)]
    low, high = 0, len(sizes) - 1  # sizes fall, so what fits lies at the end
    over = _at(recipe, config, place, None, sizes[0], known)
    if over.fits or len(sizes) == 1:
        return over
    best = _at(recipe, config, place, None, sizes[-1], known)
    if not best.fits:
        return best
    while high - low > 1:  # sizes[low] does not fit, sizes[high] does
        guessed = [_between(best, over, size) for size in sizes[low + 1 : high]]
        likely = [n for n, total in enumerate(guessed) if total <= place.room]
        if not likely and guessed[-1] > _SURE * place.room:
            break
        middle = low + 1 + likely[0] if likely else high - 1
        found = _at(recipe, config, place, None, sizes[middle], known)
        if found.fits:
            high, best = middle, found
        else:
            low, over = middle, found
    return best


def _between(small: Outlook, large: Outlook, micro: int) -> float:
    """Return about how many bytes pieces of `micro` need, from smaller and larger ones that were played.

    Each phase of a step is nearly a straight line in the size of the pieces; the highest counts.
    """
    a, b = small.need, large.need
    share = (micro - a.micro) / (b.micro - a.micro)
    pairs = [(x[0], y[0]) for x, y in zip(a.phases, b.phases)]
    if len(a.phases) != len(b.phases):
        pairs = [(a.peak, b.peak)]
    peak = max(x + share * (y - x) for x, y in pairs)
    return peak * (1 + small.place.fragments) + sum(small.place.extra.values())


def _at(
    recipe: Buildable, config: RunConfig, place: Place, pins: Pins | None, micro: int, known: Known
) -> Outlook:
    asked = config.machine.precision
    if pins is None:
        precision = place.precision if asked == "auto" else asked
        pins = Pins("cpu", precision=precision, ops=asked_ways(config))
    need = predict(
        recipe, config, pins, micro=micro, block=place.block, processors=place.processors, known=known
    )  # fmt: skip
    parts = dict(need.parts)
    parts["fragments"] = round(need.peak * place.fragments)
    parts |= place.extra
    step = seconds(need, place.ceilings) if place.ceilings else None
    disk = need.state * (config.keep.last + 1) + need.weights * config.keep.best
    return Outlook(need, place, parts, step, pins, disk, known=known)


def changes(recipe: Buildable, config: RunConfig, now: Outlook) -> Iterator[Change]:
    """Yield what could be changed for less memory or time, one thing at a time.

    Pieces of the batch stay as they are, so that effects can be compared.
    """
    for settings in _ideas(config, now):
        found = _try(recipe, config, now, settings)
        if found is not None and (
            found.need.peak < 0.99 * now.need.peak or (found.step or 0) < 0.99 * (now.step or 0)
        ):
            yield Change(settings, found)


def rescue(recipe: Buildable, config: RunConfig, now: Outlook) -> Change | None:
    """Return the smallest change that fits where `now` does not: the one that keeps most of the model."""
    flat = flatten(config)
    ideas: list[dict[str, Any]] = [*_ideas(config, now)]
    for path in _HALVED[:3]:
        value = flat.get(path)
        while isinstance(value, int) and value > 1 and value % 2 == 0:
            value //= 2
            ideas.append({path: value})
    for settings in ideas:
        found = _try(recipe, config, now, settings)
        if found is not None and found.fits:
            return Change(settings, found)
    return None


def _ideas(config: RunConfig, now: Outlook) -> Iterator[dict[str, Any]]:
    flat = flatten(config)
    if now.need.micro > 1:
        micro = max(d for d in range(1, now.need.micro) if now.need.micro % d == 0)
        yield {"machine.micro_batch_size": micro}
    if now.need.parts["loss"] > 0.05 * now.total and config.ops.cross_entropy == "auto":
        yield {"ops.cross_entropy": "chunked"}
    if flat.get("memory.checkpointing") is False:
        yield {"memory.checkpointing": True}
    if now.pins.precision == "fp32":
        yield {"machine.precision": "bf16"}
    if config.optim.kind == "adamw":
        yield {"optim.kind": "muon"}
    if config.train.ema is not None:
        yield {"train.ema": None}
    for path in _HALVED:
        value = flat.get(path)
        if isinstance(value, int) and value > 1 and value % 2 == 0:
            yield {path: value // 2}


def _try(
    recipe: Buildable, config: RunConfig, now: Outlook, settings: Mapping[str, Any]
) -> Outlook | None:
    """Return the outlook with other settings, None where they do not go together."""
    try:
        other = changed(config, settings)
        asked = other.machine.micro_batch_size
        micro = min(now.need.micro, other.train.batch_size) if asked == "auto" else int(asked)
        pins = (
            None
            if "machine.precision" in settings
            else replace(now.pins, ops={**now.pins.ops, **asked_ways(other)})
        )
        return _at(recipe, other, now.place, pins, micro, now.known)
    except (ValidationError, SurefootError):
        return None


def asked_ways(config: RunConfig) -> dict[str, str]:
    """Return the ways of operations that were asked for by name."""
    return {op: pinned(way) for op, way in config.ops.ways().items() if way != "auto"}


def cut(config: RunConfig, outlook: Outlook) -> RunConfig:
    """Return `config` with what was chosen for it written down."""
    chosen = {
        "machine.micro_batch_size": outlook.need.micro,
        "machine.precision": outlook.pins.precision,
    }
    return changed(config, chosen)
