"""Names of colours: lists, who is held out, and how a name is written for a model.

Two lists come with the package (`lists/LICENSES.txt` says whose they are). Names are read without
regard to case and accents, so that "Dusty Teal" and "dusty teal" are the same.
"""

from __future__ import annotations

import csv
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from importlib import resources
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from surefoot.data.batch import Batch
from surefoot.errors import DataError

__all__ = [
    "ALPHABET", "PLACES", "Colours", "Names", "check", "fold", "grams", "hex_code", "load", "nearest_word",
    "parse_rgb", "read", "symbols", "vectors",
]  # fmt: skip

ListName = Literal["wikipedia", "large"]
Int = NDArray[np.int64]
Float = NDArray[np.float32]

ALPHABET = " !#$%&'()+-./0123456789?abcdefghijklmnopqrstuvwxyz"  # symbol 0 ends a name
PLACES = 41  # symbols of the longest name
_LETTERS = str.maketrans({"ł": "l", "ı": "i", "œ": "oe", "я": "ya", "’": "'", "№": "no"})
_NUMBER = {symbol: place for place, symbol in enumerate(ALPHABET, 1)}


def fold(name: str) -> str:
    """Return a name in lower case, without accents, with single spaces.

    >>> fold("  Café  au Lait")
    'cafe au lait'
    """
    plain = unicodedata.normalize("NFKD", name.casefold().translate(_LETTERS))
    return " ".join("".join(c for c in plain if not unicodedata.combining(c)).split())


def symbols(names: Sequence[str]) -> Int:
    """Return folded names as i64[n, PLACES], 0 after the end; unknown characters are left out."""
    found = np.zeros((len(names), PLACES), dtype=np.int64)
    for row, name in enumerate(names):
        told = [_NUMBER[c] for c in name if c in _NUMBER][:PLACES]
        found[row, : len(told)] = told
    return found


def read(row: Iterable[int]) -> str:
    """Return the name that symbols say, up to the first end.

    >>> read(symbols(["teal"])[0])
    'teal'
    """
    found = ""
    for symbol in row:
        if not symbol:
            break
        found += ALPHABET[int(symbol) - 1]
    return found


def check(name: str) -> str:
    """Return a name of a person's, folded. Raises DataError where it cannot be written."""
    plain = fold(name)
    unknown = "".join(sorted(set(plain) - set(ALPHABET)))
    if not plain:
        raise DataError("the name is empty", fix='--name-text "dusty teal"')
    if unknown:
        what = f"{name!r} has characters that the model does not know: {unknown}"
        raise DataError(what, fix="letters, digits, spaces and !#$%&'()+-./? are known")
    if len(plain) > PLACES:
        raise DataError(f"the name has {len(plain)} characters; the longest known has {PLACES}")
    return plain


def grams(names: Sequence[str], kinds: int, most: int | None = None) -> NDArray[np.int32]:
    """Return each name's words and pieces of 1 to 4 characters as numbers below `kinds`, i32[n, k].

    A word begins with `<` and ends with `>`. Two pieces may share a number, as in fastText
    (Bojanowski et al., "Enriching Word Vectors with Subword Information", 2017); 0 fills up.
    """
    rows = [sorted(_pieces(name, kinds)) for name in names]
    found = np.zeros((len(rows), most or max(map(len, rows), default=1)), dtype=np.int32)
    for place, row in enumerate(rows):
        found[place, : len(row)] = row[: found.shape[1]]
    return found


def _pieces(name: str, kinds: int) -> set[int]:
    text = f"<{name.replace(' ', '><')}>"
    pieces = {text[i : i + n] for n in range(1, 5) for i in range(len(text) - n + 1)}
    return {_number(piece, kinds) for piece in pieces | {f"={word}" for word in name.split()}}


@lru_cache(maxsize=1 << 18)
def _number(piece: str, kinds: int) -> int:
    return 1 + zlib.crc32(piece.encode()) % (kinds - 1)


def vectors(rows: Int, width: int = 128) -> Float:
    """Return names as f32[n, width]: a number in (0, 1] for each symbol, and zeros after the end."""
    found = np.zeros((len(rows), width), dtype=np.float32)
    found[:, : rows.shape[1]] = rows / len(ALPHABET)
    return found


