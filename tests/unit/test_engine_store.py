"""Checkpoints on disk: complete and verified, or absent."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from surefoot.engine import codec
from surefoot.engine.load import fill
from surefoot.engine.reading import UnreadableError
from surefoot.engine.state import Payload
from surefoot.engine.store import Store, seal, unseal
from surefoot.errors import CheckpointError


def payload(value: float = 1.0) -> Payload:
    weights = {"w": torch.full((3,), value), "b": torch.tensor(value)}
    moments = {"w/exp_avg": torch.full((3,), value * 2)}
    files = {"main.model.safetensors": weights, "main.optim.safetensors": moments}
    return Payload(files, {"learners": {"main": {"step": int(value)}}})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "run" / "checkpoints", "mine")


def test_what_is_saved_is_read_back(store: Store) -> None:
    saved = store.save(400, payload(4.0), metric=1.5, places={"main": [0, 1, "ff"]}, note="x")
    assert saved.path.name == "step-000000400"
    found, contents, aside = store.newest()
    assert found is not None and contents is not None and aside == []
    assert (found.step, found.metric, found.sequence, found.resumable) == (400, 1.5, 1, True)
    assert found.manifest["places"] == {"main": [0, 1, "ff"]} and found.manifest["note"] == "x"
    assert torch.equal(contents.tensors["main.model.safetensors"]["w"], torch.full((3,), 4.0))
    assert contents.tensors["main.model.safetensors"]["b"].shape == ()
    assert contents.small == {"learners": {"main": {"step": 4}}}
    assert found.size == sum(p.stat().st_size for p in saved.path.iterdir()) - _manifest(saved)


def _manifest(saved: Any) -> int:
    return int((saved.path / "manifest.json").stat().st_size)


def test_an_empty_store_has_nothing(store: Store) -> None:
    assert store.newest() == (None, None, [])
    assert store.checkpoints() == [] and store.damaged() == [] and store.sweep() == []


def test_newest_is_by_order_of_saving_not_by_step(store: Store) -> None:
    for step in (10, 30, 20):
        store.save(step, payload(step))
    assert [c.step for c in store.checkpoints()] == [10, 30, 20]
    newest = store.newest()[0]
    assert newest is not None and newest.step == 20


def test_saving_a_step_again_replaces_it(store: Store) -> None:
    store.save(10, payload(1.0))
    store.save(20, payload(2.0))
    store.save(10, payload(3.0))
    assert [(c.step, c.sequence) for c in store.checkpoints()] == [(20, 2), (10, 3)]
    _, contents, _ = store.newest()
    assert contents is not None and contents.tensors["main.model.safetensors"]["w"][0] == 3.0
    assert sorted(p.name for p in store.folder.iterdir()) == ["step-000000010", "step-000000020"]


class Refusing:
    """Makes the n-th call of a function of `os` fail."""

    def __init__(self, patch: pytest.MonkeyPatch, name: str, nth: int) -> None:
        self.left, self.real = nth, getattr(os, name)
        patch.setattr(os, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.EIO, "no")
        return self.real(*args, **kwargs)


@pytest.mark.parametrize(
    ("call", "nth"),
    [("mkdir", 1), ("write", 1), ("write", 3), ("fsync", 2), ("rename", 1), ("rename", 2)],
)
def test_a_refused_save_leaves_what_was_there(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
) -> None:
    store.save(10, payload(1.0))
    before = sorted(p.name for p in store.folder.iterdir())
    with monkeypatch.context() as patch:
        Refusing(patch, call, nth)
        with pytest.raises(OSError, match="no"):
            store.save(10, payload(2.0))
    assert sorted(p.name for p in store.folder.iterdir()) == before
    _, contents, aside = store.newest()
    assert contents is not None and contents.tensors["main.model.safetensors"]["w"][0] == 1.0
    assert aside == []


def test_a_type_without_a_name_in_the_format_is_refused_before_writing(store: Store) -> None:
    strange = Payload({"main.model.safetensors": {"z": torch.zeros(2, dtype=torch.complex64)}}, {})
    with pytest.raises(CheckpointError, match=r"cannot save z: torch\.complex64"):
        store.save(1, strange)
    assert list(store.folder.iterdir()) == []


def test_sweeping_puts_back_what_was_being_replaced(store: Store) -> None:
    kept = store.save(10, payload(1.0)).path
    kept.rename(store.folder / ".replaced-step-000000010")
    (store.folder / ".staging-step-000000010").mkdir()
    (store.folder / ".staging-step-000000010" / "half").write_bytes(b"x")
    (store.folder / ".removed-step-000000005").mkdir()
    assert store.sweep() == ["step-000000010"]
    assert [p.name for p in store.folder.iterdir()] == ["step-000000010"]
    assert store.newest()[0] is not None


def test_sweeping_drops_the_old_one_where_the_new_is_in_place(store: Store) -> None:
    store.save(10, payload(1.0))
    (store.folder / ".replaced-step-000000010").mkdir()
    assert store.sweep() == []
    assert [p.name for p in store.folder.iterdir()] == ["step-000000010"]


def test_a_slim_checkpoint_keeps_its_weights_but_cannot_go_on(store: Store) -> None:
    best = store.save(10, payload(1.0))
    slim = store.slim(best)
    assert not slim.resumable and slim.size < best.size
    assert sorted(p.name for p in slim.path.iterdir()) == [
        "main.model.safetensors", "manifest.json", "state.json",
    ]  # fmt: skip
    assert set(store.open(slim.path).read().tensors) == {"main.model.safetensors"}
    assert store.newest() == (None, None, [])


def test_slimming_that_was_interrupted_is_finished_by_sweeping(store: Store) -> None:
    best = store.save(10, payload(1.0))
    optim = (best.path / "main.optim.safetensors").read_bytes()
    store.slim(best)
    (best.path / "main.optim.safetensors").write_bytes(optim)
    (best.path / "manifest.json.new").write_bytes(b"half")
    store.sweep()
    assert len(list(best.path.iterdir())) == 3
    store.open(best.path).verify()


def test_a_removed_checkpoint_is_gone(store: Store) -> None:
    saved = store.save(10, payload(1.0))
    store.remove(saved)
    assert list(store.folder.iterdir()) == []


def test_names_that_are_not_ours_are_left_alone(store: Store) -> None:
    store.save(10, payload(1.0))
    (store.folder / "step-000000010-copy").mkdir()
    (store.folder / "step-7").mkdir()
    (store.folder / "notes.txt").write_text("mine")
    newest, _, aside = store.newest()
    assert newest is not None and aside == []
    assert (store.folder / "step-000000010-copy").is_dir()


def test_damage_is_set_aside_under_a_name_of_its_own(store: Store) -> None:
    for _ in range(2):
        saved = store.save(10, payload(1.0))
        (saved.path / "state.json").unlink()
        assert store.newest()[:2] == (None, None)
    names = sorted(p.name for p in (store.folder / "damaged").iterdir())
    assert names == ["step-000000010", "step-000000010-2"]


def test_damage_that_cannot_be_moved_is_passed_by(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(10, payload(1.0))
    (store.save(20, payload(2.0)).path / "state.json").unlink()
    with monkeypatch.context() as patch:
        Refusing(patch, "rename", 1)
        newest, _, aside = store.newest()
    assert newest is not None and newest.step == 10
    assert "not used (cannot be moved" in aside[0]


def failing(error: Exception) -> Any:
    def refuse(*_: Any) -> Any:
        raise error

    return refuse


def oserror(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def test_what_the_disk_has_lost_is_damaged(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(10, payload(1.0))
    store.save(20, payload(2.0))
    real, calls = codec.digest, iter([failing(oserror(errno.EIO))])
    monkeypatch.setattr("surefoot.engine.codec.digest", lambda path: next(calls, real)(path))
    newest, _, aside = store.newest()
    assert newest is not None and newest.step == 10
    assert aside[0].startswith("step-000000020: cannot be read: Input/output error; moved to")


@pytest.mark.parametrize("where", ["codec.digest", "codec.load_file", "store.json.loads"])
@pytest.mark.parametrize(
    ("error", "why"),
    [
        (oserror(errno.EACCES), "Permission denied"),
        (oserror(errno.EMFILE), "Too many open files"),
        (oserror(errno.ESTALE), "Stale file handle"),
        (MemoryError("os error 12"), "Cannot allocate memory"),
        (RuntimeError("unable to mmap 8 bytes: Cannot allocate memory (12)"), "Cannot allocate"),
    ],
    ids=["right", "files", "stale", "memory", "map"],
)
def test_what_cannot_be_read_now_is_not_damaged(
    store: Store, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception, why: str
) -> None:
    """Else a run that is short of memory when it goes on would begin anew."""
    store.save(10, payload(1.0))
    store.save(20, payload(2.0))
    with monkeypatch.context() as patch:
        patch.setattr(f"surefoot.engine.{where}", failing(error))
        with pytest.raises(UnreadableError, match=f"cannot be read now: {why}") as told:
            store.newest()
    assert told.value.exit_code == 4 and "nothing was moved" in str(told.value)
    newest, _, aside = store.newest()
    assert newest is not None and newest.step == 20 and aside == []


def test_other_errors_are_ours(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(10, payload(1.0))
    monkeypatch.setattr("surefoot.engine.codec.digest", failing(RuntimeError("a mistake")))
    with pytest.raises(RuntimeError, match="a mistake"):
        store.newest()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_folders_that_cannot_be_synced_are_no_reason_not_to_save(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Some shared folders and FUSE say EINVAL. What a disk says is another matter."""
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise oserror(number)
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    if number == errno.EIO:
        with pytest.raises(OSError, match="Input/output"):
            store.save(10, payload(1.0))
        return
    store.save(10, payload(1.0))
    newest, _, _ = store.newest()
    assert newest is not None and newest.step == 10


