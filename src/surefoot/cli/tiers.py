"""How `surefoot plan` tells how long rows may be on a card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surefoot.engine.foresee.tier import Tier

__all__ = ["document", "lines"]

_WORDS = {
    "memory.checkpointing": "checkpointing",
    "memory.mlp_tile": "tiles",
    "memory.offload": "offload",
}


def lines(found: Sequence[Tier], flags: str) -> Iterator[str]:
    """Yield the table and its verdict; `flags` are those of the largest tier that fits."""
    from surefoot.track.text import bytes_text

    yield f"{'tier':>4}{'context':>9}{'memory':>10}{'host':>10}{'a row':>10}  {'trained for':<12}with"
    for tier in found:
        host = bytes_text(tier.host) if tier.host else "-"
        known = {None: "not known", True: "yes", False: "no"}[tier.known]
        row = f"{tier.number:>4}{_short(tier.context):>9}{bytes_text(tier.bytes):>10}"
        if tier.fits:
            yield f"{row}{host:>10}{_span(tier.time):>10}  {known:<12}{_with(tier)}"
        else:
            yield f"{row}{'':>22}does not fit into {bytes_text(tier.room)}"
    yield ""
    yield _verdict(found)
    if flags:
        yield f"       {flags}"


def _verdict(found: Sequence[Tier]) -> str:
    fitting, trained = [t for t in found if t.fits], found[0].trained
    most = _short(fitting[-1].context) if fitting else f"less than {_short(found[0].context)}"
    told = f"fits   {most}"
    if trained is None:
        return f"{told}; for which rows the base was trained is not known"
    if not fitting or trained >= fitting[-1].context:
        return f"{told}; the base was trained for {_short(trained)}"
    return (
        f"{told}; the base was trained for {_short(trained)}: beyond, what it writes may be noise"
    )


def _with(tier: Tier) -> str:
    return ", ".join(_WORDS[path] for path in tier.settings) or "what is set"


def _short(tokens: int) -> str:
    return f"{tokens // 1024} K" if tokens % 1024 == 0 else f"{tokens:,}"


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def document(found: Sequence[Tier]) -> list[dict[str, Any]]:
    """Return the tiers as plain values."""
    return [
        {
            "tier": t.number, "context": t.context, "bytes": t.bytes, "host_bytes": t.host,
            "seconds": t.time, "fits": t.fits, "trained": t.known, "settings": dict(t.settings),
        }
        for t in found
    ]  # fmt: skip
