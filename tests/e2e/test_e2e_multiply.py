"""Several learners in one run: each as if alone, each with its own end, added, killed, resumed."""

from __future__ import annotations

import json
import runpy
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import PINS

from surefoot.engine.store import Store
from surefoot.track.folder import find

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "legacy" / "main.py"
SEED = [
    "--d-model",
    "64",
    "--num-layers",
    "2",
    "--num-latent",
    "4",
    "--min-digits",
    "1",
    "--max-digits",
    "1",
    "--batch-size",
    "16",
    "--max-steps",
    "200",
    "--save-every",
    "10",
]
QUICK = {
    "warmup-steps": 2, "log-every": 1, "validate-every": 4, "sample-every": 0, "save-every": 1,
    "keep.last": 100, "track.tensorboard": "no", "track.report": "no",
}  # fmt: skip
# Everything that has a state: dropout, an average, teacher forcing that waits for a stable loss.
HARD = [
    "--dropout",
    "0.2",
    "--ema",
    "0.9",
    "--forcing",
    "linear",
    "--fall-steps",
    "4",
    "--start-step",
    "stable",
    "--stable-window",
    "2",
    "--stable-tolerance",
    "5",
    "--sequence-weight",
    "0.5",
]


def words(*more: str, runs: Path, name: str) -> list[str]:
    settings = [w for key, value in (PINS | QUICK).items() for w in (f"--{key}", str(value))]
    first = ["train", "multiply", "--preset", "tiny", "--max-steps", "12", "--horizon", "12"]
    return [*first, *settings, *more, "--runs", str(runs), "--name", name]


