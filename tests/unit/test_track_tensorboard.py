"""TensorBoard events: one seamless curve, whatever the run went through."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from surefoot.track.record import Record
from surefoot.track.tensorboard import TensorBoard

Point = tuple[int, float]


def events(folder: Path) -> Iterator[Any]:
    """Yield the events of a folder in the order in which TensorBoard reads the files."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("*tfevents*")):
        data, place = path.read_bytes(), 0
        while place + 12 <= len(data):
            (size,) = struct.unpack("<Q", data[place : place + 8])
            body = data[place + 12 : place + 12 + size]
            if len(body) < size:
                break  # cut off by a kill
            yield Event.FromString(body)
            place += 12 + size + 4


def curve(folder: Path, tag: str) -> list[Point]:
    """Return the points that TensorBoard's Python loader keeps: it ignores the first START."""
    starts, kept = 0, []
    for event in events(folder):
        if event.HasField("session_log"):
            starts += 1
            if starts > 1:
                kept = [point for point in kept if point[0] < event.step]
        for value in event.summary.value:
            if value.tag == tag:
                amount = value.tensor.float_val[0] if value.tensor.float_val else value.simple_value
                kept.append((event.step, round(amount, 4)))
    return kept


def texts(folder: Path) -> list[str]:
    found = []
    for event in events(folder):
        for value in event.summary.value:
            found += [text.decode() for text in value.tensor.string_val]
    return found


def process(path: Path, segment: int, first: int, last: int) -> None:
    """Write steps first+1 to last as one process, whose loss tells which it was."""
    with Record(path, segment, first, [TensorBoard(path / "tb", segment, first)]) as record:
        for step in range(first + 1, last + 1):
            record.row("train", step, loss=float(segment), lr=1e-3)
            if step % 10 == 0:
                record.row("eval", step, val_loss=2.0 + segment, val_bits_per_char=3.0)


def test_three_processes_make_one_curve(tmp_path: Path) -> None:
    process(tmp_path, 0, 0, 50)
    process(tmp_path, 1, 30, 70)
    process(tmp_path, 2, 65, 90)
    expected = [(s, 0.0 if s <= 30 else 1.0 if s <= 65 else 2.0) for s in range(1, 91)]
    assert curve(tmp_path / "tb", "loss/train") == expected
    assert [s for s, _ in curve(tmp_path / "tb", "loss/val")] == list(range(10, 91, 10))
    tags = {value.tag for event in events(tmp_path / "tb") for value in event.summary.value}
    assert tags == {
        "loss/train", "train/lr", "loss/val", "val/bits_per_char", "custom_scalars__config__",
        "events/text_summary", "resumes/process 2", "resumes/process 3",
    }  # fmt: skip
    assert curve(tmp_path / "tb", "resumes/process 2") == [(30, 0.0), (31, 1.0)]
    assert "resumed: went on after step 65: the reason is not known" in texts(tmp_path / "tb")[-1]


def test_each_file_begins_with_where_it_goes_on(tmp_path: Path) -> None:
    process(tmp_path, 0, 0, 5)
    process(tmp_path, 1, 3, 8)
    starts = [event.step for event in events(tmp_path / "tb") if event.HasField("session_log")]
    assert starts == [0, 4]
    assert len(list((tmp_path / "tb").iterdir())) == 2


def test_a_rewind_in_the_same_process_is_seamless(tmp_path: Path) -> None:
    with Record(tmp_path, 0, 0, [TensorBoard(tmp_path / "tb")]) as record:
        for step in range(1, 21):
            record.row("train", step, loss=1.0)
        record.rewind(12)
        for step in range(13, 26):
            record.row("train", step, loss=2.0)
    found = curve(tmp_path / "tb", "loss/train")
    assert found == [(s, 1.0 if s <= 12 else 2.0) for s in range(1, 26)]


def test_learners_have_folders_and_first_steps_of_their_own(tmp_path: Path) -> None:
    for segment, first, places in ((0, 0, {}), (1, 4, {"ahead": 8, "behind": 4})):
        sink = TensorBoard(tmp_path / "tb", segment, first)
        with Record(tmp_path, segment, first, [sink], places) as record:
            for name in ("ahead", "behind"):
                for step in range(places.get(name, 0) + 1, 11):
                    record.row("train", step, name, loss=float(segment))
    for name, last in (("ahead", 8), ("behind", 4)):
        found = curve(tmp_path / "tb" / name, "loss/train")
        assert found == [(s, 0.0 if s <= last else 1.0) for s in range(1, 11)]


KILLED = """
import os, sys
from pathlib import Path
from surefoot.track.record import Record
from surefoot.track.tensorboard import TensorBoard
path = Path(sys.argv[1])
record = Record(path, 0, 0, [TensorBoard(path / "tb")])
for step in range(1, 41):
    record.row("train", step, loss=0.0)
    if step == 30:
        record.sync()
os.kill(os.getpid(), 9)
"""


def test_what_was_synced_survives_a_kill(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -9
    process(tmp_path, 1, 30, 45)
    found = curve(tmp_path / "tb", "loss/train")
    assert found == [(s, 0.0 if s <= 30 else 1.0) for s in range(1, 46)]


def test_samples_and_events_are_text(tmp_path: Path) -> None:
    with Record(tmp_path, 0, 0, [TensorBoard(tmp_path / "tb")]) as record:
        record.sample(5, "main", "# ROMEO:\n", "x\x1b[0m")
        record.row("event", 6, event="skip", why="loss is nan")
        record.note("not for TensorBoard")
    assert texts(tmp_path / "tb")[1:] == [  # the first is the layout of a chart
        "    # ROMEO:\n    x␛[0m",  # a code block: no Markdown in it
        "    event: skip\n    why: loss is nan",
    ]


def test_values_that_are_not_finite_are_not_hidden(tmp_path: Path) -> None:
    with Record(tmp_path, 0, 0, [TensorBoard(tmp_path / "tb")]) as record:
        record.row("train", 1, loss=float("inf"), note="text is no scalar")
    assert curve(tmp_path / "tb", "loss/train") == [(1, float("inf"))]


def test_a_full_disk_switches_it_off_and_training_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    from tensorboardX.event_file_writer import EventsWriter

    def full(self: Any) -> None:
        raise OSError(28, "No space left on device")

    with Record(tmp_path, 0, 0, [TensorBoard(tmp_path / "tb")]) as record:
        record.row("train", 1, loss=1.0)
        with monkeypatch.context() as patched:
            patched.setattr(EventsWriter, "flush", full)
            patched.setattr(
                EventsWriter, "close", lambda writer: writer._py_recordio_writer.close()
            )
            record.sync()
        record.row("train", 2, loss=1.0)
    assert "TensorBoard is switched off: OSError" in (tmp_path / "log.txt").read_text()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_importing_the_sink_imports_no_torch() -> None:
    code = "import sys, surefoot.track.tensorboard; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_the_real_loader_agrees(tmp_path: Path) -> None:
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    process(tmp_path, 0, 0, 50)
    process(tmp_path, 1, 30, 70)
    os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
    accumulator = module.EventAccumulator(str(tmp_path / "tb"))
    accumulator.Reload()
    steps = [scalar.step for scalar in accumulator.Scalars("loss/train")]
    assert steps == list(range(1, 71))
