"""Who takes what, and in which order it is added: the same for any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest

from surefoot.data.batch import Data
from surefoot.data.prefetch import Prefetch
from surefoot.engine.ranks.tree import Span, Tree, share, tree


@pytest.mark.parametrize("size", range(1, 10))
@pytest.mark.parametrize("pieces", [1, 7, 8, 9, 16, 100])
def test_shares_are_everything_once_and_even(size: int, pieces: int) -> None:
    shares = [share(pieces, rank, size) for rank in range(size)]
    assert [i for mine in shares for i in mine] == list(range(pieces))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert pieces < size or all(shares)


@pytest.mark.parametrize("size", range(1, 10))
def test_the_same_examples_each_step_for_any_number_of_ranks(toy: object, size: int) -> None:
    """Micro-batches are shared out and never split, so a step has the same examples."""
    data = Data(toy, 1, 24)  # type: ignore[arg-type]
    for step in (0, 1, 2, 1_000_000_007):
        found = [
            data.address(step, 2 * piece, 2)[0]
            for rank in range(size)
            for piece in share(12, rank, size)
        ]
        assert np.array_equal(np.concatenate(found), data.address(step)[0])


@pytest.mark.parametrize("leaves", [1, 2, 3, 5, 8, 12, 31])
@pytest.mark.parametrize("size", range(1, 10))
def test_a_sum_has_one_order_for_any_number_of_ranks(leaves: int, size: int) -> None:
    whole = _words(Tree(leaves), {(i, i + 1): f"{i}" for i in range(leaves)})
    nodes: dict[Span, str] = {}
    for rank in range(size):
        mine = share(leaves, rank, size)
        for low, high in tree(leaves).cover(mine.start, mine.stop):
            assert mine.start <= low < high <= mine.stop  # it can be added without the others
            nodes[low, high] = _inside(tree(leaves), low, high)
    assert _words(tree(leaves), nodes) == whole


def test_each_right_child_knows_its_left_one() -> None:
    assert Tree(5).siblings == {(3, 5): (0, 3), (2, 3): (0, 2), (1, 2): (0, 1), (4, 5): (3, 4)}


def test_prefetching_follows_the_share_of_a_rank(toy: object) -> None:
    data = Data(toy, 1, 8)  # type: ignore[arg-type]
    with Prefetch(data, 1, 4, lambda count: share(count, 1, 3)) as ahead:
        ahead.batch(0, 2, 1)  # of 8 pieces, rank 1 of 3 has 2, 3 and 4
        assert list(ahead._waiting) == [(0, 3, 1), (0, 4, 1), (1, 2, 1), (1, 3, 1)]


def _inside(order: Tree, low: int, high: int) -> str:
    leaves = {(i, i + 1): f"{i}" for i in range(low, high)}
    return order._fold((low, high), leaves, lambda a, b: f"({a}+{b})")


def _words(order: Tree, nodes: dict[Span, str]) -> str:
    return order.fold(nodes, lambda a, b: f"({a}+{b})")