def learner(runs: Path, name: str, which: str) -> tuple[dict[str, Any], list[Any]]:
    """Return everything that a run knows of one learner: its tensors and state, and its rows."""
    folder = find(runs, name)
    payload = Store(folder.path / "checkpoints", folder.meta["id"]).newest()[1]
    assert payload is not None
    state: dict[str, Any] = {
        f"{file}/{key}": tensor.numpy().tobytes()
        for file, tensors in payload.tensors.items()
        if file.startswith(f"{which}.")
        for key, tensor in tensors.items()
    }
    state["small"] = payload.small["learners"][which]
    rows = map(json.loads, (folder.path / "metrics.jsonl").read_text().splitlines())
    left_out = ("time", "segment", "tokens_per_s", "examples_per_s")
    kept = [{k: v for k, v in r.items() if k not in left_out} for r in rows]
    mine = sorted((r for r in kept if r["learner"] == which), key=lambda r: (r["step"], r["kind"]))
    return state, mine


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `both`, of twelve steps; do not change it."""
    from surefoot.cli import main

    runs = tmp_path_factory.mktemp("beside") / "runs"
    assert main([*words(*HARD, runs=runs, name="both"), "--quiet"]) == 0
    return runs


def test_teacher_forcing_was_midway(beside: Path) -> None:
    """The tests below are about this state, so it must be there."""
    state, rows = learner(beside, "both", "latent")
    remembered = state["small"]["memory"]["teacher_forcing"]
    assert remembered["start"] == 4, "two windows of two losses"
    shares = [row["teacher_forcing"] for row in rows if row["kind"] == "train"]
    assert shares == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0, 0]


@pytest.mark.parametrize("which", ["simple", "latent"])
def test_beside_another_is_as_alone(
    surefoot: Any, beside: Path, tmp_path: Path, which: str
) -> None:
    surefoot(*words(*HARD, "--active", which, runs=tmp_path, name="alone")).ok()
    assert learner(tmp_path, "alone", which) == learner(beside, "both", which)


def test_a_learner_that_joins_later_catches_up_and_nobody_notices(
    surefoot: Any, beside: Path, tmp_path: Path
) -> None:
    """The first is at step 12; the second comes, is killed midway and goes on; then compare."""
    surefoot(*words(*HARD, "--active", "simple", runs=tmp_path, name="grown")).ok()
    before = learner(tmp_path, "grown", "simple")
    with surefoot.signalled(" 8/12  latent", signal.SIGTERM):
        stopped = surefoot("resume", "grown", "--active", "simple,latent", "--runs", tmp_path)
    assert stopped.code == 75
    assert learner(tmp_path, "grown", "latent")[0]["small"]["step"] == 8
    assert learner(tmp_path, "grown", "simple")[0]["small"]["step"] == 12

    meta = json.loads((tmp_path / "grown" / "run.json").read_text())
    store = Store(tmp_path / "grown" / "checkpoints", meta["id"])
    for checkpoint in store.checkpoints()[-2:]:  # as if killed two steps after the last save
        shutil.rmtree(checkpoint.path)
    done = surefoot("resume", "grown", "--runs", tmp_path).ok()  # it remembers who is in it
    assert "resume proven over 2 steps" in done.out
    assert learner(tmp_path, "grown", "simple") == before
    for which in ("simple", "latent"):
        assert learner(tmp_path, "grown", which) == learner(beside, "both", which)


def test_nobody_is_taken_away(surefoot: Any, beside: Path) -> None:
    refused = surefoot("resume", "both", "--active", "latent", "--max-steps", 14, "--runs", beside)
    assert refused.code == 2
    assert "learners.active: ['simple', 'latent'] in the run, ['latent'] asked for" in refused.err


def test_each_has_its_own_end_schedule_and_early_stop(surefoot: Any, tmp_path: Path) -> None:
    own = [
        "--learners.simple.max-steps", "5", "--learners.simple.warmup-steps", "1",
        "--learners.latent.patience", "1", "--learners.latent.min-delta", "100",
        "--active", "simple,latent,decoder",
    ]  # fmt: skip
    told = surefoot(*words(*own, runs=tmp_path, name="own")).ok()
    steps = {
        which: learner(tmp_path, "own", which)[0]["small"]["step"]
        for which in ("simple", "latent", "decoder")
    }
    assert steps == {"simple": 5, "latent": 8, "decoder": 12}
    assert "latent: step 8: no improvement in 1 evaluations; stopping" in told.out
    surefoot("resume", "own", "--max-steps", "14", "--runs", tmp_path).ok()
    assert learner(tmp_path, "own", "simple")[0]["small"]["step"] == 5
    assert learner(tmp_path, "own", "decoder")[0]["small"]["step"] == 14


def test_sizes_given_on_a_resume_are_the_checkpoint_s(
    surefoot: Any, beside: Path, tmp_path: Path
) -> None:
    shutil.copytree(beside / "both", tmp_path / "both")
    other = ("--d-model", 64, "--learners.latent.model.num-latent", 9, "--runs", tmp_path)
    told = surefoot("resume", "both", "--max-steps", 13, *other).ok().out
    assert "model sizes are the checkpoint's: model.d_model 32 and not 64" in told
    assert "learners.latent.model.num_latent and not 9" in told
    refused = surefoot("resume", "both", "--max-steps", 14, "--strict", *other)
    assert refused.code == 2
    assert "model.d_model: 32 in the run, 64 asked for" in refused.err


def test_questions_are_answered_by_all(surefoot: Any, beside: Path) -> None:
    said = surefoot("sample", "both", "--ask", "7 x 8", "--runs", beside).ok().out.splitlines()
    assert [line.partition(" ")[0] for line in said] == ["simple", "latent"]
    found = surefoot("sample", "both", "--ask", "7*8", "--json", "--runs", beside).ok().json
    for facts in found["answers"].values():
        assert facts["right"] == 56
        assert 0 < facts["confidence"] < 1
    one = surefoot("sample", "both", "--ask", "7 x 8", "--learner", "latent", "--runs", beside)
    assert one.out == f"{said[1]}\n"


@pytest.mark.parametrize(
    ("question", "help_"),
    [("7 + 8", '--ask "9 x 9"'), ("seven", '--ask "9 x 9"'), ("70 x 8", "more --max-digits")],
)
def test_questions_that_cannot_be_read(
    surefoot: Any, beside: Path, question: str, help_: str
) -> None:
    refused = surefoot("sample", "both", "--ask", question, "--runs", beside)
    assert refused.code == 2
    assert question.split()[0] in refused.err and help_ in refused.err


def test_evaluation_asks_the_test_set_and_gives_an_interval(surefoot: Any, beside: Path) -> None:
    found = surefoot("evaluate", "both", "--json", "--runs", beside).ok().json["metrics"]
    for scores in found.values():
        assert scores["asked"] == 12
        assert 0 <= scores["exact_low"] <= scores["exact"] <= scores["exact_high"] <= 1


def test_a_checkpoint_of_one_learner_says_so(surefoot: Any, tmp_path: Path) -> None:
    surefoot(*words("--active", "simple", runs=tmp_path, name="one")).ok()
    more = ("--active", "simple,latent", "--learners.latent.max-steps", 3)
    surefoot("resume", "one", *more, "--runs", tmp_path).ok()
    refused = surefoot("evaluate", "one", "--checkpoint", "8", "--runs", tmp_path)
    assert refused.code == 2
    assert "checkpoint of step 8 holds simple and not latent" in refused.err


def test_the_seed_command_as_it_was_typed(
    surefoot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUREFOOT_RUNS", str(tmp_path))
    told = [*SEED, "--quiet", *(w for key, v in PINS.items() for w in (f"--{key}", str(v)))]
    told += ["--no-report", "--no-tensorboard"]
    told[told.index("200")] = "12"
    monkeypatch.setattr(sys, "argv", ["main.py", *told])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert not ended.value.code
    meta = json.loads((tmp_path / "0001-multiply" / "run.json").read_text())
    assert (meta["status"], meta["step"]) == ("done", 12)


def test_matched_learners_are_equally_large(surefoot: Any, tmp_path: Path) -> None:
    told = surefoot(*words("--match-params", "--max-steps", "3", runs=tmp_path, name="m")).ok()
    sizes = [
        sum(len(v) for k, v in learner(tmp_path, "m", which)[0].items() if ".model." in k)
        for which in ("simple", "latent")
    ]
    assert abs(sizes[0] - sizes[1]) / sizes[1] < 0.01, told.out
