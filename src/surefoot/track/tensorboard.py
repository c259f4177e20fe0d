"""TensorBoard events without a seam: one folder for the whole run, whatever happened to it.

TensorBoard hides what an earlier process wrote past the point from which a later one went on only
if *every* process says where it begins, the first one too; so each file opens with that mark.
At each resume a small curve of its own, with the reason as its description, joins the last kept
point to the first one after it. The events are written here and now, without tensorboardX's queue and thread: a full disk must
not block a training step, and a commit of a checkpoint must find its events on the disk.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from surefoot.errors import RunError
from surefoot.track.figures import reason
from surefoot.track.folder import RunFolder
from surefoot.track.reading import read_last, read_rows
from surefoot.track.record import Row, Sink
from surefoot.track.settings import read_settings
from surefoot.track.text import clean, real

__all__ = ["TensorBoard", "rebuild"]

PAUSE = 10.0  # seconds between flushes that nothing else asks for
IMAGE = 2_000_000  # bytes of a picture that is shown
LAYOUT = {"Loss": {"loss and resumes": ["Multiline", ["loss/.*", "resumes/.*"]]}}
_PLACE = frozenset(("kind", "step", "learner", "segment", "time"))
_TAGS = {"loss": "loss/train", "val_loss": "loss/val"}
_GROUPS = {"train": "train", "eval": "val", "system": "system"}


class TensorBoard(Sink):
    """Writes `tb/`, or `tb/LEARNER/` for learners that are not `main`.

    `first_step` is the step this process goes on from; 0 is a fresh run.
    """

    name = "TensorBoard"

    def __init__(
        self, path: Path, segment: int = 0, first_step: int = 0, run: Path | None = None
    ) -> None:
        self._path, self._segment = path, segment
        self._run = path.parent if run is None else run  # the folder with the record
        self._purge: dict[str, int] = {}  # of learners that differ from the others
        self._purge_all = first_step + 1 if first_step else 0
        self._writers: dict[str, Any] = {}
        self._last: dict[str, Row] = {}  # by learner, the newest training row
        self._opened = 0
        self._next = time.monotonic() + PAUSE

    def row(self, row: Row) -> None:
        """Write the numbers of a row as scalars, and an event as text."""
        if row["kind"] == "event":
            words = [f"{key}: {value}" for key, value in row.items() if key not in _PLACE]
            self._text("events", row, "\n".join(words))
            return
        if row["kind"] == "train":
            self._join(row)
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
        if not self._last and step:  # an earlier process wrote the rows before
            self._last = _last_rows(self._run / "metrics.jsonl", list(learners) or ["main"])

    def sync(self) -> None:
        """Make the events durable."""
        self._next = time.monotonic() + PAUSE
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Finish the files; the pictures that there are by now come first."""
        for learner in [name for name in self._writers if name in self._last]:
            self._images(self._last[learner])
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _join(self, row: Row) -> None:
        """Draw a resume: from the last row of the process before to the first of this one."""
        before, self._last[row["learner"]] = self._last.get(row["learner"]), row
        if before is None or before["segment"] == row["segment"] or before["step"] >= row["step"]:
            return
        why = _reason(self._run, row["segment"])
        text = f"went on after step {before['step']}: {why}"
        self._text("events", row, f"resumed: {text}")
        name: dict[str, Any] = {"tag": f"resumes/process {row['segment'] + 1}"}
        name["metadata"] = {"plugin_data": {"plugin_name": "scalars"}, "summary_description": text}
        for end in (before, row):
            loss = real(end.get("loss"))
            if loss is not None:
                # a tensor: of a simple value, one of TensorBoard's loaders loses the description
                self._write(end, [{**name, "tensor": {"dtype": "DT_FLOAT", "float_val": [loss]}}])

    def _images(self, row: Row) -> None:
        """Write the pictures of the run at the place of `row`."""
        for path in sorted(self._run.glob("plots/[!.]*.png")):
            picture = path.read_bytes()
            if picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) <= IMAGE:
                width, height = (int.from_bytes(picture[i : i + 4]) for i in (16, 20))
                image = {"encoded_image_string": picture, "width": width, "height": height}
                self._write(
                    row, [{"tag": f"plots/{path.stem}", "image": image | {"colorspace": 3}}]
                )

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
        begun = any(entry.is_file() for entry in folder.iterdir())
        self._opened += 1
        suffix = f".{self._segment:04d}-{self._opened:02d}"
        writer = EventsWriter(str(folder / "events"), suffix)
        start = SessionLog(status=SessionLog.START)
        writer.write_event(Event(wall_time=time.time(), step=purge, file_version="brain.Event:2"))
        writer.write_event(Event(wall_time=time.time(), step=purge, session_log=start))
        for summary in () if begun else _preface(self._run):
            writer.write_event(Event(wall_time=time.time(), step=0, summary=summary))
        writer.flush()
        return writer


def rebuild(run: RunFolder) -> int:
    """Write the events of a run anew from its record; return how many rows there were.

    Raises RunError when somebody trains it, OSError when the disk refuses; then `tb/` is as it was.
    """
    fresh, old = run.path / ".tb.new", run.path / ".tb.old"
    with run.lock():
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        sink, count = TensorBoard(fresh, run=run.path), 0
        try:
            for row in read_rows(run.path / "metrics.jsonl"):
                if row.get("kind") in ("train", "eval", "system", "event") and _whole(row):
                    sink.row(row)
                    count += 1
            for sample in read_rows(run.path / "samples.jsonl"):
                if _whole(sample) and {"prompt", "text"} <= sample.keys():
                    sink.sample(sample)
        finally:
            sink.close()
        fresh.mkdir(exist_ok=True)  # a record without a row
        if (run.path / "tb").exists():
            (run.path / "tb").rename(old)
        fresh.rename(run.path / "tb")
        shutil.rmtree(old, ignore_errors=True)
    return count


def _whole(row: Row) -> bool:
    """Whether a row has its place: others were damaged, or are not ours."""
    placed = isinstance(row.get("step"), int) and isinstance(row.get("segment"), int)
    return placed and isinstance(row.get("learner"), str) and real(row.get("time")) is not None


def _preface(run: Path) -> list[Any]:
    """Return the settings as hyperparameters, and a chart of the loss with its resumes."""
    from tensorboardX.summary import custom_scalars, hparams

    try:
        text = (run / "config.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    settings = {setting.field: _plain(setting.value) for setting in read_settings(text)}
    layout = custom_scalars(LAYOUT)
    if not settings:
        return [layout]
    return [*hparams(settings, {"loss/val": 0.0, "loss/train": 0.0})[:2], layout]


def _plain(text: str) -> bool | float | str:
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text.strip('"')


def _last_rows(path: Path, learners: list[str]) -> dict[str, Row]:
    """Return the newest training row of each learner."""
    found: dict[str, Row] = {}
    for name in learners:
        row = read_last(path, partial(_trained, learner=name))
        if row is not None and _whole(row):
            found[name] = row
    return found


def _trained(row: dict[str, Any], learner: str) -> bool:
    return row.get("kind") == "train" and row.get("learner") == learner


def _reason(run: Path, segment: int) -> str:
    """Return why a process went on, as `run.json` knows it."""
    try:
        return reason(RunFolder.open(run).meta["segments"][segment])
    except (RunError, LookupError, TypeError):
        return "the reason is not known"


def _tag(kind: str, key: str) -> str:
    return _TAGS.get(key) or f"{_GROUPS[kind]}/{key.removeprefix('val_')}"
