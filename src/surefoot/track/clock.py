"""Seconds of training at each row: pauses between processes do not count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surefoot.track.reading import History, Row
from surefoot.track.text import real

__all__ = ["Clock"]


class Clock:
    """Maps a row to the seconds trained until then.

    Each process counts from its first row on; the steps before that row are taken to have been
    as fast as the others.
    """

    def __init__(self, history: History, meta: Mapping[str, Any]) -> None:
        spans: dict[int, list[tuple[float, int]]] = {}  # segment -> (moment, step) of first, last
        for rows in [*history.train.values(), *history.eval.values()]:
            for row in rows:
                moment, segment, step = real(row.get("time")), row.get("segment"), row.get("step")
                if moment is None or not isinstance(segment, int) or not isinstance(step, int):
                    continue
                ends = spans.setdefault(segment, [(moment, step)] * 2)
                spans[segment] = [min(ends[0], (moment, step)), max(ends[1], (moment, step))]
        trained = sum(last[1] - first[1] for first, last in spans.values())
        whole = sum(last[0] - first[0] for first, last in spans.values())
        pace = whole / trained if trained > 0 else 0.0
        self._origin: dict[int, float] = {}  # segment -> moment at which its clock shows zero
        passed = 0.0
        for segment in sorted(spans):
            (begun, step), (ended, _) = spans[segment]
            begun -= max(0, step - _first(meta, segment)) * pace
            self._origin[segment] = begun - passed
            passed += ended - begun
        self.total = passed

    def __call__(self, row: Row) -> float:
        """Return the seconds trained at `row`; 0 where it does not tell its time."""
        moment, segment = real(row.get("time")), row.get("segment")
        if moment is None or segment not in self._origin:
            return 0.0
        return max(0.0, moment - self._origin[segment])


def _first(meta: Mapping[str, Any], segment: int) -> int:
    segments = meta.get("segments")
    if (
        isinstance(segments, list)
        and segment < len(segments)
        and isinstance(segments[segment], dict)
    ):
        return int(real(segments[segment].get("step")) or 0)
    return 0
