"""What a person sees while a run trains, in the form that fits where they look.

A terminal gets one live line under what scrolls by, a notebook one table that refreshes, and
anything else (a file, a pipe, a batch system) plain lines without a control character.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, TextIO

from surefoot.track.record import Level, Row, Sink
from surefoot.track.text import (
    clean,
    clock,
    eval_parts,
    machine_parts,
    real,
    sample_lines,
    train_parts,
)

__all__ = ["PlainConsole", "Progress", "in_notebook", "open_console"]

PAUSE = 10.0  # seconds between plain lines about training steps
MEMORY = 60.0  # seconds of steps that the remaining time is estimated from
QUIET = 30.0  # seconds after which a plain line says how far training is, whatever is logged
GRAIN = 0.25  # seconds between remembered steps
WIDTH = 120  # columns of a plain line, from which on an evaluation takes another


class Progress:
    """What is known about a run while it trains: the last rows, the best value, the pace."""

    def __init__(self, total: int | None = None, best: float | None = None) -> None:
        self.total, self.best = total, best
        self.step = 0
        self.train: dict[str, Row] = {}  # by learner
        self.eval: dict[str, Row] = {}
        self.machine: list[str] = []  # of the last row that told of it
        self._started = time.monotonic()
        self._pace: deque[tuple[float, int]] = deque()  # (monotonic seconds, step)
        self._last = (self._started, 0)
        self._begun = False

    def at(self, step: int) -> None:
        """Take in how far training is; the first time it only begins there, and no step was taken."""
        if self._begun:
            self._advance(step)
        self._begun, self.step = True, max(self.step, step)

    def row(self, row: Row) -> bool:
        """Take in a row; True: an evaluation better than all before."""
        if row["kind"] == "train":
            self.train[row["learner"]] = row
            self._advance(row["step"])
        elif row["kind"] == "eval":
            self.eval[row["learner"]] = row
            return self._improves(real(row.get("val_loss")))
        elif row["kind"] == "system":
            self.machine = machine_parts(row) or self.machine
        return False

    def rewind(self, step: int) -> None:
        """Forget the pace: steps are about to be counted again."""
        self.step = min(self.step, step)
        self._pace.clear()

    @property
    def elapsed(self) -> float:
        """Seconds since this process began."""
        return time.monotonic() - self._started

    @property
    def left(self) -> float | None:
        """Seconds until the last step at the pace of the last minute; None: not known."""
        pace = list(self._pace)  # at once: a display may ask from its own thread
        if self.total is None or not pace:
            return None
        (began, first), (ended, last) = pace[0], self._last
        if last <= first:
            return None
        since = time.monotonic() - ended
        return max(0.0, (self.total - last) * (ended - began) / (last - first) - since)

    def place(self) -> str:
        """Return `200/2000`, padded so that lines align; `200` when there is no end."""
        return self.place_of(self.step)

    def place_of(self, step: int) -> str:
        """Return the place of any step, like `place`."""
        return f"{step:>{len(str(self.total))}}/{self.total}" if self.total else str(step)

    def _advance(self, step: int) -> None:
        self.step = max(self.step, step)
        moment = time.monotonic()
        self._last = (moment, step)
        if not self._pace or moment - self._pace[-1][0] >= GRAIN:
            self._pace.append(self._last)
        while len(self._pace) > 2 and moment - self._pace[1][0] > MEMORY:
            self._pace.popleft()

    def _improves(self, loss: float | None) -> bool:
        if loss is None or loss != loss or (self.best is not None and loss >= self.best):
            return False
        self.best = loss
        return True


class PlainConsole(Sink):
    """Lines for files and pipes: training steps at most every ten seconds, all else at once."""

    name = "the console"

    def __init__(self, progress: Progress, stream: TextIO) -> None:
        self._progress, self._stream = progress, stream
        self._next = 0.0  # monotonic seconds of the next line about a training step
        self._said = time.monotonic()
        self._held: dict[str, Row] = {}  # last train row of each learner, not printed yet

    def at(self, step: int) -> None:
        """Say how far training is where nothing was said for long: steps may be slow and logged late."""
        self._progress.at(step)
        if time.monotonic() - self._said >= QUIET:
            if not self._held:
                place = f"step {self._progress.place_of(step)}"
                self._print("  ".join([place, *_times(self._progress)]))
            self._flush()

    def row(self, row: Row) -> None:
        """Print an evaluation, or a training step when it is time again."""
        better = self._progress.row(row)
        if row["kind"] == "eval":
            self._held.pop(row["learner"], None)  # this line says more
            parts = eval_parts(row)
            self._line(row, [*parts[:1], *(["best"] if better else []), *parts[1:]])
        elif row["kind"] == "train":
            self._held[row["learner"]] = row
            if time.monotonic() >= self._next:
                self._flush()

    def sample(self, sample: Row) -> None:
        """Print what the model wrote, indented."""
        who = "" if sample["learner"] == "main" else f" of {sample['learner']}"
        self._print(f"sample{who} at step {sample['step']}:")
        lines, more = sample_lines(sample)
        for line in lines:
            self._print(f"  | {line}".rstrip())
        if more:
            self._print(f"  | ({more} more lines in samples.jsonl)")

    def note(self, text: str, level: Level) -> None:
        """Print a sentence."""
        self._print(f"warning: {text}" if level == "warning" else text)

    def rewind(self, step: int, learners: Mapping[str, int]) -> None:
        """What is printed stays; what follows says its own step."""
        self._held.clear()
        self._progress.rewind(step)

    def close(self) -> None:
        """Print the last training step if it was held back."""
        self._flush()

    def _flush(self) -> None:
        for row in self._held.values():
            self._line(row, [*train_parts(row), *_times(self._progress)])
            self._next = time.monotonic() + PAUSE
        self._held.clear()

    def _line(self, row: Row, parts: list[str]) -> None:
        who = [] if row["learner"] == "main" else [row["learner"]]
        place = f"step {self._progress.place_of(row['step'])}"
        lines = [place]
        for part in (*who, *parts):
            full = len(lines[-1]) + len(part) >= WIDTH
            lines += [" " * len(place)] if full and len(lines[-1]) > len(place) else []
            lines[-1] += f"  {part}"
        for line in lines:
            self._print(line)

    def _print(self, text: str) -> None:
        print(clean(text, self._stream.encoding), file=self._stream, flush=True)
        self._said = time.monotonic()


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")


def open_console(
    total: int | None = None, *, best: float | None = None, stream: TextIO | None = None
) -> Sink:
    """Return the console that fits where we are: notebook, terminal, or anything else.

    `total` is the step the run stops at (None: never), `best` the best validation loss so far,
    `stream` where to write (default: standard output, or the notebook).
    """
    progress = Progress(total, best)
    if stream is None and in_notebook():
        from surefoot.track.notebook import NotebookConsole

        return NotebookConsole(progress)
    stream = stream or sys.stdout
    if stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown"):
        from surefoot.track.terminal import TerminalConsole

        return TerminalConsole(progress, stream)
    return PlainConsole(progress, stream)


def _times(progress: Progress) -> list[str]:
    left = progress.left
    ends = [clock(progress.elapsed), *([f"left {clock(left)}"] if left is not None else [])]
    return [*ends, *progress.machine[:1]]
