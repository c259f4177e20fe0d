"""Reading a record back: tolerant to damage, bounded in memory, fast on millions of rows."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from surefoot.track.text import real

__all__ = [
    "Damage",
    "History",
    "Row",
    "column",
    "lines_back",
    "read_back",
    "read_history",
    "read_last",
    "read_rows",
    "squeeze",
]

SMALL = 12_000_000  # bytes of metrics.jsonl below which every row is parsed
WINDOWS = 1500  # pieces of a larger file, of which the telling rows are parsed
BLOCK = 1 << 16  # bytes
LARGEST, LATEST = 2**53, 1e11  # of a step; of seconds since 1970
NAMED = 10  # damaged lines named by number
_TRAIN = b'{"kind": "train"'
_LEARNER = re.compile(rb'"learner": "([^"]*)"')
_LOSS = re.compile(rb'"loss": ([^,}\s]+)')
_NORM = re.compile(rb'"grad_norm": ([^,}\s]+)')

Row = dict[str, Any]


@dataclass
class Damage:
    """Lines that are no row: how many, and the numbers (from 1) of the first ones."""

    count: int = 0
    lines: list[int] = field(default_factory=list)

    def add(self, line: int) -> None:
        """Count a damaged line."""
        self.count += 1
        if len(self.lines) < NAMED:
            self.lines.append(line)

    def __str__(self) -> str:
        """Name them: `2 damaged lines (17, 1201)`."""
        more = ", …" if self.count > len(self.lines) else ""
        lines = "line" if self.count == 1 else "lines"
        return f"{self.count} damaged {lines} ({', '.join(map(str, self.lines))}{more})"


def read_rows(path: Path, damage: Damage | None = None, end: int | None = None) -> Iterator[Row]:
    """Yield the rows of a JSON-lines file; damaged lines are skipped and counted in `damage`.

    A missing file has no rows. A last line without an end is being written just now: no damage.
    Lines that begin after the first `end` bytes are left out.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for number, line in enumerate(file, 1):
            if end is not None and (end := end - len(line)) < 0:
                return
            row = _parse(line, number, damage)
            if row is not None:
                yield row


def read_last(path: Path, wanted: Callable[[Row], bool] | None = None) -> Row | None:
    """Return the last whole row (that is `wanted`) without reading all of the file, or None."""
    return next((row for row in read_back(path) if wanted is None or wanted(row)), None)


def read_back(path: Path, end: int | None = None) -> Iterator[Row]:
    """Yield the whole rows of a file (of its first `end` bytes), the last first, reading as few."""
    for line in lines_back(path, end):
        row = _parse(line, 0, None)
        if row is not None:
            yield row