@dataclass(frozen=True)
class Colours:
    """A list: names as they are written, values u8[n, 3], and the share of values held out.

    Names with the same value are always on the same side. Who is held out is a hash of the first
    of them in the alphabet, and so the same in every run. `most` is how many names train, None
    for all: those whose own hashes are the lowest.
    """

    list_name: str
    names: tuple[str, ...]
    values: NDArray[np.uint8]
    val_ratio: float
    most: int | None = None

    @cached_property
    def rgb(self) -> Float:
        """Values from 0 to 1, f32[n, 3]."""
        return self.values.astype(np.float32) / np.float32(255)

    @cached_property
    def folded(self) -> list[str]:
        """Names as models read them."""
        return [fold(name) for name in self.names]

    @cached_property
    def held_out(self) -> NDArray[np.bool_]:
        """Which names are never trained on, bool[n]."""
        codes = self.values.astype(np.int64) @ np.array([65536, 256, 1])
        speaker: dict[int, str] = {}
        for code, name in zip(codes.tolist(), self.folded, strict=True):
            speaker[code] = min(name, speaker.get(code, name))
        return np.array([_hash(speaker[code]) < self.val_ratio for code in codes.tolist()])

    def rows(self, held_out: bool) -> Int:
        """Return the places of the names that train, or of those that do not, i64[m]."""
        found = np.flatnonzero(self.held_out == held_out)
        if held_out or self.most is None:
            return found
        hashes = [_hash(self.folded[place]) for place in found.tolist()]
        return np.sort(found[np.argsort(hashes, kind="stable")[: self.most]])

    def nearest(self, rgb: NDArray[np.float64], count: int) -> list[tuple[str, str, float]]:
        """Return (name, #rrggbb, difference by CIEDE2000) of the `count` colours nearest to f64[3]."""
        from surefoot.data.delta_e import delta_e

        off = delta_e(np.broadcast_to(rgb, self.rgb.shape), self.rgb)
        order = np.argsort(off, kind="stable")[:count].tolist()
        return [(self.names[i], hex_code(self.rgb[i]), float(off[i])) for i in order]


def _hash(name: str) -> float:
    """Return a number in [0, 1) for a name."""
    return int.from_bytes(blake2b(name.encode(), digest_size=6).digest(), "big") / 2.0**48


def load(name: ListName, val_ratio: float, most: int | None = None) -> Colours:
    """Return one of the lists that come with the package."""
    text = (resources.files("surefoot.data") / "lists" / f"colours_{name}.csv").read_text("utf-8")
    rows = list(csv.reader(text.splitlines()))[1:]
    values = np.array([list(bytes.fromhex(code[1:])) for _, code in rows], dtype=np.uint8)
    return Colours(name, tuple(written for written, _ in rows), values, val_ratio, most)


@dataclass(frozen=True)
class Names:
    """The names that train, as a source: a batch holds their places in the list, for all that a
    model reads of them lies on its device already.
    """

    colours: Colours

    @property
    def fingerprint(self) -> str:
        c = self.colours
        return f"colours/1/{c.list_name}/{c.val_ratio:g}/{len(self)}"

    @cached_property
    def _rows(self) -> Int:
        return self.colours.rows(held_out=False)

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, index: Int, epoch: Int, key: int) -> Batch:
        """Return examples `index` [m]; they look the same in every epoch."""
        return Batch({"row": self._rows[index]}, len(index))


def hex_code(rgb: NDArray[np.floating]) -> str:
    """Return a colour as #rrggbb, each channel cut to what a screen can show.

    >>> hex_code(np.array([0.0, 0.282, 2.0]))
    '#0048ff'
    """
    whole = np.rint(np.clip(rgb, 0, 1) * 255).astype(int)
    return "#" + "".join(f"{channel:02x}" for channel in whole)


def parse_rgb(text: str) -> NDArray[np.float64]:
    """Return f64[3] from 0 to 1 of `0,0.28,0.73` or `#0048ba`. Raises DataError.

    >>> parse_rgb("0, 0.28, 0.73").tolist()
    [0.0, 0.28, 0.73]
    """
    fix = "--rgb 0,0.28,0.73 or --rgb '#0048ba'"
    plain = text.strip()
    if plain.startswith("#"):
        try:
            code = bytes.fromhex(plain[1:])
        except ValueError:
            code = b""
        if len(code) != 3:
            raise DataError(f"{text!r} is not # and six hexadecimal digits", fix=fix)
        return np.array(list(code), dtype=np.float64) / 255
    try:
        rgb = np.array([float(part) for part in plain.split(",")], dtype=np.float64)
    except ValueError:
        rgb = np.zeros(0)
    if rgb.shape != (3,) or not np.isfinite(rgb).all():
        raise DataError(f"{text!r} is not three numbers, red, green and blue", fix=fix)
    if rgb.min() >= 0 and 2 < rgb.max() <= 255:
        as_share = ",".join(f"{channel:.4g}" for channel in rgb / 255)
        what = f"channels go from 0 to 1, and {text} seems to count to 255"
        raise DataError(what, fix=f"--rgb {as_share}")
    if rgb.min() < 0 or rgb.max() > 1:
        raise DataError(f"channels go from 0 to 1, not {text}", fix=fix)
    return rgb


def nearest_word(colours: Colours) -> Float:
    """Return f32[n, 3]: what a table of words says of each held-out name, NaN of the others.

    The mean over the words of a name of the mean colour that each has among the training names;
    the mean of all training colours where no word is known.
    """
    train = colours.rows(held_out=False)
    known: dict[str, list[int]] = {}
    for place in train.tolist():
        for word in set(colours.folded[place].split()):
            known.setdefault(word, []).append(place)
    means = {word: colours.rgb[places].mean(0) for word, places in known.items()}
    found = np.full_like(colours.rgb, np.nan)
    for place in colours.rows(held_out=True).tolist():
        said = [means[word] for word in colours.folded[place].split() if word in means]
        found[place] = np.mean(said, 0) if said else colours.rgb[train].mean(0)
    return found
