"""What shows a run while it is written: a console, the report, TensorBoard, and files of the user's.

The record is the truth; each of these may fail, and then training goes on without it.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from surefoot import recipes, trust
from surefoot.config.schema import RunConfig
from surefoot.errors import ConfigError

if TYPE_CHECKING:
    from surefoot.track.record import Sink

__all__ = ["Console", "Opener", "Sinks"]

Opener = Callable[[Path, int, int], "Sink"]  # run's folder, number of the process, first step


class Console:
    """Where a person reads along: a stream, or where it fits (terminal, pipe, notebook)."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream

    def say(self, text: str) -> None:
        """Write a sentence before there is a run."""
        stream = self.stream or sys.stdout
        stream.write(text + "\n")
        stream.flush()

    def open(self, total: int | None, best: float | None) -> Sink:
        from surefoot.track.console import open_console

        return open_console(total, best=best, stream=self.stream)


class Sinks:
    """Opens what shows a run as it is written."""

    def __init__(
        self,
        config: RunConfig,
        console: Console | None,
        notes: Sequence[str],
        more: Sequence[Opener] = (),
    ) -> None:
        self.config, self.console, self.notes = config, console, list(notes)
        self.more = more
        self.openers = {
            path: _opener(Path(path), _without(path, config)) for path in config.track.sinks
        }

    def __call__(
        self, path: Path, *, total: int | None, best: float | None, first: int, segment: int
    ) -> list[Sink]:
        found: list[Sink] = []
        if self.console is not None:
            found.append(self.console.open(total, best))
        if self.config.track.report:  # before TensorBoard, which shows its pictures at the end
            from surefoot.track.report import ReportSink

            found.append(ReportSink(path))
        if self.config.track.tensorboard:
            from surefoot.track.tensorboard import TensorBoard

            found.append(TensorBoard(path / "tb", segment, first))
        found += [open_sink(path, segment, first) for open_sink in self.more]
        for name, open_sink in self.openers.items():
            try:
                found.append(open_sink(path, segment, first))
            except Exception as error:  # whatever it is, training goes on
                self.notes.append(f"{name} is switched off: {type(error).__name__}: {error}")
        for sink in found[:1]:
            for note in self.notes:
                sink.note(note, "info")
        return found


def _without(path: str, config: RunConfig) -> str:
    """Return the flag that leaves one of the sinks out."""
    return f"--track.sinks {shlex.quote(','.join(p for p in config.track.sinks if p != path))}"


def _opener(path: Path, without: str) -> Opener:
    """Return `open_sink` of a file: run folder, number of the process, first step -> sink.

    `without` is what to type where it is not to run.
    """
    if path.is_file():
        words = f"surefoot trust {shlex.quote(str(path))}"
        fix = f"{without} goes on without it; read it, and if you want it to run: {words}"
        trust.require(path, "track.sinks of a run or a file of settings", fix)
    found = getattr(recipes.import_file(path), "open_sink", None)
    if not callable(found):
        fix = "define open_sink(run, segment, first_step), which returns a surefoot.track.Sink"
        raise ConfigError(f"{path} has no function open_sink", fix=fix)
    opener: Opener = found
    return opener
