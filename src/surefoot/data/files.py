"""The user's own text: which files it is made of, and their characters, a piece at a time.

Nothing here holds more than a piece of a file in memory. Line ends become one newline character
and a byte-order mark is dropped, as text editors do. What cannot be read as asked is refused with
the file and the byte where it goes wrong.
"""

from __future__ import annotations

import codecs
import os
import shlex
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import xxhash

from surefoot.errors import DataError

__all__ = [
    "TextFile",
    "characters_of",
    "find_files",
    "held_out_rank",
    "looks_like",
    "mend_path",
    "sized",
]

_BLOCK = 1 << 20  # bytes or characters at a time
_SNIFF = 1 << 13  # bytes that tell a binary file
_SKIPPED_FOLDERS = {"__pycache__", "node_modules", "CVS"}  # and every hidden one
_NEIGHBOURS = 2000  # names looked through for a similar one


@dataclass(frozen=True)
class TextFile:
    """One file of text: where it is, its name inside the corpus, and what its bytes hash to."""

    path: Path
    name: str  # relative, with forward slashes on every system
    size: int  # bytes
    digest: str  # xxh3_128 of the bytes

    @property
    def is_utf16(self) -> bool:
        """Whether the file begins as UTF-16 does."""
        with self.path.open("rb") as file:
            return file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def find_files(
    path: Path, packed: tuple[str, ...] = (), *, kind: str = "char"
) -> tuple[list[TextFile], list[str]]:
    """Return the text files at `path` (a file, or a folder walked in name order) and remarks.

    In a folder links and binary files are left out and remarked on; hidden names, version control
    and runs are left out. Names that end like one of `packed` may be binary, and so may the one
    file that is given for kind "byte". Raises DataError for what is missing, empty, binary,
    unreadable or not a file.
    """
    try:
        if path.is_dir():
            return _in_folder(path, packed)
        if not path.exists():
            raise _missing(path)
        if not path.is_file():
            raise DataError(f"data.path: {path} is not a regular file", fix="copy it to a file")
        return [_single(path, packed, kind)], []
    except OSError as error:
        raise _unreadable(path, error) from None


def held_out_rank(name: str) -> float:
    """Return a number in [0, 1) that a hash draws from a file's name: the lowest are held out.

    It depends on this name alone, so more or fewer other files do not move a file between the
    training and the validation side.
    """
    return xxhash.xxh3_64_intdigest(f"split 1 {name}".encode()) / 2**64


def characters_of(file: TextFile, kind: str, remarks: set[str]) -> Iterator[str]:
    """Yield the text of `file` in pieces; for kind "byte" each character stands for one byte.

    Raises DataError for bytes that are not UTF-8 (kind "char"), with their place. What was
    changed on the way (line ends) is added to `remarks`.
    """
    encoding = "utf-8" if kind == "char" else "latin-1"
    mark = "\ufeff" if kind == "char" else codecs.BOM_UTF8.decode("latin-1")
    try:
        with file.path.open(encoding=encoding, newline=None) as stream:
            piece = stream.read(_BLOCK).removeprefix(mark)
            while piece:
                yield piece
                piece = stream.read(_BLOCK)
            if stream.newlines not in (None, "\n"):
                remarks.add(r"line ends \r\n or \r are read as \n")
    except UnicodeDecodeError:
        raise _not_utf8(file) from None
    except OSError as error:
        raise _unreadable(file.path, error) from None


def looks_like(path: Path) -> str | None:
    """Return a sentence naming what the user may have meant instead of a missing `path`."""
    folder = path.parent if path.parent.is_dir() else Path()
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry, _ in zip(entries, range(_NEIGHBOURS), strict=False)]
    except OSError:
        return None
    lowered = {name.lower(): name for name in names}
    close = get_close_matches(path.name.lower(), lowered, n=1, cutoff=0.6)
    if not close:
        return None
    found = folder / lowered[close[0]]
    try:
        what = (
            f"the folder {found}" if found.is_dir() else f"{found} ({sized(found.stat().st_size)})"
        )
    except OSError:
        what = f"{found} (a link that leads nowhere)"
    return f"did you mean {what}? It is in {folder.resolve()}."


def mend_path(path: Path) -> str:
    """Return what to do about a `path` at which there is nothing."""
    return looks_like(path) or "check the path"


