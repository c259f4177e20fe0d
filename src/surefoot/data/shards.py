"""Documents to tokens on the disk, once: in shards, by several processes, across interruptions.

    survey(files)                      ->  how many documents and bytes, and the lowest rank
    shards(files, tokenizer, held)     ->  Shards: tokens to train on, tokens held out

A shard is some megabytes of consecutive documents as bare integers, and a description with hashes
that is written last. What is there and whole is never made again; a damaged shard is. Each
document begins with the tokenizer's boundary, and after the last one stands another.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from surefoot.data.bpe import BPE
from surefoot.data.documents import Piece, Reading, documents
from surefoot.data.fetch import writing
from surefoot.data.files import TextFile
from surefoot.data.tokens import TokenFiles

__all__ = ["Progress", "Shards", "Side", "Survey", "shards", "survey"]

_FORMAT = 1
_READING = "2"  # how files become documents, and what is counted of them
_SHARD = 1 << 24  # bytes of text, at least
_MOST = 128  # shards
_BLOCK = 1 << 22  # bytes
_AT_ONCE = 1 << 18  # characters that are encoded together
_POLL = 0.1  # seconds
_WORKERS = 3  # that take less than a gigabyte together with the process that waits for them
_EACH = 400_000_000  # bytes of text that one more is for
_SIDES = ("train", "held")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Survey:
    """What a pass over all documents finds; `least` is the lowest rank."""

    documents: int
    size: int  # bytes of text
    least: float
    wikitext: bool
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Side:
    """What one side of a split holds; `words` counts as WikiText's perplexity does, with lines."""

    documents: int = 0
    size: int = 0  # bytes of text
    words: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Shards:
    """All tokens: `tokens[:train.tokens]` to train on, the rest held out. `digest` names them."""

    tokens: TokenFiles = field(repr=False)
    train: Side
    held: Side
    digest: str


@dataclass(frozen=True)
class _Plan:
    """All that decides what the shards are, and where."""

    files: list[TextFile]
    text_field: str
    bad_utf8: Any
    tokenizer: str
    threshold: float  # documents of at most this rank are held out
    shard: int
    folder: Path


def survey(files: Sequence[TextFile], reading: Reading, cache: Path) -> Survey:
    """Read everything once, or remember having done so."""
    path = cache / "tokens" / f"survey-{_key(files, reading, _READING)}.json"
    try:
        kept = json.loads(path.read_text("utf-8"))
        return Survey(**{**kept, "remarks": tuple(kept["remarks"])})
    except (OSError, ValueError, TypeError, KeyError):
        pass  # it can always be done again
    count, size, least = 0, 0, 1.0
    for piece in documents(files, reading):
        count, size = count + piece.begins, size + len(piece.text.encode())
        least = min(least, piece.rank)
    found = Survey(count, size, least, "wikitext" in reading.counts, tuple(reading.remarks()))
    with writing(path) as file:
        file.write(json.dumps(asdict(found)).encode())
    return found


