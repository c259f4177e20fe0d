"""Sweeps as a person types them; trials are taken in this process where it makes no difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surefoot.api import stored
from surefoot.config.identity import fingerprint
from surefoot.track.folder import RunFolder, find, runs_dir
from surefoot.track.lock import hold

from .conftest import PINS, QUICK, TEXT, Answer

FIXED = [word for name, value in (PINS | QUICK).items() for word in (f"--{name}", str(value))]
TINY = ["charlm", "--preset", "tiny", "--path", str(TEXT), "--max-steps", "6", *FIXED]


def sweep(surefoot: Any, *words: str) -> Answer:
    """Make a sweep and take its trials here; return what its first line was."""
    made = surefoot("sweep", *TINY, "--workers", "0", *words).ok()
    surefoot("sweep", "work", "last").ok()
    return made


def home(name: str = "") -> Path:
    return next(p for p in sorted((runs_dir() / "sweeps").iterdir()) if p.name.endswith(name))


def shown(surefoot: Any, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = surefoot("sweep", "show", *words, "--json").ok().json
    return found


def test_a_grid_is_run_ranked_and_written_as_a_file(surefoot, tmp_path) -> None:
    sweep(surefoot, "--grid", "lr=1e-2,1e-4", "d_ff=32,64", "--repeat", "2")
    found = shown(surefoot)
    assert found["ended"] == found["count"] == 4
    assert [trial["rank"] for trial in found["trials"]] == [1, 2, 3, 4]
    values = [trial["value"] for trial in found["trials"]]
    assert values == sorted(values)
    assert all(len(trial["values"]) == 2 and trial["deviation"] > 0 for trial in found["trials"])
    assert {trial["settings"]["optim.lr"] for trial in found["trials"][:2]} == {1e-2}
    best = found["trials"][0]
    run = RunFolder.open(Path(best["runs"][0]))
    assert (run.meta["sweep"], run.meta["trial"]) == (found["sweep"], best["trial"])
    assert run.meta["step"] == 6
    file = tmp_path / "best.yaml"
    surefoot("sweep", "best", "--write", file).ok()
    surefoot("train", "charlm", "-c", file, "--name", "again", "--quiet", "--seed", "1").ok()
    assert fingerprint(stored(find(runs_dir(), "again")).config) == run.meta["identity"]
    said = ("train", f"--config={file}", "--name", "third", "--quiet", "--seed", "1")
    surefoot(*said).ok()  # the file says for which recipe
    assert fingerprint(stored(find(runs_dir(), "third")).config) == run.meta["identity"]
    page = (home() / "report.html").read_text(encoding="utf-8")
    assert '"lines":[{' in page and "prefers-color-scheme:dark" in page
    assert (home() / "parallel.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_command_goes_on_and_then_tells(surefoot) -> None:
    made = surefoot("sweep", *TINY, "--workers", "0", "--grid", "lr=1e-2,1e-3").ok()
    assert "2 trials of charlm tiny" in made.out
    again = surefoot("sweep", *TINY, "--workers", "0", "--grid", "lr=1e-2,1e-3").ok()
    assert "0 of them have ended" in again.out
    surefoot("sweep", "work").ok()
    assert len(surefoot("sweep", "list", "--json").ok().json) == 1
    told = surefoot("sweep", "resume").ok()  # nothing is left, so no worker is started
    assert "best: trial" in told.out and "One seed each" in told.out
    third = surefoot("sweep", *TINY, "--workers", "0", "--grid", "lr=1e-2,1e-3").ok()
    assert "have ended" not in third.out, "another one begins when the first has ended"


def test_a_draw_needs_no_space(surefoot) -> None:
    made = sweep(surefoot, "--random", "2")
    assert "no --space is given, so it is lr" in made.out
    rates = [trial["settings"]["optim.lr"] for trial in shown(surefoot)["trials"]]
    assert len(set(rates)) == 2


def test_a_search_prunes_and_a_pruned_run_can_go_on(surefoot) -> None:
    pytest.importorskip("optuna")
    words = ["--search", "8", "--space", "lr=1e-6..1e-1", "--validate-every", "1"]
    sweep(surefoot, *words)
    found = shown(surefoot)
    states = [trial["state"] for trial in found["trials"]]
    assert "pruned" in states and "done" in states and "failed" not in states
    assert 0.99 < sum(found["importances"].values()) < 1.01
    pruned = next(trial for trial in found["trials"] if trial["state"] == "pruned")
    run = RunFolder.open(Path(pruned["runs"][0]))
    assert run.status == "stopped" and pruned["why"].startswith("val_loss")
    assert run.meta["step"] == pruned["step"] < 6
    surefoot("resume", run.path, "--quiet").ok()
    assert run.reload().status == "done"


def test_a_trial_that_fails_is_recorded_and_the_sweep_goes_on(surefoot) -> None:
    nowhere = surefoot("sweep", *TINY, "--grid", "num_heads=2,3")
    assert nowhere.code == 2 and "--> --grid: model.num_heads 3" in nowhere.err
    made = sweep(surefoot, "--grid", "d_model=32,24", "num_heads=2,3", "--num-kv-heads", "1")
    assert "this point cannot be: d_model 32, num_heads 3" in made.out
    *done, failed = shown(surefoot)["trials"]
    assert [trial["state"] for trial in done] == ["done"] * 3 and failed["state"] == "failed"
    assert failed["why"] == "model.num_heads: 3 heads do not divide d_model 32; 2 would"
    resumed = surefoot("sweep", "resume", "--retry", "--workers", "0").ok()
    assert "1 trial that failed will be tried again" in resumed.out
    assert [trial["state"] for trial in shown(surefoot)["trials"]].count("waiting") == 1


def test_interrupted_it_saves_and_goes_on_bit_for_bit(surefoot, monkeypatch) -> None:
    sweep(surefoot, "--grid", "lr=1e-2,1e-3", "--name", "whole")
    surefoot(
        "sweep", *TINY, "--workers", "0", "--grid", "lr=1e-2,1e-3", "--name", "cut", "--new"
    ).ok()
    from surefoot.sweep import work

    row, seen = work._Watch.row, []

    def stopping(self: Any, values: Any) -> None:
        import signal

        row(self, values)
        if values["kind"] == "eval" and not seen:
            seen.append(values["step"])
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(work._Watch, "row", stopping)
    stopped = surefoot("sweep", "work", "cut")
    assert stopped.code == 75 and "surefoot sweep resume" in stopped.err
    assert seen == [3]
    lock = hold(home("cut") / "runs" / "trial-001")
    lock.__enter__()  # whoever lost the trial still trains its run
    pauses: list[int] = []

    def pause() -> None:
        pauses.append(1)
        lock.__exit__(None, None, None)

    with monkeypatch.context() as patched:
        patched.setattr(work, "_pause", pause)
        gone_on = surefoot("sweep", "work", "cut").ok()
    assert "goes on with trial-001" in gone_on.out and pauses == [1]
    whole, cut = shown(surefoot, "whole"), shown(surefoot, "cut")
    assert [t["values"] for t in whole["trials"]] == [t["values"] for t in cut["trials"]]


def test_two_processes_and_one_document(surefoot) -> None:
    pytest.importorskip("optuna")
    url = f"sqlite:///{runs_dir()}/shared.sqlite"
    runs_dir().mkdir(parents=True)
    words = ["--grid", "lr=1e-2,1e-3,1e-4", "--workers", "2", "--storage", url, "--json"]
    found = surefoot("sweep", *TINY, *words).ok().json
    assert found["status"] == "done" and found["ended"] == 3
    assert {trial["state"] for trial in found["trials"]} == {"done"}
    workers = json.loads(json.dumps(found["trials"]))
    assert len({tuple(t["settings"].items()) for t in workers}) == 3
    other = surefoot(
        "sweep", "show", found["sweep"], "--runs", runs_dir() / "elsewhere", "--storage", url
    )
    assert found["sweep"] in other.ok().out, "another machine knows it by the database alone"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--grid", "dmodel=64,128"], "did you mean d_model?"),
        (["--grid", "d_model="], "no values for d_model"),
        (["--grid", "lr=1e-3", "lr=1e-4"], "optim.lr is swept over twice"),
        (["--grid", "lr=1e-3", "--random", "3", "--space", "lr=1e-4..1e-3"], "swept over twice"),
        (
            ["--grid", "d_ff=64", "--d-ff", "64"],
            "model.d_ff is swept over, and fixed by flag --d-ff",
        ),
        (["--grid", "seed=1,2", "--repeat", "2"], "--repeat gives the seeds"),
        (["--grid", "d_model=-3,64"], "model.d_model"),
        (["--grid", "d_model=abc,64"], "a whole number"),
        ([], "what is to be tried?"),
        (["--space", "lr=1e-4..1e-2"], "not how often"),
        (["--random", "3", "--search", "3"], "choose one"),
        (["--random", "0"], "expected 1 to 100000"),
        (["--grid", "lr=1e-3", "--repeat", "x"], "expected a number of seeds"),
        (["--grid", "lr=1e-3", "--repeat", "1,1"], "different ones"),
        (["--grid", "lr=1e-3", "--metric", "val_los"], "did you mean val_loss?"),
        (["--grid", "lr=1e-3", "--metric", "warmth"], "it reports"),
        (["--grid", "lr=1e-3", "--workers", "-1"], "--workers -1"),
    ],
)
def test_bad_input_ends_with_2_and_begins_nothing(surefoot, words: list[str], said: str) -> None:
    answer = surefoot("sweep", *TINY, *words)
    assert answer.code == 2 and said in answer.err, answer.err
    assert not (runs_dir() / "sweeps").exists()


def test_unknown_words_are_told(surefoot) -> None:
    assert "surefoot sweep resume?" in surefoot("sweep", "resum").err
    assert surefoot("sweep", "show").code == 2
    sweep(surefoot, "--grid", "lr=1e-3", "--name", "mine")
    assert "did you mean mine?" in surefoot("sweep", "show", "mnie").err
    taken = surefoot("sweep", *TINY, "--grid", "lr=1e-2", "--name", "mine")
    assert taken.code == 2 and "has another plan" in taken.err


def test_several_learners_ask_which_is_judged(surefoot) -> None:
    words = ["multiply", "--preset", "tiny", "--grid", "lr=1e-3"]
    answer = surefoot("sweep", *words)
    assert answer.code == 2 and "--metric simple/val_loss or --metric latent/val_loss" in answer.err
    answer = surefoot(
        "sweep", "colours", "--preset", "tiny", "--grid", "lr=1e-3", "--metric", "held"
    )
    assert answer.code == 2 and "--goal min or --goal max" in answer.err


def test_without_optuna_grids_work_and_searches_say_what_to_install(surefoot, monkeypatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == "optuna"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "surefoot.sweep.importance", raising=False)
    monkeypatch.setitem(sys.modules, "optuna", None)
    sweep(surefoot, "--grid", "lr=1e-2,1e-3")
    assert shown(surefoot)["ended"] == 2
    answer = surefoot("sweep", *TINY, "--search", "3")
    assert answer.code == 3 and 'pip install "surefoot[sweep]"' in answer.err
