"""Real kills and a real full disk: the record of a run stays whole."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from surefoot.track.record import Record

WRITER = """
import sys
from pathlib import Path
from surefoot.track.record import Record
path, segment, first = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
with Record(path, segment, first) as record:
    step, back, written = first, set(), 0
    while True:
        step, written = step + 1, written + 1
        record.row("train", step, loss=1.0 / step, text=f"{written} " + "x" * (step % 300))
        record.sample(step, "main", "", f"{written} " + "y" * 100)
        if step % 20 == 0 and step not in back:
            back.add(step)
            step -= 5
            record.rewind(step)
        print(step, flush=True)
"""


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_killed_at_any_moment_each_step_is_there_once(tmp_path: Path) -> None:
    first = 0
    for segment, until in enumerate((3, 40, 57, 99, 101, 160, 161)):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(segment), str(first)],
            stdout=subprocess.PIPE,
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if int(line) >= first + until:
                    break
            child.send_signal(signal.SIGKILL)
        first += until // 2
    with Record(tmp_path, 99, first):
        pass
    for name in ("metrics", "samples"):
        rows = read(tmp_path / f"{name}.jsonl")
        assert [row["step"] for row in rows] == list(range(1, first + 1))
        segments = [row["segment"] for row in rows]
        assert segments == sorted(segments)
        moved = read(tmp_path / f"{name}.superseded.jsonl")
        places = [(row["segment"], row["text"].split()[0]) for row in moved]
        assert len(set(places)) == len(places)


PRIVATE = ("unshare", "--map-root-user", "--mount", "sh", "-c")
ON_SMALL_DISK = 'mount -t tmpfs -o size=256k tmpfs "$1" && exec "$2" -c "$3" "$1"'
FILLING = """
import json, sys
from pathlib import Path
from surefoot.track.record import Record
disk, found = Path(sys.argv[1]), {}
ballast = disk / "ballast"
ballast.write_bytes(b"x" * 150_000)
with Record(disk) as record:
    for step in range(1, ROWS + 1):
        record.row("train", step, loss=1.0, text="x" * 60)
    record.sample(1, "main", "", "y" * 1000)
    found["before"] = (disk / "metrics.jsonl").stat().st_size
    if FREED:
        ballast.unlink()
    record.sync()
found["log"] = (disk / "log.txt").read_text()
found["steps"] = [json.loads(line)["step"] for line in (disk / "metrics.jsonl").open()]
print(json.dumps(found))
"""


def fill(place: Path, rows: int, freed: bool) -> Any:
    """Write rows to a disk of 256 kB that no other process sees and that ends with its process."""
    code = FILLING.replace("ROWS", str(rows)).replace("FREED", str(freed))
    probe = ["mount", "-t", "tmpfs", "tmpfs", str(place)]
    try:
        allowed = subprocess.run([*PRIVATE[:3], *probe], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare on this machine")
    if allowed.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    done = subprocess.run(
        [*PRIVATE, ON_SMALL_DISK, "sh", str(place), sys.executable, code],
        capture_output=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_a_disk_that_fills_up_and_is_freed_again(tmp_path: Path) -> None:
    found = fill(tmp_path, 1000, freed=True)
    assert found["before"] < 111_000  # it was full long before the end
    assert found["steps"] == list(range(1, 1001))
    assert "no row is lost" in found["log"]


def test_a_disk_that_stays_full(tmp_path: Path) -> None:
    steps = fill(tmp_path, 3000, freed=False)["steps"]
    assert steps == list(range(1, len(steps) + 1)) and 400 < len(steps) < 1000
