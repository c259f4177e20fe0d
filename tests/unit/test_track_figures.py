"""The curves of a run as data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from surefoot.track.figures import best_of, figures, marks
from surefoot.track.plots import draw, write_plots
from surefoot.track.reading import History


def history(steps: int = 10, learners: tuple[str, ...] = ("main",), **values: Any) -> History:
    made = History()
    for step in range(1, steps + 1):
        for who in learners:
            place = {"step": step, "learner": who, "segment": 0, "time": float(step)}
            made.add({"kind": "train", **place, "loss": 3.0 / step, "lr": 1e-3, **values})
            if step % 5 == 0:
                made.add({"kind": "eval", **place, "val_loss": 4.0 / step, "top1": 0.5})
    return made


def test_only_what_was_measured_is_drawn() -> None:
    assert [f.id for f in figures(history())] == ["loss", "accuracy", "lr"]
    assert figures(History()) == []
    more = figures(history(grad_norm=2.0, tokens_per_s=5.0, teacher=0.5, why="text", flag=True))
    assert [f.id for f in more] == [
        "loss", "accuracy", "lr", "grad_norm", "tokens_per_s", "teacher",
    ]  # fmt: skip


def test_loss_has_both_curves_and_the_best() -> None:
    loss = figures(history())[0]
    assert [(c.name, c.role, c.steps[0], c.values[0]) for c in loss.curves] == [
        ("train", "train", 1, 3.0), ("validation", "val", 5, 0.8),
    ]  # fmt: skip
    assert loss.best is not None and (loss.best.step, loss.best.value) == (10, 0.4)


def test_accuracies_are_percent_and_bits_are_left_out() -> None:
    made = history()
    made.eval["main"][0]["val_bits_per_char"] = 3.0
    made.eval["main"][0]["val_perplexity"] = 9.0
    found = {f.id: f for f in figures(made)}
    assert found["accuracy"].curves[0].values == [50.0, 50.0]
    assert found["val-val_perplexity"].title == "Perplexity"
    assert not any("bits" in name for name in found)


def test_an_interval_and_the_base_are_drawn_with_their_metric() -> None:
    made = history()
    for row in made.eval["main"]:
        row |= {"val_ppl": 9.0, "val_ppl_low": 8.0, "val_ppl_high": 10.0, "base_val_ppl": 12.0}
        row |= {"base_val_ppl_low": 11.0, "base_val_loss": 2.5, "odd_low": 1.0}
    found = {f.id: f for f in figures(made)}
    assert found.keys() == {"loss", "accuracy", "lr", "val-val_ppl", "val-odd_low"}
    curves = found["val-val_ppl"].curves
    assert [(c.name, c.role, c.values[0]) for c in curves] == [
        ("ppl", "val", 9.0), ("low", "plan", 8.0), ("high", "plan", 10.0), ("base", "plan", 12.0),
    ]  # fmt: skip


def test_best_skips_what_is_not_finite() -> None:
    made = history()
    made.eval["main"][1]["val_loss"] = "nan"
    best = best_of(made)
    assert best is not None and best.step == 5
    made.eval["main"][0]["val_loss"] = "-inf"
    assert best_of(made) is None


def test_values_that_are_not_finite_are_kept_apart() -> None:
    made = history()
    made.train["main"][3]["loss"] = "nan"
    curve = figures(made)[0].curves[0]
    assert curve.values[3] is None and curve.odd == [(4, "nan")]


def test_noisy_curves_get_an_average_over_all_values() -> None:
    made = history(5000)
    for row in made.train["main"]:
        row["loss"] = 2.0 + (row["step"] % 2)
    curve = figures(made)[0].curves[0]
    assert len(curve.values) <= 2000 and len(curve.smooth) == len(curve.values)
    middle = [v for v in curve.smooth[100:-100] if v is not None]
    assert all(math.isclose(v, 2.5, abs_tol=0.02) for v in middle)
    assert figures(history(50))[0].curves[0].smooth == []


def test_points_are_bounded_however_much_is_measured() -> None:
    extra = {f"part{i}": 1.0 for i in range(12)}
    made = history(6000, ("a", "b"), grad_norm=1.0, tokens_per_s=1.0, **extra)
    drawn = figures(made)
    assert sum(len(c.values) for f in drawn for c in f.curves) < 12_000
    assert max(len(c.values) for f in drawn for c in f.curves) <= 2000


def test_clipping_is_told() -> None:
    made = history(grad_norm=2.0)
    for row in made.train["main"][:5]:
        row["grad_norm"] = 0.5
    (figure,) = [f for f in figures(made, clip=1.0) if f.id == "grad_norm"]
    assert figure.rule == 1.0 and "50 %" in figure.note
    made.thinned = True
    (figure,) = [f for f in figures(made, clip=1.0) if f.id == "grad_norm"]
    assert "%" not in figure.note  # only telling rows were read, so a share would be wrong


def test_marks_say_why_processes_went_on() -> None:
    made = History()
    made.add({"kind": "event", "step": 7, "event": "skip", "why": "loss is nan"})
    made.add({"kind": "event", "step": 2, "event": "gap", "lost": 3})
    segments = [{"step": 0}, {"step": 5, "after": "running"}, {"step": 6, "after": "stopped"}]
    found = marks(made, {"segments": [*segments, {"step": 9}, "rubbish", None]})
    assert [(m.step, m.label) for m in found] == [
        (2, "gap"), (5, "resumed"), (6, "resumed"), (7, "skip"), (9, "resumed"),
    ]  # fmt: skip
    assert found[0].text == "lost 3" and found[3].text == "loss is nan"
    assert "killed" in found[1].text and "stopped" in found[2].text


def test_pictures_are_written_whole(tmp_path: Path) -> None:
    made = history(200, ("a", "b"), grad_norm=1.0)
    drawn = figures(made, clip=0.5)
    found = marks(made, {"segments": [{"step": 0}, {"step": 50}]})
    paths = write_plots(tmp_path / "plots", drawn, found)
    assert sorted(p.name for p in paths) == ["accuracy.png", "grad_norm.png", "loss.png", "lr.png"]
    assert sorted((tmp_path / "plots").iterdir()) == sorted(paths)  # nothing half-made is left
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_a_picture_shows_restarts_and_names() -> None:
    made = history(200, ("a", "b"))
    canvas = draw(figures(made)[0], marks(made, {"segments": [{"step": 0}, {"step": 50}]}))
    (axes,) = canvas.axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["a, train", "b, train", "a, validation", "b, validation",
                     "best 0.02 at step 200"]  # fmt: skip
    assert any(list(line.get_xdata()) == [50, 50] for line in axes.get_lines())
