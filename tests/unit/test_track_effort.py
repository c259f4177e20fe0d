"""The loss of several learners by what each one spent."""

from __future__ import annotations

from typing import Any

from surefoot.track.effort import effort
from surefoot.track.reading import History


def history(learners: tuple[str, ...] = ("a", "b")) -> History:
    made = History()
    for who in learners:
        made.eval[who] = [
            {"kind": "eval", "step": step, "learner": who, "val_loss": 10.0 / step}
            for step in (5, 10, 20)
        ]
    turns: list[dict[str, Any]] = [{"a": 1.0, "b": 3.0}, {"a": 2.0, "b": 4.0}]
    made.system += [{"step": 10 * (i + 1), "turns_s": spent} for i, spent in enumerate(turns)]
    return made


def test_each_learner_pays_for_itself() -> None:
    by_time, by_work = effort(history(), {"flops": {"a": 10**9, "b": 4 * 10**9}})
    assert [curve.learner for curve in by_time.curves] == ["a", "b"]
    assert by_time.x == "seconds"
    assert [curve.steps for curve in by_time.curves] == [[0, 1, 3], [2, 3, 7]]
    assert by_work.x == "GFLOP"
    assert [curve.steps for curve in by_work.curves] == [[5, 10, 20], [20, 40, 80]]
    assert by_work.curves[0].values == [2.0, 1.0, 0.5]


def test_what_was_not_measured_is_not_shown() -> None:
    assert effort(history(("a",)), {"flops": {"a": 1}}) == []
    made = history()
    made.system[:] = [{"step": 10}, {"step": 20, "turns_s": "?"}]
    assert effort(made, {}) == []
    assert [figure.id for figure in effort(made, {"flops": {"a": 10**9, "b": None}})] == [
        "loss_by_work"
    ]
