r"""Documents from files: text, JSON Lines, folders of them, packed or not, a piece at a time.

A plain file is several documents where it says so: between `<|endoftext|>`, or at the headings of
WikiText. In a folder any other file is one document; alone, it is cut at empty lines, or at the
ends of lines where it begins without an empty one, so that something can be held out. Line ends become \n. Nothing here holds more than a document or a
megabyte of it in memory.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import xxhash

from surefoot.data.files import TextFile, find_files
from surefoot.data.unpack import PACKED, unpacking
from surefoot.errors import DataError

__all__ = ["BadText", "Piece", "Reading", "documents", "find_documents"]

BadText = Literal["replace", "refuse"]
Way = Literal["marker", "wikitext", "paragraphs", "lines", "whole"]

_BY_LINE = (".jsonl", ".ndjson")
_MARKER = b"<|endoftext|>"
_HEADING = re.compile(rb"^ = [^=\s][^=\n]* = *$", re.MULTILINE)
_SNIFF = 1 << 16  # bytes that tell how a file is divided
_PIECE = 1 << 20  # bytes or characters of a document at a time
_PARAGRAPHS = 1 << 10  # bytes of a document at least, where a single text is cut
_LINE = 1 << 14  # bytes of one line, where a single text is cut at the ends of lines
_EMPTY = re.compile(rb"\n[ \t\r]*\n")
_LONGEST_LINE = 1 << 28  # bytes of a line of JSON
_NAMED = {
    "marker": "<|endoftext|>", "wikitext": "WikiText headings", "paragraphs": "empty lines",
    "lines": "ends of lines, as no line of it is empty",
}  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """Part of a document: `rank` in [0, 1) is drawn from the beginning of the whole document."""

    text: str
    rank: float
    begins: bool


@dataclass
class Reading:
    """How documents are read, and what was met on the way: `counts` by name."""

    text_field: str = "text"
    bad_utf8: BadText = "replace"
    counts: Counter[str] = field(default_factory=Counter)

    def remarks(self) -> list[str]:
        """Return sentences about what was changed, left out or decided."""
        counts, found = self.counts, []
        if counts["bad"]:
            found.append(f"places that are not UTF-8, read as U+FFFD: {counts['bad']:,}")
        if counts["empty"]:
            found.append(f"empty documents, left out: {counts['empty']:,}")
        if counts["binary"]:
            found.append(f"packed files that hold no text, left out: {counts['binary']:,}")
        if counts["returns"]:
            found.append(r"line ends \r\n or \r are read as \n")
        for way, name in _NAMED.items():
            if counts[way]:
                many = f" ({counts[way]:,} files)" if counts[way] > 1 else ""
                found.append(f"cut into documents at {name}{many}")
        return found


def find_documents(path: Path) -> tuple[list[TextFile], list[str]]:
    """Return the files at `path` and remarks, as `find_files` does, packed ones included."""
    return find_files(path, PACKED)


def documents(files: Iterable[TextFile], reading: Reading) -> Iterator[Piece]:
    """Yield the documents of `files` in order, long ones in several pieces.

    Equal documents have equal ranks, so copies are never on both sides of a split. Raises
    DataError for what cannot be read, with its place; Unsupported where a package to unpack a
    file is missing.
    """
    listed = list(files)
    for file in listed:
        try:
            with unpacking(file.path) as stream:
                yield from _ranked(_texts(stream, file, reading, len(listed) == 1), reading)
        except (OSError, EOFError) as error:
            raise DataError(
                f"data.path: cannot read {file.path}: {error}",
                fix="check that the file is whole and that you may read it",
            ) from None


def _texts(
    stream: Any, file: TextFile, reading: Reading, alone: bool
) -> Iterator[tuple[str, bool]]:
    """Yield pieces of text, and whether a document begins with each."""
    name = Path(file.name)
    if (name.with_suffix("") if name.suffix in PACKED else name).suffix in _BY_LINE:
        yield from _fields(stream, file, reading)
        return
    start = stream.peek(_SNIFF)[:_SNIFF]
    if b"\0" in start and name.suffix in PACKED:  # of others it was seen when they were found
        if alone:
            raise DataError(
                f"data.path: what is packed in {file.path} is no text", fix="give a text"
            )
        reading.counts["binary"] += 1
        return
    way = _way(start, alone)
    reading.counts[way] += 1
    at = 0
    for content, begins in _divided(stream, way):
        yield _decoded(content, file, reading, at), begins
        at += len(content)


def _ranked(texts: Iterator[tuple[str, bool]], reading: Reading) -> Iterator[Piece]:
    rank, nothing_yet = 0.0, False
    for text, begins in texts:
        begins |= nothing_yet
        nothing_yet = begins and not text.strip()
        if nothing_yet:
            reading.counts["empty"] += 1
            continue
        if begins:
            rank = xxhash.xxh3_64_intdigest(b"split 1 " + text.encode()) / 2**64
        yield Piece(text, rank, begins)


def _fields(stream: Any, file: TextFile, reading: Reading) -> Iterator[tuple[str, bool]]:
    at = 0
    for number, line in enumerate(iter(lambda: stream.readline(_LONGEST_LINE), b""), 1):
        content = _decoded(line, file, reading, at)
        at += len(line)
        if content.strip():
            text = _field(content, f"{file.path}:{number}", reading)
            for start in range(0, len(text) or 1, _PIECE):
                yield text[start : start + _PIECE], start == 0


def _field(line: str, where: str, reading: Reading) -> str:
    """Return the text of one line of JSON."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        fix = "each line of JSON Lines is one object"
        raise DataError(f"data.path: no JSON: {error}", where=where, fix=fix) from None
    text = row.get(reading.text_field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        known = [k for k, v in row.items() if isinstance(v, str)] if isinstance(row, dict) else []
        raise DataError(
            f"data.path: no text in the field {reading.text_field!r}", where=where,
            fix=f"--text-field, with one of: {', '.join(known)}" if known
            else "each line is to be an object with a text in some field; leave this line out",
        )  # fmt: skip
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell half a character
        reading.counts["bad"] += 1
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return _unix(text, reading)


def _way(start: bytes, alone: bool) -> Way:
    if _MARKER in start:
        return "marker"
    if _HEADING.search(start):
        return "wikitext"
    if not alone:
        return "whole"
    return "paragraphs" if _EMPTY.search(start.strip()) else "lines"


def _divided(stream: Any, way: Way) -> Iterator[tuple[bytes, bool]]:
    """Yield pieces of bytes that end with a line where that is possible, and what they begin."""
    held: list[bytes] = []
    size, begins = 0, True
    for line in _lines(stream, min(_LINE, _PIECE) if way == "lines" else _PIECE):
        first, *others = line.split(_MARKER) if way == "marker" else [line]
        new = _is_new(way, line, held, size)
        if held and (new or size + len(first) > _PIECE):
            yield b"".join(held), begins
            held, size, begins = [], 0, new
        held.append(first)
        size += len(first)
        for other in others:
            yield b"".join(held), begins
            held, size, begins = [other.removeprefix(b"\n")], len(other), True
    if size:
        yield b"".join(held), begins


def _is_new(way: Way, line: bytes, held: list[bytes], size: int) -> bool:
    """Whether a document begins with `line`, after the lines `held` of the one before."""
    if way == "wikitext":
        heading = line.startswith(b" = ") and _HEADING.match(line)
        return bool(heading) and any(not part.isspace() for part in held)
    if way == "paragraphs":
        return size >= _PARAGRAPHS and held[-1].isspace() and not line.isspace()
    return way == "lines" and size >= _PARAGRAPHS


def _lines(stream: Any, most: int) -> Iterator[bytes]:
    """Yield lines, and those of more than `most` bytes in several, cut before a word if they can be."""
    rest = b""
    while line := stream.readline(most):
        line, rest = rest + line, b""
        if len(line) >= most and not line.endswith(b"\n"):
            cut = line.rfind(b" ") if b" " in line[1:] else _last_character(line)
            line, rest = line[:cut], line[cut:]
        yield line
    if rest:
        yield rest


def _last_character(line: bytes) -> int:
    """Return where the last character begins, in UTF-8."""
    return next((i for i in range(len(line) - 1, 0, -1) if line[i] & 0xC0 != 0x80), len(line))


def _decoded(content: bytes, file: TextFile, reading: Reading, at: int) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        if reading.bad_utf8 == "refuse":
            raise DataError(
                f"data.path: {file.path} is not UTF-8 at byte {at + error.start:,}",
                fix="--bad-utf8 replace reads it with U+FFFD there, and counts such places",
            ) from None
        text = content.decode(errors="replace")
        reading.counts["bad"] += text.count("\ufffd") - content.count("\ufffd".encode())
    return _unix(text.removeprefix("\ufeff") if at == 0 else text, reading)


def _unix(text: str, reading: Reading) -> str:
    if "\r" not in text:
        return text
    reading.counts["returns"] += 1
    return text.replace("\r\n", "\n").replace("\r", "\n")
