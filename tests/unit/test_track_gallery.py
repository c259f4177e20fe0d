"""Pictures for a page: few, small, and drawable whatever the file holds."""

from __future__ import annotations

import json
from pathlib import Path

from surefoot.track.gallery import FRAMES, ROOM, gallery
from surefoot.track.picture import Bars, Grid
from surefoot.track.record import Record


def test_frames_are_few_even_and_newest_last(tmp_path: Path) -> None:
    with Record(tmp_path) as record:
        for step in range(1, 201):
            for learner in ("a", "b"):
                bars = Bars("Errors", ["x"], [step / 7])
                record.picture(step, learner, "errors", bars)
    (shown,) = gallery(tmp_path / "pictures.jsonl")
    assert shown["name"] == "errors" and [who["learner"] for who in shown["learners"]] == ["a", "b"]
    frames = shown["learners"][0]["frames"]
    steps = [frame["step"] for frame in frames]
    assert len(steps) == FRAMES and steps[0] == 1 and steps[-1] == 200 and steps == sorted(steps)
    assert frames[-1]["values"] == [28.6] and "time" not in frames[0]


def test_large_pictures_have_fewer_frames(tmp_path: Path) -> None:
    names = [str(i) for i in range(100)]
    with Record(tmp_path) as record:
        for step in range(1, 50):
            values = [[0.123456 * (i + j) for i in range(100)] for j in range(100)]
            record.picture(step, "main", "map", Grid("Map", names, names, values))
            record.picture(step, "main", "small", Grid("Map", ["a"], ["b"], [[1.0]]))
    large, small = gallery(tmp_path / "pictures.jsonl")
    assert [f["step"] for f in large["learners"][0]["frames"]] == [49]
    assert len(small["learners"][0]["frames"]) == FRAMES
    assert len(json.dumps([large, small])) < ROOM * 1.2


def test_rubbish_is_left_out(tmp_path: Path) -> None:
    rows = [
        '{"kind": "bars", "labels": 3, "values": [1]}', '{"kind": "film"}', "rubbish", "[]",
        '{"step": "x", "kind": "bars", "labels": ["a"], "values": [1]}',
        '{"kind": "bars", "labels": ["\\u001b[2J"], "values": [NaN, Infinity]}',
    ]  # fmt: skip
    (tmp_path / "pictures.jsonl").write_text("\n".join(rows))
    (shown,) = gallery(tmp_path / "pictures.jsonl")
    (frame,) = shown["learners"][0]["frames"]
    assert frame == {"step": 0, "kind": "bars", "labels": ["␛[2J"], "values": [None, None]}
    assert gallery(tmp_path / "nothing.jsonl") == []
