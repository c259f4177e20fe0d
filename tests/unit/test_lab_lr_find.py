"""Learning rates are suggested where the loss falls, and nothing is left of the trial."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from surefoot.cli import main
from surefoot.errors import SurefootError
from surefoot.lab.lr_find import smoothed, suggest

TINY = ["lr-find", "colours", "--preset", "tiny", "--reads", "rgb", "--device", "cpu"]


def test_suggestions_lie_where_they_say() -> None:
    rates = np.geomspace(1e-5, 10, 121)
    place = np.log10(rates)
    # Flat, then falling fastest at 1e-2, lowest at 1e-1, then away.
    loss = 3 - 2 / (1 + np.exp(-4 * (place + 2))) + np.exp(6 * (place - 0.6))
    found = suggest(rates.tolist(), loss.tolist())
    lowest = rates[loss.argmin()]
    assert found["steepest"] == pytest.approx(1e-2, rel=0.2)
    assert found["minimum/10"] == pytest.approx(lowest / 10, rel=0.3)
    assert found["steepest"] < found["slide"] < lowest
    assert found["valley"] < lowest


@pytest.mark.parametrize(
    "losses", [[3.0] * 50, np.linspace(1, 5, 50).tolist(), [2.0, 1.0], []], ids=len
)
def test_a_loss_that_does_not_fall_suggests_nothing(losses: list[float]) -> None:
    rates = np.geomspace(1e-5, 1, max(1, len(losses)))[: len(losses)].tolist()
    with pytest.raises(SurefootError) as error:
        suggest(rates, losses)
    assert "--to" in str(error.value.fix)


def test_means_do_not_lag_behind() -> None:
    line = np.linspace(5, 1, 41)
    assert smoothed(line.tolist())[4:-4] == pytest.approx(line[4:-4])


def test_four_are_named_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "rates.png"
    assert main([*TINY, "--picture", str(picture), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert list(found["suggestions"]) == ["steepest", "valley", "minimum/10", "slide"]
    assert all(1e-5 < rate < 0.3 for rate in found["suggestions"].values())
    assert found["muon"] == pytest.approx(0.02 / 3e-3)
    assert len(found["rates"]) == len(found["losses"]) == len(found["smooth"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["rates.png"], "no run is begun"
    assert main(TINY) == 0
    said = capsys.readouterr().out
    assert said.count("--muon-lr") == 4 and "those of before (checksum" in said


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--from", "1", "--to", "0.1"], "0 < --from < --to"),
        (["--trial-steps", "5"], "at least 20"),
        (["--learner", "second"], "one of main"),
        (["--from", "1e-12", "--to", "1e-11"], "other --from and --to"),
        (["--picture", "/nowhere/x.png"], "cannot write"),
        (["--d-modell", "3"], "unknown flag"),
    ],
)
def test_mistakes(more: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, *more]) in (1, 2)
    assert complaint in capsys.readouterr().err


def test_the_weights_are_those_of_before() -> None:
    from surefoot.engine import open_world
    from surefoot.lab.lr_find import try_rates
    from surefoot.recipes import find

    recipe = find("colours")
    sizes = {**recipe.presets["tiny"]["model"], "reads": "rgb"}
    world = open_world("cpu")
    config = recipe.config(model=sizes)
    job = recipe.build(config, world)
    before = {k: v.clone() for k, v in job.learners["main"].model.state_dict().items()}
    found = try_rates(config, job, world, low=1e-5, high=0.1, count=40)
    after = job.learners["main"].model.state_dict()
    assert all(before[key].equal(after[key]) for key in before)
    assert min(found.losses) < 0.9 * found.losses[0], "it did train in between"
