"""What is refused before there is a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import surefoot
from surefoot import Recipe, RunConfig
from surefoot.engine import Job
from surefoot.engine.mirror import Mirror, prepare
from surefoot.engine.state import Payload
from surefoot.engine.store import Store
from surefoot.errors import CheckpointError, ConfigError, DeviceLost, OutOfResources, RunError


def test_weights_that_do_not_fit_into_memory(tmp_path: Path) -> None:
    def build(config: RunConfig, world: Any) -> Any:
        torch.empty(1 << 62, dtype=torch.int8)

    recipe = Recipe("huge", "too large", RunConfig, build)
    with pytest.raises(OutOfResources, match="does not fit into memory") as failed:
        surefoot.train(recipe, runs=tmp_path / "runs", quiet=True, max_steps=1)
    assert failed.value.exit_code == 4 and not (tmp_path / "runs").exists()


def test_one_example_that_does_not_fit_into_memory(
    tmp_path: Path, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("surefoot.engine.auto.probe.Probe.answer", short)
    recipe = Recipe("toy", "a toy", RunConfig, lambda *_: Job(toy, {"main": toy.learner()}))
    with pytest.raises(OutOfResources, match="does not fit into memory") as failed:
        surefoot.train(recipe, runs=tmp_path / "runs", quiet=True, max_steps=1)
    assert failed.value.exit_code == 4 and not (tmp_path / "runs").exists()


def test_a_device_that_is_lost_before_the_first_step(tmp_path: Path) -> None:
    def build(config: RunConfig, world: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors")

    recipe = Recipe("lost", "on a device that goes", RunConfig, build)
    with pytest.raises(DeviceLost, match="any more: CUDA error: unspec") as failed:
        surefoot.train(recipe, runs=tmp_path / "runs", quiet=True, max_steps=1)
    assert "kernel errors" not in str(failed.value), "what torch says to everybody"
    assert "nothing was created" in str(failed.value) and "dmesg" in str(failed.value)
    assert failed.value.exit_code == 4 and not (tmp_path / "runs").exists()


def test_a_name_is_refused_before_anything_is_prepared(tmp_path: Path) -> None:
    def build(config: RunConfig, world: Any) -> Any:
        raise AssertionError("prepared")

    recipe = Recipe("toy", "a toy", RunConfig, build)
    (tmp_path / "mine").mkdir()
    for name, why in (("compare", "cannot be the name of a run"), ("mine", "there is already a")):
        with pytest.raises(RunError, match=why):
            surefoot.train(recipe, runs=tmp_path, name=name, quiet=True, max_steps=1)


def test_a_mirror_must_be_another_place_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the folder of the runs"):
        prepare(tmp_path / "x" / ".." / "runs", tmp_path / "runs")
    with pytest.raises(ConfigError, match="there is no folder"):
        prepare(tmp_path / "not mounted" / "mirror", tmp_path / "runs")
    prepare(tmp_path / "mirror", tmp_path / "runs")
    assert [entry.name for entry in tmp_path.iterdir()] == ["mirror"]


def test_a_mirror_whose_drive_is_gone_is_not_filled(tmp_path: Path, monkeypatch: Any) -> None:
    run, target = tmp_path / "runs" / "one", tmp_path / "mirror"
    local, mirror = Store(run / "checkpoints", "id"), Mirror(run, target, "id")
    local.save(1, Payload({"main.model.safetensors": {"w": torch.ones(2)}}, {}))
    with pytest.raises(FileNotFoundError):
        mirror.follow(local)
    target.mkdir()
    mirror.follow(local)
    assert [c.step for c in mirror.store.checkpoints()] == [1]
    seen = Path.stat
    monkeypatch.setattr(
        Path, "stat",
        lambda path, **how: SimpleNamespace(st_dev=-1) if path == target else seen(path, **how),
    )  # fmt: skip
    local.save(2, Payload({"main.model.safetensors": {"w": torch.ones(2)}}, {}))
    with pytest.raises(OSError, match="another disk is mounted there"):
        mirror.follow(local)


def test_checkpoints_behind_a_link_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "run" / "checkpoints", "id")
    store.save(1, Payload({"main.model.safetensors": {"w": torch.ones(2)}}, {}))
    store.folder.rename(tmp_path / "elsewhere")
    store.folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="is a link") as failed:
        store.checkpoints()
    assert "move them back" in str(failed.value)
    assert (tmp_path / "elsewhere" / "step-000000001").exists()