def lines_back(path: Path, end: int | None = None) -> Iterator[bytes]:
    """Yield the lines of a file (of its first `end` bytes) from the last to the first."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        position = file.seek(0, os.SEEK_END)
        position = position if end is None else min(end, position)
        rest = b""  # the beginning of what was read: a line whose beginning is further up
        while position > 0:
            start = max(0, position - BLOCK)
            file.seek(start)
            block = file.read(position - start) + rest
            cut = block.find(b"\n") + 1 or len(block)
            rest, whole = (block[:cut], block[cut:]) if start else (b"", block)
            position = start
            yield from reversed(whole.splitlines(keepends=True))


@dataclass
class History:
    """What a report needs of a run's rows, thinned when there are very many.

    Rows are in the order of the file. `thinned`: between the rows kept are others, none of which
    has a lower or higher loss, or a higher gradient norm, than its kept neighbours.
    """

    train: dict[str, list[Row]] = field(default_factory=dict)  # by learner
    eval: dict[str, list[Row]] = field(default_factory=dict)
    system: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    damage: Damage = field(default_factory=Damage)
    thinned: bool = False

    @property
    def learners(self) -> list[str]:
        """Names of the learners, in order of appearance."""
        return list(dict.fromkeys([*self.train, *self.eval]))

    def add(self, row: Row) -> None:
        """Sort in one row; rows of an unknown kind are left out."""
        kind, learner = row.get("kind"), str(row.get("learner", "main"))
        if kind == "train":
            self.train.setdefault(learner, []).append(row)
        elif kind == "eval":
            self.eval.setdefault(learner, []).append(row)
        elif kind == "system":
            self.system.append(row)
        elif kind == "event":
            self.events.append(row)


def read_history(path: Path, end: int | None = None) -> History:
    """Read a `metrics.jsonl` of any length (its first `end` bytes), and the `system.jsonl` beside it.

    Two million rows take seconds and few megabytes.
    """
    history = History()
    try:
        size = path.stat().st_size if end is None else end
    except FileNotFoundError:
        return history
    history.thinned = size > SMALL
    rows = (_thinned if history.thinned else read_rows)(path, history.damage, size)
    for row in chain(rows, read_rows(path.with_name("system.jsonl"), Damage())):
        history.add(row)
    return history


def column(rows: list[Row], key: str) -> tuple[list[int], list[float]]:
    """Return (steps, values) of the rows that have a number under `key`."""
    steps, values = [], []
    for row in rows:
        value, step = real(row.get(key)), row.get("step")
        if value is not None and isinstance(step, int):
            steps.append(step)
            values.append(value)
    return steps, values


def squeeze(values: list[float], points: int = 2000) -> list[int]:
    """Return the places of at most `points` values that look the same when drawn.

    Those are the lowest and highest of each piece, the first and last, and the first of each
    piece that is not finite.

    >>> squeeze([9, 1, 8, 2, 7, 50, 6, 3], 6)
    [0, 1, 5, 7]
    """
    if len(values) <= points:
        return list(range(len(values)))
    pieces = max(1, points // 2 - 1)
    chosen = {0, len(values) - 1}
    for piece in range(pieces):
        start, stop = piece * len(values) // pieces, (piece + 1) * len(values) // pieces
        chosen.update(_extremes(values, range(start, stop)))
    return sorted(chosen)


def _extremes(values: list[float], places: range) -> set[int]:
    odd = next((i for i in places if not math.isfinite(values[i])), None)
    finite = [i for i in places if math.isfinite(values[i])] if odd is not None else places
    found = (
        {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
        if finite
        else set()
    )
    return found if odd is None else found | {odd}


def _parse(line: bytes, number: int, damage: Damage | None) -> Row | None:
    try:
        row = json.loads(line)
        if isinstance(row, dict) and _placed(row):
            return row
    except ValueError:
        if not line.endswith(b"\n"):
            return None
    if damage is not None and line.strip():
        damage.add(number)
    return None


def _placed(row: Row) -> bool:
    """Whether what a row says of its place can be true; what it does not say is another matter."""
    step, segment, moment = row.get("step", 0), row.get("segment", 0), row.get("time", 0)
    whole = type(step) is int and 0 <= step < LARGEST and type(segment) is int
    dated = type(moment) in (int, float) and 0 <= moment < LATEST
    return whole and dated and type(row.get("learner", "")) is str


def _thinned(path: Path, damage: Damage, size: int) -> Iterator[Row]:
    """Yield the telling rows of each window of a large file, of its first `size` bytes."""
    window = max(BLOCK, size // WINDOWS)
    number = 0
    with path.open("rb") as file:
        while (left := size - file.tell()) > 0 and (lines := file.readlines(min(window, left))):
            for place in sorted(_telling(lines)):
                row = _parse(lines[place], number + place + 1, damage)
                if row is not None:
                    yield row
            number += len(lines)


def _telling(lines: list[bytes]) -> set[int]:
    """Return the places of the lines to parse: all but the train rows in the middle of things."""
    train = [place for place, line in enumerate(lines) if line.startswith(_TRAIN)]
    chosen = set(range(len(lines))).difference(train)
    whole = b"".join([lines[place] for place in train])
    for places in _by_learner(lines, train, whole):
        single = len(places) == len(train)
        block = whole if single else b"".join([lines[place] for place in places])
        chosen.update((places[0], places[-1]))
        chosen.update(_spikes(lines, places, block, _LOSS, (min, max)))
        chosen.update(_spikes(lines, places, block, _NORM, (max,)))
    return chosen


def _by_learner(lines: list[bytes], places: list[int], block: bytes) -> list[list[int]]:
    first = _LEARNER.search(lines[places[0]]) if places else None
    if first is not None and block.count(first[0]) == len(places):
        return [places]
    found = [_LEARNER.search(lines[place]) for place in places]
    names = [match[1] if match else b"" for match in found]
    groups: dict[bytes, list[int]] = {}
    for name, place in zip(names, places, strict=True):
        groups.setdefault(name, []).append(place)
    return list(groups.values())


def _spikes(
    lines: list[bytes],
    places: list[int],
    block: bytes,
    pattern: re.Pattern[bytes],
    ends: tuple[Callable[..., int], ...],
) -> set[int]:
    """Return the places with the extreme values, and of the first value that is no number.

    `block` are the lines of `places` in one: searched at once, which is three times as fast.
    """
    texts = pattern.findall(block)
    if len(texts) == len(places):
        try:
            known = list(map(float, texts))
            return {places[end(range(len(known)), key=known.__getitem__)] for end in ends}
        except ValueError:
            pass
    found = set()
    values: dict[int, float] = {}
    for place in places:
        match = pattern.search(lines[place])
        if match is None:
            continue
        try:
            values[place] = float(match[1])
        except ValueError:
            found.add(place)
            break
    return found | {end(values, key=values.__getitem__) for end in ends if values}
