"""The micro-batch: what fits and is fastest; the batch is always the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import surefoot as package
from surefoot.engine.auto.size import divisors, fastest, largest

CPU = torch.device("cpu")
TEXT = str(Path(__file__).parents[1] / "fixtures" / "shakespeare.txt")


def seconds(each: dict[int, float], room: int = 99) -> Any:
    def taken(size: int) -> float:
        if size > room:
            raise torch.OutOfMemoryError("out of memory")
        return each[size] * size

    return taken


def test_the_largest_is_taken_unless_a_smaller_one_is_clearly_faster() -> None:
    found = fastest([12, 6, 4], seconds({12: 1.0, 6: 0.96, 4: 0.97}), CPU)
    assert found is not None and (found.examples, found.each) == (12, 1.0)
    found = fastest([12, 6, 4], seconds({12: 1.0, 6: 0.9, 4: 0.8}), CPU)
    assert found is not None and found.examples == 4 and "12: 1e+03, 6: 900, 4: 800" in found.why


def test_sizes_that_are_slower_end_the_search() -> None:
    each = {12: 1.0, 6: 1.2}  # 4 would be a KeyError
    found = fastest([12, 6, 4], seconds(each), CPU)
    assert found is not None and found.examples == 12


def test_what_does_not_fit_is_left_out() -> None:
    found = fastest([12, 6, 4, 3], seconds({12: 1, 6: 1, 4: 1, 3: 1}, room=5), CPU)
    assert found is not None and found.examples == 4
    assert fastest([12], seconds({12: 1}, room=5), CPU) is None
    with pytest.raises(ZeroDivisionError):
        fastest([1], lambda _: 1 / 0, CPU)


def test_a_device_for_less_than_four_examples_takes_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[int] = []

    def passed(size: int) -> None:
        run.append(size)
        if size > 3:
            raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 700)
    assert largest([12, 6, 4, 3, 2, 1], passed, CPU, 0, 1) == ([3, 2, 1], 700) and run == [1, 4]
    assert largest([8], passed, CPU, 0, 1) == ([8], 700), "what was asked for is tried"
    with pytest.raises(ZeroDivisionError):
        largest([2, 1], lambda size: 1 / (2 - size), CPU, 0, 1)
    run.clear()
    assert largest([12, 6, 4, 3, 2], passed, CPU, 0, 2) == ([3, 2], 350) and run == [2, 4]


def test_what_an_example_takes_is_told_by_two_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that takes no single one as well: 100 bytes each, and 50 whatever their number."""
    run: list[int] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 50 + 100 * run[-1])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (900, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 100)
    for least in (1, 2):
        assert largest([12, 6, 4, 3, 2], run.append, CPU, 200, least) == ([6, 4, 3, 2], 100)
        assert run[-2:] == [least, 4]


def test_pieces_are_equal() -> None:
    assert all(12 % size == 0 for size in divisors(12)) and divisors(7) == [7, 1]


def test_a_control_group_bounds_the_choice_and_a_resume_repeats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Little memory is allowed, so the batch of 8 is cut; the reason is told once."""
    monkeypatch.setattr("surefoot.engine.auto.probe.available", lambda: 200_000)
    settings: dict[str, Any] = {
        "preset": "tiny", "path": TEXT, "runs": tmp_path, "quiet": True,
        "track.report": False, "track.tensorboard": False,
    }  # fmt: skip
    first = package.train("charlm", max_steps=10, **settings)
    meta = json.loads((first.folder / "run.json").read_text())
    assert meta["pinned"]["micro_batch_size"] < 8
    log = (first.folder / "log.txt").read_text()
    assert log.count("micro_batch_size: ") == 1
    monkeypatch.setattr("surefoot.engine.auto.probe.available", lambda: 10**10)
    package.resume(first.folder.name, runs=tmp_path, quiet=True, max_steps=12)
    again = json.loads((first.folder / "run.json").read_text())
    assert again["pinned"] == meta["pinned"]
