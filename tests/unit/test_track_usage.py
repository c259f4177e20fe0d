"""Time and memory as figures, planned against used, from any run.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surefoot.track.figures import Figure, figures
from surefoot.track.plots import draw, draw_picture, write_plots
from surefoot.track.reading import History, read_history
from surefoot.track.record import Record
from surefoot.track.usage import planned, shares, usage


def measured(**values: Any) -> History:
    made = History()
    for step in (10, 20, 30):
        parts = {"compute_s": 4.0, "data_s": 1.0, "evaluate_s": step / 10, "save_s": 0.0}
        made.add({"kind": "system", "step": step, **parts, "memory_bytes": 10.0 * step, **values})
    return made


def test_time_adds_up() -> None:
    made = measured()
    time = usage(made, {})[0]
    assert time.stack and time.unit == "seconds"
    assert [(c.name, c.steps, c.values) for c in time.curves] == [
        ("compute", [10, 20, 30], [4.0, 8.0, 12.0]),
        ("data", [10, 20, 30], [1.0, 2.0, 3.0]),
        ("evaluation", [10, 20, 30], [1.0, 3.0, 6.0]),
    ]
    assert shares(made)[:3] == [("compute", 12.0), ("data", 3.0), ("evaluation", 6.0)]
    (axes,) = draw(time).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "compute", "data", "evaluation",
    ]  # fmt: skip


def test_memory_is_held_against_the_plan() -> None:
    meta = {"plan": {"memory": 200}, "segments": [{"memory": 40}, {"memory": 50}]}
    memory = usage(measured(), meta)[1]
    assert (
        memory.rule == 250 and memory.note == "Dotted: 250 B planned for training. Highest: 300 B."
    )
    on_device = usage(measured(gpu_bytes=120, gpu_reserved_bytes=160), meta)[1]
    assert on_device.rule == 200 and len(on_device.curves) == 3
    for rubbish in (
        {},
        {"plan": 3},
        {"plan": {"memory": "x"}},
        {"plan": {"memory": 1}, "segments": [0]},
    ):
        assert usage(measured(), rubbish)[1].rule is None


def test_nothing_measured_is_nothing_drawn() -> None:
    assert usage(History(), {"plan": {"memory": 200}}) == []


def test_rates_are_held_against_the_plan() -> None:
    made = History()
    made.add({"kind": "train", "step": 1, "learner": "main", "lr": 0.5})
    rate: Figure = next(f for f in figures(made) if f.id == "lr")
    found = planned(rate, {"rates": {"main": [[1, 0.5], [9, 0.1]]}}).curves
    assert [(c.name, c.role, c.steps, c.values) for c in found] == [
        ("used", "train", [1], [0.5]), ("planned", "plan", [1, 9], [0.5, 0.1]),
    ]  # fmt: skip
    for rubbish in (None, [], {"main": 3}, {"main": [3, [1], ["x", 2]]}):
        assert all(not c.steps for c in planned(rate, {"rates": rubbish}).curves[1:])


def test_system_rows_are_read_from_their_own_file(tmp_path: Path) -> None:
    with Record(tmp_path) as record:
        record.row("train", 10, loss=1.0)
        record.row("system", 10, compute_s=1.0)
    found = read_history(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in found.system] == [10] and len(found.train["main"]) == 1


def test_parts_that_share_a_group_share_a_figure(tmp_path: Path) -> None:
    made = History()
    for step in (1, 2):
        values = {"ratio/blocks.0": 1e-3, "ratio/head": 2e-3, "teacher": 0.5}
        made.add({"kind": "train", "step": step, "learner": "main", "loss": 1.0, **values})
    found = {figure.id: figure for figure in figures(made)}
    assert list(found) == ["loss", "ratio", "teacher"]
    assert [curve.name for curve in found["ratio"].curves] == ["blocks.0", "head"]


def test_every_kind_of_picture_can_be_drawn_as_a_file(tmp_path: Path) -> None:
    bars = {"kind": "bars", "step": 1, "title": "$b$", "labels": ["$x"], "values": [None]}
    grid = {"kind": "grid", "step": 1, "rows": ["a"], "columns": ["b"], "values": [[None]]}
    points = {"kind": "points", "step": 1, "x": [1, None], "y": [2, 3], "colors": ["#fff", "#000"]}
    table = {"kind": "table", "step": 1, "head": ["a"], "rows": [["#fff"]]}
    shown = [
        {"name": f"../{picture['kind']}", "learners": [{"learner": "a", "frames": [picture]}] * 2}
        for picture in (bars, grid, points, table)
    ]
    paths = write_plots(tmp_path / "plots", [], [], shown)
    assert sorted(path.name for path in paths) == [
        "picture-..-bars.png", "picture-..-grid.png", "picture-..-points.png",
    ]  # fmt: skip
    assert all(path.parent == tmp_path / "plots" for path in paths)
    assert draw_picture([("a", bars)]).axes[0].get_title(loc="left") == "$b$, step 1"
