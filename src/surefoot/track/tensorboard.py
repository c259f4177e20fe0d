"""TensorBoard events without a seam: one folder for the whole run, whatever happened to it.

TensorBoard hides what an earlier process wrote past the point from which a later one went on only
if *every* process says where it begins, the first one too; so each file opens with that mark.
The events are written here and now, without tensorboardX's queue and thread: a full disk must
not block a training step, and a commit of a checkpoint must find its events on the disk.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surefoot.track.record import Row, Sink
from surefoot.track.text import clean, real

__all__ = ["TensorBoard"]

PAUSE = 10.0  # seconds between flushes that nothing else asks for
_PLACE = frozenset(("kind", "step", "learner", "segment", "time"))
_TAGS = {"loss": "loss/train", "val_loss": "loss/val"}
_GROUPS = {"train": "train", "eval": "val", "system": "system"}


class TensorBoard(Sink):
    """Writes `tb/`, or `tb/LEARNER/` for learners that are not `main`.

    `first_step` is the step this process goes on from; 0 is a fresh run.
    """

    name = "TensorBoard"

    def __init__(self, path: Path, segment: int = 0, first_step: int = 0) -> None:
        self._path, self._segment = path, segment
        self._purge: dict[str, int] = {}  # of learners that differ from the others
        self._purge_all = first_step + 1 if first_step else 0
        self._writers: dict[str, Any] = {}
        self._opened = 0
        self._next = time.monotonic() + PAUSE

    def row(self, row: Row) -> None:
        """Write the numbers of a row as scalars, and an event as text."""
        if row["kind"] == "event":
            words = [f"{key}: {value}" for key, value in row.items() if key not in _PLACE]
            self._text("events", row, "\n".join(words))
            return
        values = []
        for key, value in row.items():
            if key not in _PLACE and (amount := real(value)) is not None:
                values.append((_tag(row["kind"], key), amount))
        self._write(row, [{"tag": tag, "simple_value": amount} for tag, amount in values])
        if row["kind"] == "eval" or time.monotonic() >= self._next:
            self.sync()

    def sample(self, sample: Row) -> None:
        """Write a sample as text."""
        self._text("samples", sample, f"{sample['prompt']}{sample['text']}")

    def rewind(self, step: int, learners: Mapping[str, int]) -> None:
        """Begin new files that hide what this process wrote after `step`."""
        self.close()
        self._purge_all = step + 1 if step else 0
        self._purge = {name: at + 1 if at else 0 for name, at in learners.items()}

    def sync(self) -> None:
        """Make the events durable."""
        self._next = time.monotonic() + PAUSE
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Finish the files."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _write(self, row: Row, values: list[dict[str, Any]]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        writer = self._writer(row["learner"])
        summary = Summary(value=[Summary.Value(**value) for value in values])
        writer.write_event(Event(wall_time=row["time"], step=row["step"], summary=summary))

    def _text(self, tag: str, row: Row, text: str) -> None:
        """Write text as a block that TensorBoard's Markdown leaves alone."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import text as text_summary

        block = "\n".join(f"    {line}" for line in clean(text).split("\n"))
        summary = text_summary(tag, block)
        event = Event(wall_time=row["time"], step=row["step"], summary=summary)
        self._writer(row["learner"]).write_event(event)

    def _writer(self, learner: str) -> Any:
        if learner not in self._writers:
            folder = self._path if learner == "main" else self._path / learner
            self._writers[learner] = self._open(folder, self._purge.get(learner, self._purge_all))
        return self._writers[learner]

    def _open(self, folder: Path, purge: int) -> Any:
        """Open the next event file of `folder` and say from which step on it counts."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._opened += 1
        suffix = f".{self._segment:04d}-{self._opened:02d}"
        writer = EventsWriter(str(folder / "events"), suffix)
        start = SessionLog(status=SessionLog.START)
        writer.write_event(Event(wall_time=time.time(), step=purge, file_version="brain.Event:2"))
        writer.write_event(Event(wall_time=time.time(), step=purge, session_log=start))
        writer.flush()
        return writer


def _tag(kind: str, key: str) -> str:
    return _TAGS.get(key) or f"{_GROUPS[kind]}/{key.removeprefix('val_')}"
