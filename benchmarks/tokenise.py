"""A large text to tokens: memory and speed of `surefoot train gpt --path TEXT`, and a kill half-way.

    python benchmarks/tokenise.py FILE... [--size 1GB] [--vocab-size 8192]

The text is made of the lines of FILEs in ever new random orders; one line in fifty is spelled with its
letters exchanged, otherwise each time, so that new words keep coming. Surefoot reads it with an empty cache as a user
would, to one step of the preset tiny. It is killed (SIGKILL) once half of the shards are there, and
started again. Memory is the proportional share (PSS) of all its processes together, looked at five
times a second; speed is megabytes of text for a second of processor time, of all processes. Writes
benchmarks/results/tokenise.md.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import machine
import psutil

from surefoot.config.units import parse_bytes

_POLL = 0.2  # seconds
_NEW = 50  # one line in so many is spelled with other letters
_LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
_PHASES = ("survey", "vocabulary", "tokens")


def lines(files: list[Path], size: int) -> Iterator[str]:
    """Yield lines in random orders, one in `_NEW` with other letters, until they are `size` bytes."""
    known = [line for file in files for line in file.read_text("utf-8").splitlines(keepends=True)]
    made = 0
    for seed in range(sys.maxsize):
        draw = random.Random(seed)
        draw.shuffle(known)
        for number, line in enumerate(known):
            if number % _NEW == 0:
                line = line.translate(str.maketrans(_LETTERS, "".join(draw.sample(_LETTERS, 26))))
            yield line
            made += len(line.encode())
            if made >= size:
                return


@dataclass
class Seen:
    """What a process and its children took: bytes at most; processor seconds until each phase ended."""

    memory: int = 0
    spent: float = 0.0
    wall: float = 0.0
    ends: dict[str, tuple[float, float, int]] = field(default_factory=dict)


class Watched:
    """A start of the command line that is looked at while it runs."""

    def __init__(self, command: list[str], cache: Path) -> None:
        self.cache, self.seen, self.begun = cache, Seen(), time.time()
        self.process = psutil.Popen(
            command, stdout=subprocess.DEVNULL, env={**os.environ, "SUREFOOT_CACHE": str(cache)}
        )
        self.times: dict[int, float] = {}

    def shards(self) -> list[Path]:
        """Return the descriptions of the shards that are whole."""
        return sorted(self.cache.glob("tokens/bpe-*/[0-9]*.json"))

    def run(self, kill_at: int | None = None) -> Seen:
        """Wait for its end, or end it with SIGKILL as soon as `kill_at` shards are there."""
        while self.process.poll() is None:
            self._look()
            if kill_at is not None and len(self.shards()) >= kill_at:
                self.process.send_signal(signal.SIGKILL)
                self.process.wait()
                break
            time.sleep(_POLL)
        self.seen.wall = time.time() - self.begun
        return self.seen

    def _look(self) -> None:
        memory = 0
        for one in (self.process, *self._children()):
            try:
                memory += one.memory_full_info().pss
                used = one.cpu_times()
                self.times[one.pid] = used.user + used.system
            except psutil.Error:
                continue  # it ended meanwhile
        seen = self.seen
        seen.memory, seen.spent = max(seen.memory, memory), sum(self.times.values())
        folder = self.cache / "tokens"
        there = (any(folder.glob("survey-*")), any(folder.glob("tokenizer-*")), False)
        for phase, done in zip(_PHASES, there):
            if done and phase not in seen.ends:
                seen.ends[phase] = (seen.spent, time.time() - self.begun, seen.memory)
        count = len(self.shards())
        if count and count != seen.ends.get("tokens", (0, 0, 0))[2]:
            seen.ends["tokens"] = (seen.spent, time.time() - self.begun, count)

    def _children(self) -> list[psutil.Process]:
        try:
            found: list[psutil.Process] = self.process.children(recursive=True)
        except psutil.Error:
            return []
        return found


def main() -> None:
    """Make the text, read it twice, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--size", type=parse_bytes, default=parse_bytes("1GB"))
    parser.add_argument("--vocab-size", type=int, default=8192)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        text, cache = folder / "text.txt", folder / "cache"
        with text.open("w", encoding="utf-8") as file:
            file.writelines(lines(options.files, options.size))
        size = text.stat().st_size
        command = [
            sys.executable, "-m", "surefoot", "train", "gpt", "--preset", "tiny", "--path", str(text),
            "--vocab-size", str(options.vocab_size), "--max-steps", "1", "--quiet", "--new",
            "--val-ratio", "0.0002", "--runs", str(folder / "runs"),
        ]  # fmt: skip
        expected = -(-size // max(1 << 24, -(-size // 128)))  # as data/shards.py cuts
        first = Watched(command, cache)
        before = first.run(kill_at=expected // 2)
        kept = {path: path.stat().st_mtime_ns for path in first.shards()}
        second = Watched(command, cache)
        after = second.run()
        again = Watched(command, cache)
        cached = again.run()
        if second.process.returncode or again.process.returncode:
            raise SystemExit("it did not train")
        same = sum(path.stat().st_mtime_ns == at for path, at in kept.items())
        write(size, before, after, cached, (same, len(kept), len(second.shards())))


def write(size: int, before: Seen, after: Seen, cached: Seen, shards: tuple[int, int, int]) -> None:
    """Write the page."""
    same, kept, count = shards
    page = machine.heading("A large text to tokens", "benchmarks/tokenise.py", __doc__)
    surveyed, learned = before.ends["survey"][0], before.ends["vocabulary"][0]
    encoding = before.spent - learned + after.ends["tokens"][0]
    rate = size / 1e6 / encoding
    peak = max(before.memory, after.memory)
    page += [
        "| | processor seconds | MB/s of one core |",
        "|---|---:|---:|",
        f"| starting and surveying {size / 1e6:,.0f} MB | {surveyed:.1f} | {size / 1e6 / surveyed:.0f} |",
        f"| learning the vocabulary, from 67 MB of it | {learned - surveyed:.1f} | |",
        f"| encoding, both starts together | {encoding:.1f} | {rate:.1f} |",
        f"| the third start, tokens cached, to the end of its step | {cached.spent:.1f} | |",
        "",
        f"Killed when {kept} of {count} shards were there; the second start kept {same} of them "
        f"and made {count - same}. Wall: {before.wall:.0f}, {after.wall:.0f} and {cached.wall:.0f} s.",
        "",
        machine.goal("MB/s of one core while encoding", rate, 5, unit="MB/s"),
        machine.goal("memory of all processes", peak / 1e9, 1, least=False, unit="GB"),
        f"- memory: {before.ends['survey'][2] / 1e6:,.0f} MB at most until the survey ended, "
        f"{before.ends['vocabulary'][2] / 1e6:,.0f} until the vocabulary was learned, {peak / 1e6:,.0f} in all",
    ]  # fmt: skip
    machine.write("tokenise", page)


if __name__ == "__main__":
    main()