def shards(
    files: Sequence[TextFile],
    reading: Reading,
    tokenizer: BPE,
    held: float,
    size: int,
    cache: Path,
    *,
    progress: Progress | None = None,
    shard: int = _SHARD,
) -> Shards:
    """Return the tokens of `files`, those of documents with a rank up to `held` apart.

    `size` is that of the survey. Goes on where an earlier call was interrupted. Raises DataError.
    """
    shard = max(shard, -(-size // _MOST))
    words = f"{_READING} {tokenizer.fingerprint} {held} {shard}"
    folder = cache / "tokens" / f"bpe-{_key(files, reading, words)}"
    plan = _Plan(
        list(files), reading.text_field, reading.bad_utf8, tokenizer.to_json(), held, shard, folder
    )
    count = max(1, -(-size // shard))
    found = [_load(plan, number) for number in range(count)]
    missing = [number for number in range(count) if found[number] is None]

    def tell(done: int) -> None:
        if progress and count > 1:
            progress(count - len(missing) + done, count)

    if missing:
        tell(0)
        _in_parallel(plan, missing, tell)
        _write(plan, [n for n in missing if not _about(plan, n).exists()], tell)
        found = [about or _load(plan, number) for number, about in enumerate(found)]
    return _collect(plan, tokenizer, [about for about in found if about])


def _write(plan: _Plan, wanted: Sequence[int], tell: Callable[[int], Any]) -> None:
    """Make the shards `wanted`; documents of all up to the last of them are read."""
    if not wanted:
        return
    tokenizer, reading = BPE(plan.tokenizer), Reading(plan.text_field, plan.bad_utf8)
    left = set(wanted)
    pieces = _numbered(documents(plan.files, reading), plan.shard)
    for number, group in groupby(pieces, key=itemgetter(0)):
        if number > max(wanted):
            break
        if number in left:
            _write_one(plan, number, tokenizer, (piece for _, piece in group))
            left.remove(number)
            tell(len(wanted) - len(left))
    for number in left:  # a piece may be longer than a shard
        _write_one(plan, number, tokenizer, iter(()))


def _numbered(pieces: Iterator[Piece], shard: int) -> Iterator[tuple[int, Piece]]:
    at = 0
    for piece in pieces:
        yield at // shard, piece
        at += len(piece.text.encode())


def _write_one(plan: _Plan, number: int, tokenizer: BPE, pieces: Iterator[Piece]) -> None:
    border = np.array([tokenizer.boundary], dtype=tokenizer.dtype).tobytes()
    states = [xxhash.xxh3_128() for _ in _SIDES]
    counts = [Counter[str]() for _ in _SIDES]
    with ExitStack() as stack:
        files = [stack.enter_context(writing(_tokens(plan, number, name))) for name in _SIDES]
        for piece, ids in _encoded(pieces, tokenizer):
            side = int(piece.rank <= plan.threshold)
            content = border * piece.begins + ids.tobytes()
            files[side].write(content)
            states[side].update(content)
            counts[side]["documents"] += piece.begins
            counts[side]["size"] += len(piece.text.encode())
            counts[side]["tokens"] += len(content) // tokenizer.dtype.itemsize
            if side:
                counts[side]["words"] += len(piece.text.split()) + piece.text.count("\n")
    about = {
        name: {**count, "hash": state.hexdigest()}
        for name, count, state in zip(_SIDES, counts, states)
    }
    with writing(_about(plan, number)) as file:
        file.write(json.dumps(about).encode())


def _encoded(pieces: Iterator[Piece], tokenizer: BPE) -> Iterator[tuple[Piece, NDArray[Any]]]:
    """Yield each piece with its tokens; some hundred short ones are encoded at once."""
    held: list[Piece] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece.text)
        if size >= _AT_ONCE:
            yield from zip(held, tokenizer.encode_all([one.text for one in held]))
            held, size = [], 0
    yield from zip(held, tokenizer.encode_all([one.text for one in held]))


def _load(plan: _Plan, number: int) -> dict[str, Any] | None:
    """Return the description of a shard whose bytes are right; else remove it and return None."""
    try:
        about: dict[str, Any] = json.loads(_about(plan, number).read_text("utf-8"))
        if all(about[n]["hash"] == _hash(_tokens(plan, number, n)) for n in _SIDES):
            return about
    except (OSError, ValueError, KeyError, TypeError):
        pass
    _about(plan, number).unlink(missing_ok=True)
    return None


def _collect(plan: _Plan, tokenizer: BPE, found: list[dict[str, Any]]) -> Shards:
    sides: list[Side] = []
    for name in _SIDES:
        kept = [{k: v for k, v in about[name].items() if k != "hash"} for about in found]
        sides.append(Side(**sum(map(Counter, kept), Counter())))
    hashes = "".join(about[name]["hash"] for name in _SIDES for about in found)
    paths = [_tokens(plan, number, name) for name in _SIDES for number in range(len(found))]
    digest = xxhash.xxh3_128_hexdigest(f"{tokenizer.dtype} {hashes}".encode())
    return Shards(TokenFiles(paths, tokenizer.dtype), sides[0], sides[1], digest)


def _in_parallel(plan: _Plan, missing: list[int], tell: Callable[[int], Any]) -> None:
    """Let other processes make most of the shards; whatever they do not is left to the caller."""
    enough = max(_WORKERS, plan.shard * len(missing) // _EACH)
    workers = min(len(missing), _cores(), enough)
    if workers < 2:
        return
    command = [sys.executable, "-m", "surefoot.data.shards"]
    package = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    env = {**os.environ, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"}
    running: list[subprocess.Popen[str]] = []
    try:
        for worker in range(workers):
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, text=True, env=env,
            )  # fmt: skip
            running.append(process)
            assert process.stdin is not None
            share = {**asdict(plan), "wanted": missing[worker::workers], "parent": os.getpid()}
            process.stdin.write(json.dumps(share, default=str))
            process.stdin.close()
        while any(process.poll() is None for process in running):
            tell(sum(_about(plan, number).exists() for number in missing))
            time.sleep(_POLL)
    finally:
        for process in running:
            process.terminate()
            process.wait()


def _work(share: dict[str, Any]) -> None:
    """Make the shards of one worker; stop when the process that asked for them is gone."""
    wanted, parent = share.pop("wanted"), share.pop("parent")
    share["files"] = [TextFile(**{**f, "path": Path(f["path"])}) for f in share["files"]]
    plan = _Plan(**{**share, "folder": Path(share["folder"])})

    def alive(_: int) -> None:
        if os.getppid() != parent:
            sys.exit(1)

    _write(plan, wanted, alive)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _key(files: Sequence[TextFile], reading: Reading, more: str = "") -> str:
    parts = [_FORMAT, [f.digest for f in files], reading.text_field, reading.bad_utf8, more]
    names = [Path(f.name).suffixes for f in files]
    return xxhash.xxh3_128_hexdigest(json.dumps([parts, names]).encode())


def _about(plan: _Plan, number: int) -> Path:
    return plan.folder / f"{number:05}.json"


def _tokens(plan: _Plan, number: int, side: str) -> Path:
    return plan.folder / f"{number:05}.{side}.bin"


def _hash(path: Path) -> str:
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            state.update(block)
    return state.hexdigest()


if __name__ == "__main__":
    _work(json.load(sys.stdin))