def test_a_sealed_manifest_is_the_only_spelling_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    manifest = {
        "format": 1, "run": "r", "step": 1, "sequence": 1, "metric": None,
        "files": {"state.json": {"size": 1, "xxh3_128": "0"}},
    }  # fmt: skip
    path.write_bytes(seal(manifest))
    assert unseal(path) == unseal(path) | manifest
    path.write_bytes(path.read_bytes().replace(b" ", b"  ", 1))
    with pytest.raises(CheckpointError, match="altered"):
        unseal(path)


@pytest.mark.parametrize("change", [
    {"run": 1}, {"step": "1"}, {"sequence": None}, {"metric": "low"}, {"files": []},
    {"files": {}}, {"files": {"../state.json": {"size": 1, "xxh3_128": "0"}}}, {"format": 0},
    {"files": {"state.json": {"size": "1", "xxh3_128": "0"}}}, {"format": "1"},
])  # fmt: skip
def test_a_sealed_manifest_of_another_shape_is_not_ours(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    manifest = {
        "format": 1, "run": "r", "step": 1, "sequence": 1, "metric": None,
        "files": {"state.json": {"size": 1, "xxh3_128": "0"}},
    }  # fmt: skip
    (tmp_path / "manifest.json").write_bytes(seal(manifest | change))
    with pytest.raises(CheckpointError, match="not one of ours"):
        unseal(tmp_path / "manifest.json")


def test_weights_are_read_alone_and_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = Store(tmp_path / "checkpoints", "run")
    tensors = {
        "main.model.safetensors": {"a": torch.ones(3), "b": torch.zeros(2)},
        "main.optim.safetensors": {"a/m": torch.ones(3)},
        "main.ema.safetensors": {"a": torch.full((3,), 2.0)},
    }
    store.save(3, Payload(tensors, {"learners": {}}), places={}, identity="x")
    monkeypatch.setattr(codec, "read_tensors", None)
    module = torch.nn.Module()
    module.a, module.b = torch.nn.Parameter(torch.rand(3)), torch.nn.Parameter(torch.rand(2))
    folder: Any = SimpleNamespace(path=tmp_path, meta={"id": "run"}, name="r")
    assert fill({"main": module}, folder) == 3
    assert module.a.tolist() == [2.0, 2.0, 2.0] and module.b.tolist() == [0.0, 0.0]


def test_a_checkpoint_that_goes_while_it_is_read_is_chosen_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = Store(tmp_path / "checkpoints", "run")
    for step in (1, 2):
        file = {"main.model.safetensors": {"a": torch.full((2,), float(step))}}
        store.save(step, Payload(file, {"learners": {}}), places={}, identity="x")
    read = codec.TensorFile.__getitem__

    def tidied(self: codec.TensorFile, name: str) -> torch.Tensor:
        if "step-000000002" in str(self._path):
            shutil.rmtree(tmp_path / "checkpoints" / "step-000000002", ignore_errors=True)
        return read(self, name)

    monkeypatch.setattr(codec.TensorFile, "__getitem__", tidied)
    module = torch.nn.Module()
    module.a = torch.nn.Parameter(torch.zeros(2))
    folder: Any = SimpleNamespace(path=tmp_path, meta={"id": "run"}, name="r")
    assert fill({"main": module}, folder) == 1 and module.a.tolist() == [1.0, 1.0]
