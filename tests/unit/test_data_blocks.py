"""An order that needs a few blocks at a time: still every example once, and well mixed in a group."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest

from surefoot.data.blocks import BlockOrder

ENDS = np.array([7, 7, 20, 31, 32, 50, 63, 70, 90])


def order(together: int, key: int = 5) -> BlockOrder:
    return BlockOrder(lambda epoch: ENDS, together, key)


def epoch_of(made: BlockOrder, epoch: int) -> list[int]:
    place = np.arange(ENDS[-1], dtype=np.int64)
    return [int(x) for x in made(place, np.full(len(place), epoch, dtype=np.int64))]


@pytest.mark.parametrize("together", [1, 2, 4, 9, 20])
def test_every_example_once_and_a_group_at_a_time(together: int) -> None:
    for epoch in range(3):
        found = epoch_of(order(together), epoch)
        assert sorted(found) == list(range(90))
        blocks = np.searchsorted(ENDS, found, "right").tolist()
        first = list(dict.fromkeys(blocks))
        # Of blocks that are not empty, those of a group stand together.
        for start in range(len(first)):
            stretch = [i for i, block in enumerate(blocks) if block == first[start]]
            inside = set(blocks[stretch[0] : stretch[-1] + 1])
            assert len(inside) <= together


def test_any_place_is_answered_alone_and_epochs_differ() -> None:
    made, whole = order(3), epoch_of(order(3), 1)
    mixed = np.array([[3, 1], [80, 0], [3, 2], [41, 1]], dtype=np.int64)
    alone = made(mixed[:, 0], mixed[:, 1])
    assert (alone[0], alone[3]) == (whole[3], whole[41])
    assert epoch_of(order(3), 0) != epoch_of(order(3), 1) != epoch_of(order(3), 2)
    assert epoch_of(order(3), 0) != epoch_of(order(3, key=6), 0)


def test_the_blocks_of_a_group_are_mixed_evenly() -> None:
    ends = np.array([1000, 2000, 3000, 4000])
    made = BlockOrder(lambda epoch: ends, 2, 1)
    place = np.arange(4000, dtype=np.int64)
    blocks = made(place, np.zeros(4000, dtype=np.int64)) // 1000
    for half in (blocks[:2000], blocks[2000:]):
        kinds = np.unique(half)
        share = [np.mean(quarter == kinds[0]) for quarter in np.split(half, 4)]
        assert len(kinds) == 2 and 0.4 < min(share) <= max(share) < 0.6
        longest = max(len(list(run)) for _, run in groupby(half.tolist()))
        assert longest < 20
