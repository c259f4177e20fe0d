"""The pictures of a run as a page shows them: by name, beside each other, some of each over time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surefoot.track.reading import Row, read_rows
from surefoot.track.text import clean, real

__all__ = ["gallery"]

FRAMES = 16  # of one picture over time, at most
ROOM = 60_000  # characters of all pictures together
_KINDS = {  # what each kind must have, so that a page can be drawn from any file
    "bars": ("labels", "values"),
    "grid": ("rows", "columns", "values"),
    "table": ("head", "rows"),
    "points": ("x", "y"),
}
_AWAY = frozenset(("learner", "segment", "time", "name"))


def gallery(path: Path) -> list[dict[str, Any]]:
    """Return `{"name", "learners": [{"learner", "frames"}]}` for each name in a `pictures.jsonl`.

    Frames are evenly spread, the newest is among them, and all together they stay small.
    """
    found: dict[str, dict[str, list[Row]]] = {}
    for row in read_rows(path):
        if all(isinstance(row.get(key), list) for key in _KINDS.get(str(row.get("kind")), ("?",))):
            learners = found.setdefault(str(row.get("name")), {})
            learners.setdefault(str(row.get("learner", "main")), []).append(row)
    room = ROOM // max(1, sum(map(len, found.values())))
    return [
        {
            "name": clean(name),
            "learners": [
                {"learner": clean(learner), "frames": _few(rows, room)}
                for learner, rows in learners.items()
            ],
        }
        for name, learners in found.items()
    ]


def _few(rows: list[Row], room: int) -> list[dict[str, Any]]:
    """Return as many frames as there is room for; the newest one in any case."""
    last = _frame(rows[-1])
    count = min(FRAMES, len(rows), max(1, room // len(json.dumps(last))))
    if count == 1:
        return [last]
    places = [place * (len(rows) - 1) // (count - 1) for place in range(count)]
    return [*(_frame(rows[place]) for place in places[:-1]), last]


def _frame(row: Row) -> dict[str, Any]:
    kept = {key: _short(value) for key, value in row.items() if key not in _AWAY}
    return {**kept, "step": int(real(row.get("step")) or 0)}


def _short(value: Any) -> Any:
    """Return texts that are safe to show, and numbers of three digits."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_short(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _short(item) for key, item in value.items()}
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        rounded = float(f"{value:.3g}")
        return int(rounded) if rounded.is_integer() else rounded
    return value
