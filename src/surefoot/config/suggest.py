"""Did you mean: the nearest of some names, by typing distance and by what people call things.

Plain string work, with no import that a light verb would have to pay for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from surefoot.config.names import RENAMED, SYNONYMS, VALUE_SYNONYMS

__all__ = ["nearest", "one_of", "suggest_fields", "suggest_value"]


def _bare(word: str) -> str:
    return "".join(c for c in word.lower() if c not in "-_. ")


def _distance(a: str, b: str) -> int:
    """Return how many insertions, deletions, changes and swaps of neighbours turn `a` into `b`."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


def nearest(word: str, options: Iterable[str]) -> str | None:
    """Return the option that `word` was most likely meant to be, or None when none is near.

    >>> nearest("dmodel", ["d_model", "d_ff", "num_layers"])
    'd_model'
    >>> nearest("laptp", ["tiny", "laptop", "full"])
    'laptop'
    >>> nearest("zebra", ["tiny", "laptop", "full"]) is None
    True
    """
    bare, best, least = _bare(word), None, 1.0
    for option in options:
        other = _bare(option)
        size = max(len(bare), len(other), 1)
        share = _distance(bare, other) / size
        if min(len(bare), len(other)) >= 3 and (other.startswith(bare) or bare.startswith(other)):
            share = min(share, 0.3)
        if share < least and (share <= 0.34 or (share <= 0.5 and size <= 4)):
            best, least = option, share
    return best


def one_of(words: Sequence[str], joint: str = "or") -> str:
    """Return the words as people list them.

    >>> one_of(["a", "b", "c"])
    'a, b or c'
    """
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {joint} {words[-1]}"


def suggest_fields(word: str, paths: Iterable[str], section: str = "") -> list[str]:
    """Return the settings that `word`, found in `section`, may stand for, best first.

    `paths` are all settings as `section.name`. An exact name in another section comes first, then
    what others call it, then typing mistakes in the same section, then anywhere.
    """
    paths, word = list(paths), word.replace("-", "_")
    name = word.rpartition(".")[2]
    for wanted in (name, SYNONYMS.get(name.lower(), "")):
        found = [p for p in paths if wanted and (p == wanted or p.endswith(f".{wanted}"))]
        if found:
            return found
    here = [p for p in paths if section and p.startswith(f"{section}.")]
    for group in (here, paths):
        near = nearest(name, [p.rpartition(".")[2] for p in group])
        if near:
            return [p for p in group if p.rpartition(".")[2] == near]
    near = nearest(word, paths)
    if near:
        return [near]
    others = SYNONYMS | RENAMED
    wanted = others.get(nearest(name, others) or "", "?")
    return [p for p in paths if p == wanted or p.endswith(f".{wanted}")]


def suggest_value(value: object, choices: Sequence[str]) -> str | None:
    """Return the choice that a wrong value was most likely meant to be.

    >>> suggest_value("bfloat16", ["auto", "fp32", "bf16"])
    'bf16'
    """
    word = str(value).lower()
    for other in VALUE_SYNONYMS.get(word, "").split():
        if other in choices:
            return other
    return nearest(word, choices)
