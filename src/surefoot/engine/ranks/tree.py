"""Who takes which micro-batches, and in which order their sums are added.

Floating-point sums depend on their order, so the order is part of the run. `Tree` is one over n
leaves: halves of halves, the first never smaller. Whoever computes a contiguous range of leaves
can add up the subtrees inside it alone; only the few at its edges must meet those of others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from typing import TypeVar

__all__ = ["Span", "Tree", "share", "tree"]

T = TypeVar("T")
Span = tuple[int, int]  # leaves from the first to before the second


def share(count: int, rank: int, size: int) -> range:
    """Return which of `count` pieces are those of `rank`: contiguous, and as even as can be.

    >>> [share(7, rank, 3) for rank in range(3)]
    [range(0, 2), range(2, 4), range(4, 7)]
    """
    return range(rank * count // size, (rank + 1) * count // size)


class Tree:
    """The order in which `leaves` values are added.

    >>> Tree(5).cover(1, 5)
    [(1, 2), (2, 3), (3, 5)]
    >>> Tree(3).fold({(0, 2): "ab", (2, 3): "c"}, lambda a, b: f"({a}+{b})")
    '(ab+c)'
    """

    def __init__(self, leaves: int) -> None:
        self.leaves = leaves

    @cached_property
    def siblings(self) -> Mapping[Span, Span]:
        """Each right child, and the left one that it is added to."""
        found: dict[Span, Span] = {}
        waiting = [(0, self.leaves)]
        while waiting:
            low, high = waiting.pop()
            if high - low > 1:
                middle = _middle(low, high)
                found[middle, high] = (low, middle)
                waiting += [(low, middle), (middle, high)]
        return found

    def cover(self, low: int, high: int) -> list[Span]:
        """Return the fewest subtrees that hold the leaves from `low` to before `high`, in order."""
        return list(self._cover((0, self.leaves), low, high))

    def _cover(self, node: Span, low: int, high: int) -> list[Span]:
        a, b = node
        if b <= low or high <= a:
            return []
        if low <= a and b <= high:
            return [node]
        middle = _middle(a, b)
        return self._cover((a, middle), low, high) + self._cover((middle, b), low, high)

    def fold(self, values: Mapping[Span, T], add: Callable[[T, T], T]) -> T:
        """Return the sum of subtrees that cover all leaves; `add` may write into its first."""
        return self._fold((0, self.leaves), values, add)

    def _fold(self, node: Span, values: Mapping[Span, T], add: Callable[[T, T], T]) -> T:
        if node in values:
            return values[node]
        middle = _middle(*node)
        left = self._fold((node[0], middle), values, add)
        return add(left, self._fold((middle, node[1]), values, add))


def _middle(low: int, high: int) -> int:
    return low + (high - low + 1) // 2


@lru_cache(maxsize=64)
def tree(leaves: int) -> Tree:
    """Return the tree over this many leaves; the same object each time."""
    return Tree(leaves)
