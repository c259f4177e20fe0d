"""Lines that survive kills and full disks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from surefoot.track import lines as room
from surefoot.track.lines import Lines, encode


def fill(path: Path, steps: list[int]) -> Lines:
    lines = Lines(path)
    for step in steps:
        assert lines.append(encode({"kind": "train", "step": step, "x": "é"})) is None
    return lines


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_numbers_of_every_kind_are_valid_json() -> None:
    row = {
        "nan": float("nan"), "inf": float("inf"), "list": [float("-inf"), 1], "map": {"a": 2.5},
        "f32": np.float32(0.5), "bad32": np.float32("nan"), "i64": np.int64(3), "path": Path("x"),
        "text": 'a"\n</script>\x00é', "none": None, "yes": True,
    }  # fmt: skip
    line = encode(row)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    back = json.loads(line, parse_constant=refuse)
    assert back["nan"] == "nan" and back["inf"] == "inf" and back["list"] == ["-inf", 1]
    assert back["f32"] == 0.5 and back["bad32"] == "nan" and back["i64"] == 3
    assert back["path"] == "x" and back["text"] == row["text"] and back["yes"] is True


def test_surrogates_from_a_model_do_not_break_a_row() -> None:
    assert json.loads(encode({"text": "a\ud800b"}))["text"] == "a?b"


def test_a_torn_line_moves_aside(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    fill(path, [1, 2]).close()
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b'{"kind": "train", "st')
    lines = Lines(path)
    assert lines.torn == (size, b'{"kind": "train", "st')
    assert lines.append(encode({"step": 3})) is None
    lines.close()
    assert steps(path) == [1, 2, 3]
    assert (tmp_path / "metrics.jsonl.torn").read_bytes() == b'{"kind": "train", "st\n'


def test_a_row_that_lacks_only_its_newline_stays(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    lines = Lines(path)
    assert lines.torn is None
    lines.append(encode({"step": 3}))
    lines.close()
    assert steps(path) == [1, 2, 3]


def test_zeros_after_a_power_loss_are_torn_too(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n' + b"\0" * 200_000)
    assert Lines(path).torn == (12, b"\0" * 200_000)
    assert steps(path) == [1]


def test_rewind_moves_later_lines_and_keeps_earlier_ones(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = fill(path, [1, 2, 3, 4])
    assert lines.rewind(2) == 2
    lines.append(encode({"step": 3}))
    assert steps(path) == [1, 2, 3]
    assert steps(tmp_path / "metrics.superseded.jsonl") == [3, 4]
    assert lines.rewind(9) == 0
    assert lines.rewind(0) == 3
    assert steps(tmp_path / "metrics.superseded.jsonl") == [3, 4, 1, 2, 3]
    lines.close()


def test_rewind_when_learners_interleave(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = fill(path, [1, 5, 2, 6, 3])
    assert lines.rewind(4) == 2
    lines.append(encode({"step": 4}))
    lines.close()
    assert steps(path) == [1, 2, 3, 4]
    assert steps(tmp_path / "metrics.superseded.jsonl") == [5, 6]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("call", ["fsync", "ftruncate", "replace"])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("to", [4, 1])
def test_rewind_interrupted_anywhere_neither_loses_nor_doubles(
    tmp_path: Path, monkeypatch: Any, interleaved: bool, call: str, which: int, to: int
) -> None:
    path = tmp_path / "metrics.jsonl"
    before = [1, 5, 2, 6, 3] if interleaved else [1, 2, 3, 5, 6]
    lines = fill(path, before)
    owner: Any = Path if call == "replace" else os
    original, count = getattr(owner, call), 0

    class Killed(BaseException):
        pass

    def stop(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > which:
            raise Killed
        return original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(owner, call, stop)
        with contextlib.suppress(Killed):
            lines.rewind(4)
    again = Lines(path)
    again.rewind(to)
    again.close()
    assert steps(path) == [step for step in (1, 2, 3) if step <= to]
    moved = steps(tmp_path / "metrics.superseded.jsonl")
    assert sorted(moved) == [step for step in (2, 3, 5, 6) if step > to]
    assert not list(tmp_path.glob(".*")), "half a file is left over"


def test_a_full_disk_holds_lines_back_and_writes_them_later(
    tmp_path: Path, monkeypatch: Any
) -> None:
    path = tmp_path / "m.jsonl"
    lines = fill(path, [1])
    write = os.write

    def half(handle: int, data: bytes) -> int:
        return write(handle, data[: len(data) // 2])  # what a disk does when it fills up

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", half)
        trouble = lines.append(encode({"step": 2}))
        assert trouble is not None and trouble.errno == errno.ENOSPC
        assert lines.append(encode({"step": 3})) is not None
    assert steps(path) == [1]  # nothing torn
    assert lines.waiting == 2
    assert lines.append(encode({"step": 4})) is None
    assert steps(path) == [1, 2, 3, 4] and lines.lost == 0
    lines.close()


def test_memory_is_bounded_while_the_disk_is_full(tmp_path: Path, monkeypatch: Any) -> None:
    lines = fill(tmp_path / "m.jsonl", [1])
    monkeypatch.setattr(room, "BACKLOG", 100)

    def full(handle: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        for step in range(2, 30):
            lines.append(encode({"step": step}))
    assert lines.waiting + lines.lost == 28 and lines.waiting < 10
    assert lines.sync() is None
    lines.close()
    kept = steps(tmp_path / "m.jsonl")
    assert kept == [1, *range(2 + lines.lost, 30)]  # the newest are kept


def test_rewind_drops_what_waits(tmp_path: Path, monkeypatch: Any) -> None:
    lines = fill(tmp_path / "m.jsonl", [1])
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda handle, data: 0)
        lines.append(encode({"step": 2}))
        lines.append(encode({"step": 3}))
    lines.rewind(2)
    lines.close()
    assert steps(tmp_path / "m.jsonl") == [1, 2]


def test_half_a_line_that_the_disk_does_not_let_go_of_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, write, cut = fill(tmp_path / "m.jsonl", [1]), os.write, os.ftruncate

    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, line: write(handle, line[:5]))
        patch.setattr(os, "ftruncate", refuse)
        assert lines.append(encode({"step": 2})) is not None
        assert lines.append(encode({"step": 3})) is not None
        patch.setattr(os, "write", write)
        assert lines.append(encode({"step": 4})) is not None, "first the half must go"
        patch.setattr(os, "ftruncate", cut)
        assert lines.append(encode({"step": 5})) is None
    assert lines.close() is None
    assert steps(lines.path) == [1, 2, 3, 4, 5]
