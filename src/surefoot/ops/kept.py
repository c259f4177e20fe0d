"""Small tensors that operations keep between calls, and how to forget them all.

Whoever plays a step on tensors without contents must leave none of those behind for a real step,
and must not find real ones either.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, ParamSpec, TypeVar

__all__ = ["forget", "kept"]

_Args = ParamSpec("_Args")
_Found = TypeVar("_Found")
_caches: list[Any] = []


def kept(make: Callable[_Args, _Found]) -> Callable[_Args, _Found]:
    """Return `make`, which remembers what it returned for the last eight different arguments."""
    found = lru_cache(maxsize=8)(make)
    _caches.append(found)
    return found  # type: ignore[return-value]


def forget() -> None:
    """Let every kept tensor be made anew."""
    for cache in _caches:
        cache.cache_clear()
