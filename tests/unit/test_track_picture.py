"""Pictures as data: checked when made, plain when written."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from surefoot.track.picture import Bars, Grid, Points, Table, as_row


def test_what_does_not_fit_together_is_refused_at_once() -> None:
    makers: list[Any] = [
        lambda: Bars("t", ["a"], [1, 2]),
        lambda: Grid("t", ["a"], ["x", "y"], [[1]]),
        lambda: Grid("t", ["a", "b"], ["x"], [[1]]),
        lambda: Table("t", ["a"], [["1", "2"]]),
        lambda: Points("t", [1], [1, 2]),
        lambda: Points("t", [1], [1], colors=["#fff", "#000"]),
    ]
    for make in makers:
        with pytest.raises(ValueError, match=r"picture 't': .* do not fit together"):
            make()
    with pytest.raises(ValueError, match="larger than"):
        Points("t", range(20_001), range(20_001))
    with pytest.raises(ValueError, match="larger than"):
        Grid("t", ["a"] * 200, ["b"] * 200, [[0] * 200] * 200)


def test_any_numbers_become_plain_ones() -> None:
    grid = Grid("t", ["a"], ["x", "y"], np.array([[1.23456789, np.inf]]), low=0.0)  # type: ignore[arg-type]
    row = as_row(grid)
    assert row["values"] == [[1.2346, None]] and row["low"] == 0.0 and row["kind"] == "grid"
    table = as_row(Table("t", ["name", "n"], [("#ff0000", np.float32(0.5)), ("b", math.nan)]))
    assert table["rows"] == [["#ff0000", 0.5], ["b", None]]
    assert json.loads(json.dumps(table, allow_nan=False)) == table
