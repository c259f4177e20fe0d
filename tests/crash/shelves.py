"""A play with the cache of shards: read files elsewhere, in an order that needs room again and again."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path
from typing import Any

from surefoot.data import shelf as room
from surefoot.data.shelf import Item, Shelf

__all__ = ["COUNT", "LIMIT", "SIZE", "content", "read_shelf", "wrong_on"]

COUNT, SIZE = 6, 1000  # files elsewhere, and bytes of each
LIMIT = 3 * SIZE + 500


def content(number: int) -> bytes:
    """Return what file `number` holds."""
    return random.Random(number).randbytes(SIZE)


def read_shelf(folder: str, *, reads: int = 24, ahead: bool = False) -> dict[str, Any]:
    """Read files in a fixed order, a few pieces each; `ahead`, others are fetched meanwhile."""
    room._PIECE = 300
    shelf, draw = Shelf(Path(folder), LIMIT), random.Random(1)
    items = [_item(number) for number in range(COUNT)]
    for turn in range(reads):
        item = items[draw.randrange(COUNT)]
        if ahead and turn % 4 == 0:
            shelf.expect(draw.sample(items, 3))
        with shelf.open(item) as handle:
            assert os.pread(handle, 2 * SIZE, 0) == content(int(item.title)), item.title
    shelf.settle()
    return {"fetched": shelf.fetched}


def _item(number: int) -> Item:
    whole = content(number)
    return Item(str(number), hashlib.sha256(whole).hexdigest(), SIZE, lambda a, b: whole[a:b])


def wrong_on(folder: Path) -> str | None:
    """Return what is wrong with a shelf that a dead process left; None: nothing."""
    if not folder.exists():
        return None
    taken, wrong = 0, []
    for path in folder.iterdir():
        if path.suffix == ".bin":
            taken += path.stat().st_size
            if hashlib.sha256(path.read_bytes()).hexdigest() != path.stem:
                wrong.append(f"{path.name} is not what its name says")
        elif path.suffix == ".part":
            taken += int(path.stem.partition("-")[2])
        elif path.name != ".lock":
            wrong.append(f"left over {path.name}")
    if taken > LIMIT:
        wrong.append(f"{taken} bytes of {LIMIT}")
    return ", ".join(wrong) or None
