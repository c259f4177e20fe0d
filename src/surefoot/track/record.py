"""What a run writes down: rows of metrics, samples and notes, to files first and then to sinks.

Nothing here ends a training run. A full disk gives one warning, what it refuses waits in memory,
and what is lost for good becomes an event row; a sink that fails is switched off with a note.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from surefoot.errors import OutOfResources
from surefoot.track.lines import Lines, encode
from surefoot.track.log import Log
from surefoot.track.picture import Picture, as_row

__all__ = ["RESTORED", "Kind", "Level", "Record", "Row", "Sink"]

RESTORED = "was deleted or replaced while it was written; it is whole again"
Row = Mapping[str, Any]
Kind = Literal["train", "eval", "system", "event"]
Level = Literal["info", "warning"]


class Sink(Protocol):
    """Something that shows a record as it is written. The record is the truth; a sink may fail.

    Whoever inherits writes only the methods that show something.
    """

    name: str  # for the note that switches it off

    def at(self, step: int) -> None:
        """Show how far training is: first where it begins, then every step, logged or not."""
        return

    def row(self, row: Row) -> None:
        """Show one row of `metrics.jsonl`."""
        return

    def sample(self, sample: Row) -> None:
        """Show one row of `samples.jsonl`: step, learner, prompt, text."""
        return

    def picture(self, picture: Row) -> None:
        """Show one row of `pictures.jsonl`: step, learner, name, and the picture's own values."""
        return

    def note(self, text: str, level: Level) -> None:
        """Show a sentence."""
        return

    def rewind(self, step: int, learners: Mapping[str, int]) -> None:
        """Forget what was shown of later steps (of some learners: their own): they come again."""
        return

    def sync(self) -> None:
        """Make durable what was written, if anything was."""
        return

    def close(self) -> None:
        """Finish; called once, also when training fails."""
        return


