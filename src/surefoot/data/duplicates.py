"""Texts that say nearly the same: found by sketches, without comparing each with each.

Broder, "On the resemblance and containment of documents" (1997): the share of equal minima of
random hashes estimates how much two sets of word sequences overlap. Sketches are cut into bands,
and only texts that agree in a whole band are compared (Leskovec et al., "Mining of Massive
Datasets", chapter 3).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

__all__ = ["near_duplicates"]

_SHINGLE = 5  # words that make one element of the set
_HASHES, _BANDS = 128, 32
_FEW = 20  # words below which two texts are alike by chance
_WORD = re.compile(r"\w+|[^\w\s]")


def near_duplicates(texts: Sequence[str], similarity: float) -> dict[int, int]:
    """Return which texts are nearly an earlier one that stays: index -> index of that one.

    Two texts are, when the estimated overlap of their sequences of five words is at least
    `similarity`. Texts of under 20 words are left alone.

    >>> a = " ".join(map(str, range(200)))
    >>> near_duplicates([a, a + " 7", "other words " * 30], 0.85)
    {1: 0}
    """
    found: dict[int, int] = {}
    kept: dict[int, NDArray[np.uint64]] = {}
    buckets: dict[tuple[int, bytes], list[int]] = {}
    for i, text in enumerate(texts):
        sketch = _sketch(text)
        if sketch is None:
            continue
        bands = [(n, part.tobytes()) for n, part in enumerate(np.split(sketch, _BANDS))]
        near = sorted({j for band in bands for j in buckets.get(band, ())})
        twin = next((j for j in near if np.mean(kept[j] == sketch) >= similarity), None)
        if twin is not None:
            found[i] = twin
            continue
        kept[i] = sketch
        for band in bands:
            buckets.setdefault(band, []).append(i)
    return found


def _sketch(text: str) -> NDArray[np.uint64] | None:
    words = _WORD.findall(text)
    if len(words) < _FEW:
        return None
    shingles = {" ".join(words[i : i + _SHINGLE]) for i in range(len(words) - _SHINGLE + 1)}
    hashes = np.array([xxhash.xxh3_64_intdigest(s.encode()) for s in shingles], dtype=np.uint64)
    minima = [_minima(hashes, part) for part in np.split(_FACTORS, 8)]
    return np.concatenate(minima)


def _minima(hashes: NDArray[np.uint64], factors: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the smallest of the hashes, mixed anew by each of `factors`."""
    with np.errstate(over="ignore"):
        mixed = hashes[:, None] * factors[None, :]
    found: NDArray[np.uint64] = (mixed ^ (mixed >> np.uint64(29))).min(0)
    return found


_FACTORS = np.random.Generator(np.random.Philox(29)).integers(
    0, 1 << 63, _HASHES, dtype=np.uint64
) * np.uint64(2) + np.uint64(1)
