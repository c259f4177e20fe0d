"""How long rows may be at a place: one line of what `surefoot plan` offers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Tier"]


@dataclass(frozen=True)
class Tier:
    """Rows of `context` tokens at a place: what they need beside the settings, and whether it fits.

    `number` counts tiers from 1, rows of 4,096 tokens (fewer where a base takes no more). `bytes` are those on the card, `host` those that wait beside it, `time` seconds a row (None:
    nobody knows). `settings` are those that it takes beside what is set. `trained` is the longest
    row that the base was trained on, None where its folder does not say.
    """

    context: int
    bytes: int
    host: int
    room: int
    time: float | None
    settings: Mapping[str, Any]
    trained: int | None

    @property
    def number(self) -> int:
        """1 for rows of up to 4,096 tokens, 2 for twice as many."""
        return max(1, self.context.bit_length() - 12)

    @property
    def known(self) -> bool | None:
        """Whether the base was trained on such rows."""
        return None if self.trained is None else self.context <= self.trained

    @property
    def fits(self) -> bool:
        """Whether there is room on the card."""
        return self.bytes <= self.room
