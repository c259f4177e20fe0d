"""What runs took is remembered by device."""

from pathlib import Path

import pytest

from surefoot.engine.foresee.past import learn, overhead


def test_medians_of_the_last_runs(tmp_path: Path) -> None:
    cache = tmp_path / "past.json"
    assert overhead(cache, "cpu") is None and overhead(None, "cpu") is None
    for ratio in (9.0,) * 3 + (1.0, 1.5, 3.0) * 7:
        learn(cache, "cpu", {"step_seconds": 0.1}, {"steps": 100, "step_seconds": 0.1 * ratio})
    found = overhead(cache, "cpu")
    assert found is not None
    assert (found.runs, found.fragments) == (20, None)
    assert (found.time, found.fastest, found.slowest) == pytest.approx((1.5, 1.0, 3.0))


def test_short_runs_and_runs_without_a_plan_teach_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "past.json"
    learn(cache, "cpu", {"step_seconds": 0.1}, {"steps": 99, "step_seconds": 1.0})
    learn(cache, "cpu", {}, {"steps": 999, "step_seconds": 1.0})
    assert not cache.exists()


def test_runs_beside_other_programs_teach_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "past.json"
    taken = {"steps": 999, "step_seconds": 1.7}
    learn(cache, "cpu", {"step_seconds": 0.1}, {**taken, "crowded": True})
    assert not cache.exists()
    learn(cache, "cpu", {"step_seconds": 0.1}, {**taken, "crowded": False})
    assert cache.exists()


def test_a_card_remembers_what_its_allocator_held(tmp_path: Path) -> None:
    cache = tmp_path / "past.json"
    taken = {"steps": 500, "step_seconds": 0.2, "gpu_bytes": 100, "gpu_reserved_bytes": 106}
    learn(cache, "mps", {"step_seconds": 0.1}, taken)
    found = overhead(cache, "mps")
    assert found is not None and found.fragments == pytest.approx(0.06) and found.time == 2.0
