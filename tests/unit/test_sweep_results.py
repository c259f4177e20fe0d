"""What came of a sweep: which value counts, who is ranked where, and how sure that is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from surefoot.errors import RunError
from surefoot.sweep.folder import Sweep
from surefoot.sweep.page import document, write
from surefoot.sweep.plan import Plan
from surefoot.sweep.results import importances, results
from surefoot.sweep.space import Dimension
from surefoot.sweep.trials import Trial
from surefoot.sweep.work import value_of

SPACE = [
    Dimension("model.num_layers", "num_layers", (1, 2)),
    Dimension("machine.precision", "precision", ("fp32", "bf16")),
]
PLAN = Plan(
    "charlm", "tiny", {}, {}, "grid", SPACE, 4, [1, 2], True, "val_loss", "main", "min"
)  # fmt: skip


def sweep(tmp_path: Path, **changes: Any) -> Sweep:
    return Sweep(tmp_path, replace(PLAN, **changes), "2026-11-26T12:00:00+00:00")


def trials(*values: tuple[float, ...]) -> list[Trial]:
    return [
        Trial(n, PLAN.point(n), "done", {str(s): v for s, v in enumerate(found, 1)})
        for n, found in enumerate(values)
    ]


def run_with(tmp_path: Path, rows: list[dict[str, Any]], best: Any = None) -> Any:
    head = {"kind": "eval", "learner": "main", "segment": 0, "time": 0.0}
    text = "".join(json.dumps(head | row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    return SimpleNamespace(path=tmp_path, name="trial-001", meta={"best": best})


def settled(patience: int = 0, restore: bool = True) -> Any:
    train = SimpleNamespace(patience=patience, restore_best=restore)
    return SimpleNamespace(config=SimpleNamespace(train=train))


ROWS = [{"step": 10, "val_loss": 3.0}, {"step": 20, "val_loss": 1.0}, {"step": 30, "val_loss": 2.0}]


@pytest.mark.parametrize(
    ("patience", "restore", "value"), [(0, True, 2.0), (2, True, 1.0), (2, False, 2.0)]
)
def test_the_weights_that_a_run_ended_with_count(tmp_path, patience, restore, value) -> None:
    run = run_with(tmp_path, ROWS, {"main": [20, 1.0]})
    assert value_of(run, settled(patience, restore), "main", "val_loss") == value


def test_a_value_that_is_missing_or_none_is_told(tmp_path: Path) -> None:
    run = run_with(tmp_path, [*ROWS, {"step": 40, "val_loss": "nan"}])
    with pytest.raises(RunError, match="val_loss is nan at step 40"):
        value_of(run, settled(), "main", "val_loss")
    with pytest.raises(RunError, match="reports no warmth") as caught:
        value_of(run, settled(), "main", "warmth")
    assert "val_loss" in str(caught.value.fix)


def test_ranking_and_how_sure_it_is(tmp_path: Path) -> None:
    found = trials((2.0, 2.2), (1.0, 1.2), (1.05, 1.3), (9.0, 9.1))
    made = results(sweep(tmp_path), [*found[:3], replace(found[3], state="failed", why="it died")])
    assert [entry.trial.number for entry in made.ranked] == [1, 2, 0]
    assert made.verdicts == ["within the noise", "clear"]
    assert [entry.trial.number for entry in made.as_good] == [2]
    assert any(note.endswith("within the noise. Trial 3 may be as good.") for note in made.notes())
    told = document(made)
    assert [t["trial"] for t in told["trials"]] == [2, 3, 1, 4]
    assert told["trials"][0]["deviation"] == pytest.approx(0.1414, abs=1e-3)
    assert told["trials"][-1]["why"] == "it died" and told["ended"] == 4
    high = results(sweep(tmp_path, goal="max"), found)
    assert [entry.trial.number for entry in high.ranked] == [3, 0, 2, 1]


def test_one_seed_each_is_set_against_the_evaluations(tmp_path: Path) -> None:
    made = results(sweep(tmp_path, repeated=False, seeds=[1]), trials((1.0,), (2.0,)))
    assert made.verdicts == ["not known"], "there are no evaluations"
    assert any("--repeat 3 tells" in note for note in made.notes())
    assert "2 of 4 trials have not ended yet." in made.notes()


def test_what_matters_is_found(tmp_path: Path) -> None:
    made = results(sweep(tmp_path), trials((1.0, 1.1), (1.0, 1.1), (3.0, 3.1), (3.0, 3.1)))
    few = results(sweep(tmp_path), trials((1.0, 1.1)))
    assert "at least say which setting matters" in str(importances(few))
    pytest.importorskip("optuna")
    shares = importances(made)
    assert isinstance(shares, dict) and shares["num_layers"] > 0.9 > shares["precision"]


def test_the_page_holds_what_a_trial_says_without_harm(tmp_path: Path) -> None:
    harm = "</script><script>alert(1)</script>"
    failed = Trial(3, PLAN.point(3), "failed", {}, harm)
    made = results(sweep(tmp_path), [*trials((1.0, 1.1), (2.0, 2.1)), failed])
    page, picture = write(made)
    text = page.read_text(encoding="utf-8")
    assert harm not in text and "&lt;/script&gt;" in text
    assert '"names":["fp32","bf16"]' in text
    assert picture is not None and picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parallel.png", "report.html"]
