"""Train on colours and their names as a person would, and ask what came of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import PINS


def words(runs: Path, name: str, kind: str, *more: str) -> list[str]:
    settings = PINS | {"micro-batch-size": 32, "track.tensorboard": "no"}
    pins = [w for key, value in settings.items() for w in (f"--{key}", str(value))]
    first = ["train", "colours", "--preset", "tiny", "--reads", kind]
    return [*first, *pins, *more, "--runs", str(runs), "--name", name]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short run of each kind; do not change it."""
    from surefoot.cli import main

    runs = tmp_path_factory.mktemp("colours") / "runs"
    for kind in ("rgb", "names", "vectors"):
        steps = () if kind == "rgb" else ("--max-steps", "11")
        assert main([*words(runs, kind, kind, *steps, "--track.report", "no"), "--quiet"]) == 0
    assert main([*words(runs, "both", "both"), "--quiet"]) == 0
    return runs


def test_colours_come_back_nearer_and_nearer(trained: Path) -> None:
    for kind in ("rgb", "both"):
        rows = [json.loads(x) for x in (trained / kind / "metrics.jsonl").read_text().splitlines()]
        errors = [row["rgb_error"] for row in rows if row["kind"] == "eval"]
        assert len(errors) == 3 and errors[0] > errors[-1], kind
        assert errors[-1] < 0.1, "0.26 is what the mean colour would give"


def test_a_colour_is_asked(surefoot: Any, trained: Path) -> None:
    said = surefoot("sample", "both", "--rgb", "0,0.28,0.73", "--json", "--runs", str(trained)).ok()
    found = json.loads(said.out)
    assert len(found["rgb"]) == 3 and all(0 <= channel <= 1 for channel in found["rgb"])
    assert sum(found["rgb"]) > 0.3, "never zeros"
    assert isinstance(found["name"], str)
    assert found["nearest"][0]["name"] == "Absolute Zero"
    text = surefoot("sample", "both", "--rgb", "#0048ba", "--runs", str(trained)).ok().out
    assert text.startswith("asked  #0048ba") and "\x1b" not in text


def test_a_name_is_asked(surefoot: Any, trained: Path) -> None:
    ask = ("--name-text", "Absolute ZERO", "--json", "--runs", str(trained))
    found = json.loads(surefoot("sample", "both", *ask).ok().out)
    assert found["asked"] == "absolute zero" and found["listed"] == ["#0048ba"]
    assert len(found["rgb"]) == 3
    for kind in ("names", "vectors"):
        found = json.loads(surefoot("sample", kind, *ask).ok().out)
        assert found["rgb"] is None and isinstance(found["name"], str)


def test_an_answer_without_a_question_says_what_was_asked(surefoot: Any, trained: Path) -> None:
    runs = ("--runs", str(trained))
    assert surefoot("sample", "both", *runs).ok().out.startswith("#0048ba -> #")
    assert surefoot("sample", "names", *runs).ok().out.startswith("absolute zero -> ")
    colour = surefoot("sample", "both", "--prompt", "0,0.28,0.73", *runs).ok().out
    assert colour.startswith("0,0.28,0.73 -> #")


@pytest.mark.parametrize(
    ("run", "question", "help"),
    [
        ("both", ("--rgb", "0,72,186"), "--rgb 0,0.2824,0.7294"),
        ("both", ("--rgb", "-0.1,0,0"), "channels go from 0 to 1"),
        ("both", ("--name-text", "тест"), "letters, digits"),
        ("both", ("--ask", "2 x 3"), "--rgb or --name-text"),
        ("names", ("--rgb", "0,0,0"), "--reads both"),
        ("rgb", ("--name-text", "teal"), "--reads both"),
    ],
)
def test_questions_that_cannot_be_answered(
    surefoot: Any, trained: Path, run: str, question: tuple[str, str], help: str
) -> None:
    said = surefoot("sample", run, *question, "--runs", str(trained))
    assert said.code in (1, 2) and help in said.err and "Traceback" not in said.err


def test_the_report_shows_colours(trained: Path) -> None:
    rows = [json.loads(x) for x in (trained / "both" / "pictures.jsonl").read_text().splitlines()]
    drawn = {row["name"]: row for row in rows}
    assert set(drawn) == {
        "before and after", "map of the bottleneck", "wrong characters", "names held by length",
    }  # fmt: skip
    swatches = drawn["before and after"]["rows"]
    assert all(row[1][0] == row[2][0] == "#" for row in swatches)
    points = drawn["map of the bottleneck"]
    assert len(points["colors"]) == len(points["x"]) == 878
    assert "#0048ba" in (trained / "both" / "report.html").read_text()


def test_evaluate_sets_a_table_of_words_beside_it(surefoot: Any, trained: Path) -> None:
    said = surefoot("evaluate", "both", "--json", "--runs", str(trained)).ok()
    (scores,) = json.loads(said.out)["metrics"].values()
    assert 0.1 < scores["nearest_word_error"] < 0.22
    assert {"rgb_delta_e", "name_error", "characters", "unseen_characters"} <= set(scores)


def test_nothing_to_learn_is_refused(surefoot: Any, tmp_path: Path) -> None:
    said = surefoot(*words(tmp_path, "none", "rgb", "--loss.rgb-to-rgb", "0"))
    assert said.code == 2 and "nothing is learned" in said.err
