"""The only source of randomness: every random draw is a function of the seed and a path.

Nothing random is ever stored. `derive(seed, "forward", step, position)` names a stream; whoever
knows the path can draw it again, in any process, in any order.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

__all__ = ["derive"]


@lru_cache(maxsize=64, typed=True)  # a step asks for some of its keys more than once
def derive(seed: int, *path: int | str) -> int:
    """Return 63 bits that depend on `seed` and on every element of `path`, in order.

    Keyed blake2b over a prefix-free encoding, so that no two paths collide by concatenation.

    >>> derive(1, "init") == derive(1, "init")
    True
    >>> derive(1, 2) == derive(2, 1)
    False
    >>> derive(1, "1") == derive(1, 1)
    False
    """
    text = "\x1f".join(f"s{p}" if isinstance(p, str) else f"i{p}" for p in path)
    key = (seed & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little")
    digest = blake2b(text.encode(), digest_size=8, key=key).digest()
    return int.from_bytes(digest, "little") >> 1
