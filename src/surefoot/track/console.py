"""What a person sees while a run trains: plain lines."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from surefoot.track.record import Level, Row, Sink

__all__ = ["PlainConsole", "open_console"]

PAUSE = 10.0  # seconds between lines about training steps


class PlainConsole:
    """One line for each thing, without control characters, for files, pipes and logs."""

    name = "console"

    def __init__(self, total: int | None, stream: TextIO) -> None:
        self._total, self._stream, self._next = total, stream, 0.0

    def row(self, row: Row) -> None:
        """Print evaluations and events at once, training steps at most every ten seconds."""
        if row["kind"] == "train":
            if time.monotonic() < self._next:
                return
            self._next = time.monotonic() + PAUSE
        if row["kind"] in ("train", "eval"):
            shown = ("kind", "step", "learner", "segment", "time")
            values = "  ".join(
                f"{key} {value:.5g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in row.items()
                if key not in shown
            )
            self._print(f"step {row['step']}/{self._total or '?'}  {values}")

    def sample(self, sample: Row) -> None:
        """Print what the model wrote."""
        self._print(f"  sample: {sample['prompt']}{sample['text']}")

    def note(self, text: str, level: Level) -> None:
        """Print a sentence."""
        self._print(f"warning: {text}" if level == "warning" else text)

    def rewind(self, step: int) -> None:
        """Nothing printed can be taken back."""

    def close(self) -> None:
        """Leave the stream as it was."""
        self._stream.flush()

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def open_console(total: int | None = None, stream: TextIO | None = None) -> Sink:
    """Return the console that fits `stream` (default: standard output); `total` in steps."""
    return PlainConsole(total, stream or sys.stdout)
