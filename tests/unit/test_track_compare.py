"""What differs between runs, who is better at equal step, time and tokens, and by how much noise."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from surefoot.errors import RunError
from surefoot.track.clock import Clock
from surefoot.track.compare import compare, jitter
from surefoot.track.folder import RunFolder
from surefoot.track.reading import read_history
from surefoot.track.versus import document, figures_of, results, write


def config(**changes: Any) -> str:
    values = {"d_model": 32, "context": 8, "seed": 1, "batch_size": 4, "log_every": 10, **changes}
    return (
        f"model:\n  d_model: {values['d_model']}  # flag\n  context: {values['context']}\n"
        f"train:\n  seed: {values['seed']}\n  batch_size: {values['batch_size']}\n"
        f"cadence:\n  log_every: {values['log_every']}\nresolved:\n  threads: 1\n"
    )


def make(
    runs: Path, name: str, best: float, *, steps: int = 100, pace: float = 1.0, learners: Any = (),
    every: int = 10, metric: str = "val_loss", meta: Any = None, **changes: Any,
) -> RunFolder:  # fmt: skip
    """Return a run whose loss falls to `best` at `steps`, one step in `pace` seconds."""
    values = {"id": name, "source": "s", "pinned": {"threads": 1}, "segments": [{"step": 0}]}
    run = RunFolder.create(
        runs, "charlm", name, {"config.yaml": config(**changes)}, values | (meta or {})
    )
    rows = []
    for step in range(every, steps + 1, every):
        for who in learners or ("main",):
            place = {"step": step, "learner": who, "segment": 0, "time": 1e9 + pace * step}
            wobble = 0.01 * (-1) ** (step // every)
            loss = best + 1 - step / steps + wobble * (step < steps)
            rows.append({"kind": "train", **place, "loss": loss, "tokens_per_s": 32 / pace})
            rows.append({"kind": "eval", **place, metric: loss, "top1": 0.5})
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.update(status="done", step=steps)
    return run


def test_only_what_differs(tmp_path: Path) -> None:
    git = {"commit": "a" * 40, "dirty": True, "diff": "f" * 16}
    one = make(tmp_path, "one", 2.0, meta={"git": git, "versions": {"torch": "2.9", "x": "1"}})
    two = make(
        tmp_path, "two", 1.5, d_model=64, log_every=5,
        meta={"git": {**git, "dirty": False}, "versions": {"torch": "2.13", "x": "1"}},
    )  # fmt: skip
    made = compare([one, two])
    assert [(d.group, d.name, d.values) for d in made.differences] == [
        ("settings", "model.d_model", ["32", "64"]),
        ("watching", "cadence.log_every", ["10", "5"]),
        ("code", "commit", ["aaaaaaaaaa + diff ffffffff", "aaaaaaaaaa"]),
        ("versions", "torch", ["2.9", "2.13"]),
    ]
    assert set(made.equal) == {"model.context", "train.seed", "train.batch_size"}
    assert document(made)["differs"][0]["values"] == {"one": "32", "two": "64"}


def test_equal_step_time_and_tokens(tmp_path: Path) -> None:
    slow = make(tmp_path, "slow", 2.0, pace=2.0)
    wide = make(tmp_path, "wide", 2.0, steps=200, pace=0.5, batch_size=8)
    made = compare([slow, wide])
    assert made.at == {"step": 100.0, "seconds": 100.0, "tokens": 3200.0}
    first, second = made.groups
    assert first.values("val_loss", "step", 100) == [2.0]
    assert second.values("val_loss", "step", 100) == [pytest.approx(2.51)]
    assert second.values("val_loss", "seconds", 100) == [2.0]  # twice as many steps by then
    assert first.values("val_loss", "seconds", 100) == [pytest.approx(2.49)]
    assert second.values("val_loss", "tokens", 3200) == [pytest.approx(2.74)]  # half as many steps
    lines = {line.label: line for line in results(made)}
    assert lines["val loss at step 100"].best == (0,)
    assert lines["val loss at 1:40"].best == (1,)
    assert lines["val loss at 3.2k tokens"].cells == ["2.000", "2.740"]
    assert lines["top1 at step 100"] == type(lines["speed"])("top1 at step 100", ["50.0 %"] * 2)


def test_a_kill_and_the_pause_after_it_cost_no_time(tmp_path: Path) -> None:
    run = make(tmp_path, "one", 2.0)
    path = run.path / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["step"] > 50:
            row.update(segment=1, time=row["time"] + 5000)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.update(segments=[{"step": 0}, {"step": 50}])
    history = read_history(path)
    clock = Clock(history, run.meta)
    assert [clock(row) for row in history.eval["main"]] == pytest.approx(range(10, 101, 10), abs=1)
    assert clock.total == pytest.approx(100, abs=1) and clock({"step": 3}) == 0.0


def test_seeds_are_pooled_and_give_the_noise(tmp_path: Path) -> None:
    runs = [make(tmp_path, f"a{n}", 2.0 + 0.01 * n, seed=n) for n in range(3)]
    runs += [make(tmp_path, f"b{n}", 1.5 + 0.01 * n, seed=n, d_model=64) for n in range(3)]
    made = compare(runs)
    assert [group.name for group in made.groups] == ["a0 (3 seeds)", "b0 (3 seeds)"]
    (note,) = made.notes
    assert note.startswith("b0 (3 seeds) against a0 (3 seeds): val loss 0.500 better at step 100, ")
    assert f"{0.5 / (0.01 * math.sqrt(2 / 3)):.1f} x the noise between seeds" in note
    assert note.endswith(": clear.")
    assert results(made)[0].cells == ["2.010 ± 0.010", "1.510 ± 0.010"]
    assert {curve.learner for figure in figures_of(made) for curve in figure.curves} == {
        "a0 (3 seeds)", "b0 (3 seeds)",
    }  # fmt: skip
    alone = compare(runs[:3])
    assert alone.notes == [
        "val loss of 3 seeds at step 100: 2.000 to 2.020, deviation 0.010.",
    ]


def test_a_repeat_is_no_second_seed(tmp_path: Path) -> None:
    made = compare([make(tmp_path, "one", 2.0), make(tmp_path, "again", 2.0)])
    assert len(made.groups) == 2
    assert made.notes == ["again against one: the same val loss to the last digit."]
    other = make(tmp_path, "data", 2.0, seed=2, meta={"source": "other"})
    made = compare([make(tmp_path, "two", 2.0), other])
    assert len(made.groups) == 2 and "The data differ" in made.notes[0]


@pytest.mark.parametrize(
    ("gap", "said"), [(0.5, "clear"), (0.05, "likely real"), (0.002, "within the noise")]
)
def test_one_seed_each_is_set_against_the_evaluations(
    tmp_path: Path, gap: float, said: str
) -> None:
    made = compare([make(tmp_path, "one", 2.0), make(tmp_path, "two", 2.0 + gap, d_model=64)])
    (note,) = made.notes
    assert " worse at step 100" in note and f": {said}; one seed each" in note


def test_too_few_evaluations_say_so(tmp_path: Path) -> None:
    runs = [make(tmp_path, n, 2.0 + i, every=40, d_model=i) for i, n in enumerate("ab")]
    assert "too few evaluations to tell it from noise" in compare(runs).notes[-1]


def test_the_noise_of_a_straight_trend_is_none() -> None:
    assert jitter([5.0, 4.0, 3.0, 2.0]) is None
    assert jitter([5.0, 4.0, 3.0, 2.0, 1.0]) == pytest.approx(0, abs=1e-12)
    assert jitter([0.01 * (-1) ** n for n in range(30)]) == pytest.approx(0.04 / math.sqrt(6))


def test_different_recipes_compare_what_they_share(tmp_path: Path) -> None:
    one = make(tmp_path, "one", 2.0)
    two = make(tmp_path, "two", 9.0, metric="val_delta_e", meta={"data": {"vocab_size": 7}})
    two.update(recipe="colours")
    made = compare([one, two])
    assert made.metrics == ["top1"] and "The recipes differ" in made.notes[0]
    assert ("", "recipe", ["charlm", "colours"]) in [
        (d.group, d.name, d.values) for d in made.differences
    ]
    bare = RunFolder.create(tmp_path, "charlm", "bare")
    made = compare([one, bare])
    assert made.metrics == [] and "bare has none yet" in " ".join(made.notes)
    assert write(made, tmp_path / "out")[0].exists()


def test_losses_of_different_recipes_get_no_verdict(tmp_path: Path) -> None:
    one, two = make(tmp_path, "one", 2.0), make(tmp_path, "two", 9.0)
    assert any("better" in note or "worse" in note for note in compare([one, two]).notes)
    two.update(recipe="multiply")
    made = compare([one, two])
    said = " ".join(made.notes)
    assert "(charlm, multiply)" in said and "No verdict: each recipe counts its val loss" in said
    assert "better" not in said and "worse" not in said
    assert all(line.best == () for line in results(made))
    assert document(made)["notes"] == made.notes


def test_losses_of_different_vocabularies_give_way_to_bits(tmp_path: Path) -> None:
    runs = []
    for place, name in enumerate(("chars", "bytes")):
        run = make(tmp_path, name, 2.0, meta={"data": {"vocab_size": 60 + place}})
        path = run.path / "metrics.jsonl"
        path.write_text(path.read_text().replace('"top1"', '"val_bits_per_byte"'))
        runs.append(run)
    assert compare(runs).metrics == ["val_bits_per_byte", "val_loss"]


def test_learners_are_columns_of_their_own(tmp_path: Path) -> None:
    one = make(tmp_path, "one", 2.0, learners=("simple", "latent"))
    two = make(tmp_path, "two", 1.0, learners=("simple",), d_model=64)
    made = compare([one, two])
    assert [c.name for c in made.columns] == ["one/simple", "one/latent", "two"]
    assert results(made)[0].label == "best val loss"
    assert results(made)[0].best == (2,)


def test_damage_and_unfinished_runs_are_named(tmp_path: Path) -> None:
    one, two = make(tmp_path, "one", 2.0), make(tmp_path, "two", 1.0)
    path = one.path / "metrics.jsonl"
    path.write_text("{broken\n" + path.read_text())
    two.update(status="running")
    notes = compare([one, two]).notes
    assert "one: metrics.jsonl has 1 damaged line (1); they are left out." in notes
    assert "two is lost, at step 100." in notes


def test_page_and_picture(tmp_path: Path) -> None:
    harm = "<script>window.harmed=1</script>"
    one = make(tmp_path, "one", 2.0, d_model=f'"{harm}"')
    (one.path / "code.diff").write_text(f"+{harm}")
    page, picture = write(compare([one, make(tmp_path, "two", 1.5)]), tmp_path / "out")
    text = page.read_text()
    assert page.name == "one-two.html" and picture.read_bytes().startswith(b"\x89PNG")
    assert harm not in text and "window.harmed" in text and len(text) < 300_000
    assert "Uncommitted changes that one was made with" in text
    assert sorted(p.name for p in page.parent.iterdir()) == ["one-two.html", "one-two.png"]


def test_mistakes(tmp_path: Path) -> None:
    one = make(tmp_path, "one", 2.0)
    with pytest.raises(RunError, match="nothing to differ from"):
        compare([one])
    with pytest.raises(RunError, match="named twice"):
        compare([one, one])