def sized(count: int) -> str:
    """Return a number of bytes for people.

    >>> sized(412), sized(1_115_394)
    ('412 bytes', '1.1 MB')
    """
    if count < 1000:
        return f"{count} bytes"
    value = count / 1000
    for unit in ("kB", "MB"):
        if value < 999.95:
            return f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def _single(path: Path, packed: tuple[str, ...], kind: str) -> TextFile:
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"data.path: {path} is empty", fix="give a file with text in it")
    digest, null = _hash(path)
    file = TextFile(path, path.name, size, digest)
    if null is None or kind == "byte" or path.suffix in packed:
        return file
    if file.is_utf16:
        raise DataError(
            f"data.path: {path} is UTF-16 text",
            fix=_recode("UTF-16", path),
        )
    raise DataError(
        f"data.path: {path} is not text: byte {null:,} is NUL",
        where=f"{path} ({sized(size)})",
        fix="give a text file, or a folder of them (binary files in a folder are left out)"
        + ("" if packed else "; --vocabulary byte reads any bytes"),
    )


def _hash(path: Path) -> tuple[str, int | None]:
    """Return the hash of a file's bytes, and the place of its first NUL byte or None."""
    state, null, done = xxhash.xxh3_128(), None, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            state.update(block)
            if null is None and (at := block.find(b"\0")) >= 0:
                null = done + at
            done += len(block)
    return state.hexdigest(), null


def _in_folder(root: Path, packed: tuple[str, ...]) -> tuple[list[TextFile], list[str]]:
    links, binary, files = [], [], []
    for path in _walk(root):
        name = unicodedata.normalize("NFC", path.relative_to(root).as_posix())
        if path.is_symlink():
            links.append(name)
        elif path.is_file() and (size := path.stat().st_size):
            allowed = path.suffix in packed
            if not allowed and _begins_binary(path):
                binary.append(name)
                continue
            digest, null = _hash(path)
            if null is None or allowed:
                files.append(TextFile(path, name, size, digest))
            else:
                binary.append(name)
    remarks = [
        f"left out {what} ({len(names)}): {', '.join(names[:3])}{' ...' if names[3:] else ''}"
        for what, names in (("binary files", binary), ("links", links))
        if names
    ]
    if not files:
        raise DataError(
            f"data.path: the folder {root} has no text files",
            where="; ".join(remarks) or "nothing but hidden or empty files, if any",
            fix="give a file, or a folder with text files in it",
        )
    return sorted(files, key=lambda file: file.name), remarks


def _walk(root: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error

    for folder, inner, names in os.walk(root, onerror=refuse, followlinks=False):
        here = Path(folder)
        linked = [name for name in inner if (here / name).is_symlink()]
        inner[:] = [n for n in inner if n not in linked and _is_wanted(here / n)]
        yield from (here / name for name in [*linked, *names] if not name.startswith("."))


def _is_wanted(folder: Path) -> bool:
    if folder.name.startswith(".") or folder.name in _SKIPPED_FOLDERS:
        return False
    if (folder / "run.json").exists() and (folder / "config.yaml").exists():
        return False  # a run grows while it is trained, and is not what it is trained on
    return not (folder / "pyvenv.cfg").exists()  # a virtual environment is not the user's text


def _begins_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" in file.read(_SNIFF)


def _missing(path: Path) -> DataError:
    hint = looks_like(path)
    return DataError(
        f"data.path: no file {path}",
        where=f"looked in {Path.cwd()}" if not path.is_absolute() else None,
        fix=f"{hint + ' ' if hint else ''}Built-in texts need no file: surefoot data list",
    )


def _unreadable(path: Path, error: OSError) -> DataError:
    place = error.filename or path
    return DataError(
        f"data.path: cannot read {place}: {error.strerror or error}",
        fix="check that the file is there and that you may read it",
    )


def _not_utf8(file: TextFile) -> DataError:
    offset, line, value = _first_bad_byte(file.path)
    return DataError(
        f"data.path: {file.path} is not UTF-8: byte {offset:,} (0x{value:02x}, line {line:,})",
        fix=f"{_recode('LATIN1', file.path)}, or --vocabulary byte, which reads any bytes",
    )


def _recode(encoding: str, path: Path) -> str:
    there = shlex.quote(f"{path.stem}.utf8{path.suffix}")
    return f"iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > {there}"


def _first_bad_byte(path: Path) -> tuple[int, int, int]:
    """Return (offset, line from 1, value) of the first byte that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    done, line = 0, 1  # bytes and lines that were decoded
    with path.open("rb") as file:
        while True:
            block = file.read(_BLOCK)
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                kept = len(error.object) - len(block)  # begun in an earlier block
                line += error.object.count(b"\n", 0, error.start)
                return done - kept + error.start, line, error.object[error.start]
            if not block:
                raise AssertionError("the file was not UTF-8 a moment ago")
            done, line = done + len(block), line + block.count(b"\n")
