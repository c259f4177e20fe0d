"""A second place for checkpoints: used when the first is lost, and never in the way."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trials import CONDITIONS, DONE, differences, undisturbed

CONDITION = CONDITIONS["mirror"]
NEWEST = "checkpoints/step-000000010/main.model.safetensors"


def log_of(run: Path) -> str:
    return (run / "log.txt").read_text()


LOSSES: dict[str, Callable[[Path], Any]] = {
    "checkpoints deleted": lambda run: shutil.rmtree(run / "checkpoints"),
    "newest damaged": lambda run: (run / NEWEST).write_bytes(b""),
    "newest deleted": lambda run: shutil.rmtree((run / NEWEST).parent),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_what_the_run_lost_comes_back_from_the_mirror(stage: Any, loss: str) -> None:
    _, expected = undisturbed(stage, "plain")
    with stage.zygote() as zygote, stage.folder() as runs:
        assert CONDITION.play(zygote, runs, kill_at=11).killed
        LOSSES[loss](runs / "trial")
        outcome = CONDITION.play(zygote, runs)
        assert outcome.code == DONE, outcome.error
        said = log_of(runs / "trial")
        assert "step-000000010: brought back from the mirror" in said
        assert "resume proven over 1 step" in said
        wrong = differences(expected, runs / "trial") or ""
        assert not [w for w in wrong.split(", ") if w and "damaged" not in w]


def test_the_mirror_is_a_run_of_its_own(stage: Any) -> None:
    _, expected = undisturbed(stage, "plain")
    with stage.zygote() as zygote, stage.folder() as runs:
        assert CONDITION.play(zygote, runs, kill_at=11).killed
        shutil.rmtree(runs / "trial")
        outcome = CONDITIONS["plain"].play(zygote, runs / "mirror")
        assert outcome.code == DONE, outcome.error
        assert not differences(expected, runs / "mirror" / "trial")


def test_a_mirror_that_is_lost_stops_nothing(stage: Any) -> None:
    _, expected = undisturbed(stage, "plain")
    with stage.zygote() as zygote, stage.folder() as runs:
        assert CONDITION.play(zygote, runs, kill_at=5).killed
        shutil.rmtree(runs / "mirror")
        (runs / "mirror").write_text("no folder any more")
        outcome = CONDITION.play(zygote, runs)
        assert outcome.code == DONE, outcome.error
        assert not differences(expected, runs / "trial")
        assert log_of(runs / "trial").count("training goes on") == 1, "told once"


def test_a_damaged_mirror_is_not_believed(stage: Any) -> None:
    _, expected = undisturbed(stage, "plain")
    with stage.zygote() as zygote, stage.folder() as runs:
        assert CONDITION.play(zygote, runs, kill_at=11).killed
        shutil.rmtree(runs / "trial" / "checkpoints")
        (runs / "mirror" / "trial" / NEWEST).write_bytes(b"")
        outcome = CONDITION.play(zygote, runs)
        assert outcome.code == DONE, outcome.error
        assert "step-000000009: brought back" in log_of(runs / "trial")
        assert not differences(expected, runs / "trial", "steps kept")