class Record:
    """The record of one process of a run (a segment), appended to the files in `path`.

    Opening it repairs what a crash tore and moves rows after `first_step`, which this process
    will write again, to `metrics.superseded.jsonl` (samples likewise); a learner named in
    `learners` has a first step of its own. Raises OutOfResources when the disk has no room.
    """

    def __init__(
        self,
        path: Path,
        segment: int = 0,
        first_step: int = 0,
        sinks: Iterable[Sink] = (),
        learners: Mapping[str, int] | None = None,
    ) -> None:
        self.path, self.segment, self.first_step = path, segment, first_step
        self._sinks = list(sinks)
        self._lock = threading.RLock()
        self._full = False  # the disk refused something and has not taken it since
        self._lost = 0  # lines whose loss is already an event row
        try:
            self._open(learners)
        except OSError as error:
            what = f"cannot open the record: {error.strerror}"
            fix = "free some space (surefoot prune) and run the command again"
            raise OutOfResources(what, where=str(path), fix=fix) from error
        for lines in self._files:
            if lines.torn is not None:
                self.note(_torn(lines), "warning")
        if segment:
            for sink in self._sinks:
                self._show(sink, "rewind", first_step, learners or {})

    def _open(self, learners: Mapping[str, int] | None) -> None:
        with contextlib.ExitStack() as opened:
            self._log = Log(self.path / "log.txt", self.segment)
            opened.callback(self._log.close)
            self._files = []
            for name in ("metrics", "samples", "system", "pictures"):
                self._files.append(Lines(self.path / f"{name}.jsonl"))
                opened.callback(self._files[-1].close)
            self._metrics, self._samples, self._system, self._pictures = self._files
            self.superseded, *_ = (x.rewind(self.first_step, learners) for x in self._files)
            opened.pop_all()

    def row(self, kind: Kind, step: int, learner: str = "main", **values: Any) -> None:
        """Append one row to `metrics.jsonl`; `values` are plain numbers and texts.

        NaN and infinities are kept, as "nan", "inf" and "-inf". Rows of kind `system` go to
        `system.jsonl`: they tell of this machine, and `metrics.jsonl` is the same on any.
        """
        row = {"kind": kind, **self._head(step, learner), **values}
        self._put("row", self._system if kind == "system" else self._metrics, row)

    def at(self, step: int) -> None:
        """Show that training is at `step`; nothing is written down."""
        with self._lock:
            for sink in self._sinks:
                self._show(sink, "at", step)

    def sample(self, step: int, learner: str, prompt: str, text: str) -> None:
        """Append one text that the model wrote to `samples.jsonl`; `text` without the prompt."""
        sample = {**self._head(step, learner), "prompt": prompt, "text": text}
        self._put("sample", self._samples, sample)

    def picture(self, step: int, learner: str, name: str, picture: Picture) -> None:
        """Append a picture that a recipe made to `pictures.jsonl`."""
        row = {**self._head(step, learner), "name": name, **as_row(picture)}
        self._put("picture", self._pictures, row)

    def note(self, text: str, level: Level = "info", shown: bool = True) -> None:
        """Write a sentence to `log.txt` and show it, unless not `shown`; a warning is shown once."""
        with self._lock:
            if self._log.write(text, level) and shown:
                for sink in self._sinks:
                    self._show(sink, "note", text, level)

    def rewind(self, step: int, learners: Mapping[str, int] | None = None) -> int:
        """Move rows and samples of later steps aside; return how many rows there were.

        A learner named in `learners` has its own step.
        """
        with self._lock:
            moved = 0
            try:
                moved, *_ = (lines.rewind(step, learners) for lines in self._files)
            except OSError as error:
                text = f"rows after step {step} stay in metrics.jsonl: {error.strerror}"
                self.note(text, "warning")
            for sink in self._sinks:
                self._show(sink, "rewind", step, learners or {})
            return moved

    def sync(self) -> OSError | None:
        """Make everything written so far durable; return why it could not be, if so.

        Call it before committing a checkpoint.
        """
        with self._lock:
            trouble = _first(lines.sync() for lines in self._files)
            for lines in self._files:
                if lines.restored:
                    self.note(f"{lines.path.name} {RESTORED}", "warning")
            if trouble is not None or self._full:
                self._report(trouble, self.first_step)
            for sink in self._sinks:
                self._show(sink, "sync")
            return trouble

    def close(self) -> None:
        """Sync, close the files, then let each sink finish; the first one last.

        So whoever talks to people can still say what the others met.
        """
        with self._lock:
            trouble = _first(lines.close() for lines in self._files)
            if trouble is not None:
                self.note(f"the record could not be completed: {trouble.strerror}", "warning")
            for sink in [*self._sinks[1:], *self._sinks[:1]]:
                if sink in self._sinks:
                    self._sinks.remove(sink)
                    self._show(sink, "close")
            self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _head(self, step: int, learner: str) -> dict[str, Any]:
        moment = round(time.time(), 3)
        return {"step": step, "learner": learner, "segment": self.segment, "time": moment}

    def _put(self, verb: str, lines: Lines, row: Row) -> None:
        """Append a row to its file, then show it."""
        with self._lock:
            trouble = lines.append(encode(row))
            if trouble is not None or self._full:
                self._report(trouble, row["step"])
            for sink in self._sinks:
                self._show(sink, verb, row)

    def _report(self, trouble: OSError | None, step: int) -> None:
        """Say once that the disk refuses, and once that it takes lines again."""
        if trouble is not None and not self._full:
            self._full = True
            self.note(
                f"cannot write {self.path / 'metrics.jsonl'}: {trouble.strerror}; training goes on "
                "and the rows wait in memory. To free space: surefoot prune",
                "warning",
            )
        elif trouble is None and self._full and not any(x.waiting for x in self._files):
            self._full = False
            lost = sum(lines.lost for lines in self._files) - self._lost
            self._lost += lost
            kept = f"; {lost} rows are lost" if lost else "; no row is lost"
            self.note(f"the disk takes the record again{kept}", "warning" if lost else "info")
            if lost:
                self.row("event", step, event="gap", lost=lost)

    def _show(self, sink: Sink, verb: str, *arguments: Any) -> None:
        """Call a sink; one that fails is switched off and never seen again."""
        try:
            getattr(sink, verb)(*arguments)
        except Exception as error:  # whatever a display does, training goes on
            self._sinks = [other for other in self._sinks if other is not sink]
            if verb != "close":
                with contextlib.suppress(Exception):
                    sink.close()
            self.note(f"{sink.name} is switched off: {type(error).__name__}: {error}", "warning")


def _first(troubles: Iterable[OSError | None]) -> OSError | None:
    """Return the first trouble, after all have been tried."""
    return next(filter(None, list(troubles)), None)


def _torn(lines: Lines) -> str:
    assert lines.torn is not None
    offset, piece = lines.torn
    name = lines.path.name
    return (
        f"{name}: the last line was cut off by a crash ({len(piece)} bytes at byte {offset}); "
        f"moved to {name}.torn"
    )
