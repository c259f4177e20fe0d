"""Reading records: damaged ones, huge ones, ones that are being written."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from surefoot.track import reading as room
from surefoot.track.lines import encode
from surefoot.track.reading import Damage, column, read_history, read_last, read_rows, squeeze


def row(kind: str, step: int, learner: str = "main", **values: Any) -> bytes:
    return encode(
        {"kind": kind, "step": step, "learner": learner, "segment": 0, "time": 1.5, **values}
    )


def test_damaged_lines_are_skipped_counted_and_named(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"a": 1}\nrubbish\n[1]\n\n\xff\xfe\n{"a": 2}\n{"a": 3')
    damage = Damage()
    assert list(read_rows(path, damage)) == [{"a": 1}, {"a": 2}]
    assert damage.count == 3 and damage.lines == [2, 3, 5]
    assert str(damage) == "3 damaged lines (2, 3, 5)"


def test_many_damaged_lines_are_named_shortly(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"x\n" * 500)
    damage = Damage()
    assert list(read_rows(path, damage)) == []
    assert str(damage) == "500 damaged lines (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …)"


def test_missing_and_empty_files(tmp_path: Path) -> None:
    assert list(read_rows(tmp_path / "none")) == []
    assert read_last(tmp_path / "none") is None
    assert read_history(tmp_path / "none").learners == []
    (tmp_path / "empty").touch()
    assert read_last(tmp_path / "empty") is None
    assert read_history(tmp_path / "empty").train == {}


def test_last_row_past_damage_and_over_blocks(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(room, "BLOCK", 16)
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2, "text": "' + b"x" * 100 + b'"}\nbroken\n{"a": 3')
    found = read_last(path)
    assert found is not None and found["a"] == 2
    path.write_bytes(b'{"a": 1}')
    assert read_last(path) == {"a": 1}


def test_history_sorts_rows(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(
        row("train", 1, loss=2.0) + row("eval", 1, "b", val_loss=3.0) + row("system", 1, ram=5)
        + row("event", 1, event="skip") + row("unheard of", 1) + b'{"step": 4}\n'
    )  # fmt: skip
    history = read_history(path)
    assert history.learners == ["main", "b"]
    assert [r["loss"] for r in history.train["main"]] == [2.0]
    assert len(history.system) == len(history.events) == 1 and not history.thinned


def test_a_huge_record_keeps_all_that_tells(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(room, "SMALL", 1000)
    monkeypatch.setattr(room, "BLOCK", 2000)
    monkeypatch.setattr(room, "WINDOWS", 50)
    random.seed(0)
    path, spikes = tmp_path / "m.jsonl", {777: 90.0, 2345: -3.0}
    with path.open("wb") as file:
        for step in range(1, 4001):
            for who in ("a", "b"):
                loss: Any = spikes.get(step, 2 + random.random())
                loss = math.nan if step == 3000 else loss
                norm = 55.0 if step == 1500 else 1.0
                file.write(row("train", step, who, loss=loss, grad_norm=norm))
            if step % 100 == 0:
                file.write(row("eval", step, "a", val_loss=1.0))
            if step == 2000:
                file.write(b"damaged\n")
    history = read_history(path)
    assert history.thinned and history.damage.lines == [2000 * 2 + 20 + 1]
    assert len(history.eval["a"]) == 40
    for who in ("a", "b"):
        kept = {r["step"]: r for r in history.train[who]}
        assert len(kept) < 1500
        assert {1, 777, 1500, 2345, 3000, 4000} <= set(kept)
        assert kept[3000]["loss"] == "nan"
        order = [r["step"] for r in history.train[who]]
        assert order == sorted(order)


def test_foreign_spacing_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    value = {"kind": "train", "step": 1, "learner": "main", "loss": 2}
    path.write_text(
        json.dumps(value, separators=(",", ":")) + "\r\n" + json.dumps(value, indent=None)
    )
    assert len(read_history(path).train["main"]) == 2


def test_columns_leave_out_what_is_no_number() -> None:
    rows = [
        {"step": 1, "x": 2},
        {"step": 2, "x": "soon"},
        {"step": "3", "x": 1},
        {"step": 4, "x": "inf"},
    ]
    assert column(rows, "x") == ([1, 4], [2.0, math.inf])


@given(
    values=st.lists(st.floats(width=32), max_size=300),
    points=st.integers(4, 60),
)
def test_squeezing_keeps_ends_extremes_and_order(values: list[float], points: int) -> None:
    places = squeeze(values, points)
    assert places == sorted(set(places))
    finite = [v for v in values if math.isfinite(v)]
    kept = [values[place] for place in places]
    if values:
        assert places[0] == 0 and places[-1] == len(values) - 1
    if finite:
        assert max(finite) in kept and min(finite) in kept
    assert any(not math.isfinite(v) for v in kept) == any(not math.isfinite(v) for v in values)
    if len(finite) == len(values):
        assert len(places) <= points


def test_a_row_whose_place_cannot_be_true_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    bad = [{"step": "3"}, {"step": True}, {"step": -1}, {"time": "soon"}, {"time": 1e300}]
    bad += [{"segment": None}, {"learner": ["x"]}]
    rows = [{"kind": "train", "step": 1, "loss": 1.0}, *bad, {"kind": "train", "step": 2}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    damage = Damage()
    assert [row["step"] for row in read_rows(path, damage)] == [1, 2]
    assert damage.lines == [2, 3, 4, 5, 6, 7, 8]
