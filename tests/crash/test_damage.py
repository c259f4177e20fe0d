"""Damage on the disk: never accepted in silence, no reason to stop while older state is good."""

from __future__ import annotations

import ast
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import IN_MEMORY
from trials import CONDITIONS, differences, go_on, undisturbed

import surefoot
from surefoot.engine.codec import digest
from surefoot.engine.state import Payload
from surefoot.engine.store import Store
from surefoot.engine.store import seal as sealed
from surefoot.errors import CheckpointError
from surefoot.track.lock import scratch

MODEL = "main.model.safetensors"
SOURCE = Path(surefoot.__file__).parent


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three small checkpoints, of steps 1 to 3, and one of another run beside them."""
    with scratch(IN_MEMORY) as place:
        home = place / "checkpoints"
        for folder, run in ((home, "mine"), (home.with_suffix(".other"), "theirs")):
            kept = Store(folder, run)
            for step in (1, 2, 3):
                tensors = {"a": torch.full((5,), float(step)), "b": torch.arange(step + 4)}
                files = {"main.model.safetensors": tensors, "main.optim.safetensors": tensors}
                kept.save(step, Payload(files, {"learners": {"main": {"step": step}}}), places={})
        yield Store(home, "mine")


def newest_of(store: Store) -> tuple[int | None, list[str]]:
    checkpoint, payload, aside = store.newest()
    if checkpoint is None or payload is None:
        return None, aside
    if MODEL in payload.tensors:
        assert payload.tensors[MODEL]["a"][0] == checkpoint.step
    return checkpoint.step, aside


class Repaired:
    """Damages the newest checkpoint and afterwards brings it back as it was."""

    def __init__(self, store: Store) -> None:
        self.store, self.path = store, store.folder / "step-000000003"
        self.whole = {p.name: p.read_bytes() for p in self.path.iterdir()}

    def put_back(self) -> None:
        damaged = self.store.folder / "damaged"
        if damaged.exists():
            assert [p.name for p in damaged.iterdir()] == [self.path.name], "it was deleted"
            (damaged / self.path.name).rename(self.path)
            damaged.rmdir()
        for entry in self.path.iterdir():
            if entry.is_symlink() or entry.name not in self.whole:
                entry.unlink()
        for name, data in self.whole.items():
            (self.path / name).write_bytes(data)


def test_two_thousand_flipped_bytes_are_all_noticed(store: Store, tally: Any) -> None:
    draw, repaired = random.Random(3), Repaired(store)
    places = [(name, i) for name, data in repaired.whole.items() for i in range(len(data))]
    found: list[tuple[Any, str | None]] = []
    for _ in range(2000):
        name, place = draw.choice(places)
        data = bytearray(repaired.whole[name])
        data[place] ^= draw.randrange(1, 256)
        (repaired.path / name).write_bytes(data)
        step, aside = newest_of(store)
        sound = step == 2 and len(aside) == 1 and "step-000000003" in aside[0]
        found.append(((name, place), None if sound else f"step {step}, {aside}"))
        repaired.put_back()
    tally.check(found)


def test_truncated_at_any_length(store: Store, tally: Any) -> None:
    repaired = Repaired(store)
    found: list[tuple[Any, str | None]] = []
    for name, data in repaired.whole.items():
        for length in sorted({len(data) * i // 64 for i in range(64)}):
            (repaired.path / name).write_bytes(data[:length])
            step, aside = newest_of(store)
            found.append(((name, length), None if step == 2 else f"step {step}, {aside}"))
            repaired.put_back()
    tally.check(found)


def _resealed(path: Path, **changes: Any) -> None:
    """Write a manifest that is sound in itself, as a person with our source could."""
    manifest = json.loads((path / "manifest.json").read_bytes()) | changes
    for name, entry in manifest["files"].items() if isinstance(manifest["files"], dict) else ():
        if (path / str(name)).is_file() and isinstance(entry, dict):
            entry["size"], entry["xxh3_128"] = digest(path / str(name))
    (path / "manifest.json").write_bytes(sealed(manifest))


def _swap(one: Path, two: Path) -> None:
    spare = one.with_name("spare")
    one.rename(spare)
    two.rename(one)
    spare.rename(two)


HARM: dict[str, Callable[[Path], Any]] = {
    "file deleted": lambda p: (p / MODEL).unlink(),
    "state deleted": lambda p: (p / "state.json").unlink(),
    "manifest deleted": lambda p: (p / "manifest.json").unlink(),
    "file emptied": lambda p: (p / MODEL).write_bytes(b""),
    "manifest emptied": lambda p: (p / "manifest.json").write_bytes(b""),
    "file of another step": lambda p: shutil.copy(p.parent / "step-000000002" / MODEL, p / MODEL),
    "file longer": lambda p: (p / MODEL).write_bytes((p / MODEL).read_bytes() + b"x"),
    "files swapped": lambda p: _swap(p / MODEL, p / "state.json"),
    "file a link": lambda p: (p / MODEL).unlink() or (p / MODEL).symlink_to("/etc/hostname"),
    "file a folder": lambda p: (p / MODEL).unlink() or (p / MODEL).mkdir(),
    "manifest a link": lambda p: (
        (p / "manifest.json").rename(p.parent / "elsewhere")
        and (p / "manifest.json").symlink_to(p.parent / "elsewhere")
    ),
    "manifest of another run": lambda p: shutil.copy(
        p.parent.with_suffix(".other") / p.name / "manifest.json", p / "manifest.json"
    ),
    "manifest of another step": lambda p: shutil.copy(
        p.parent / "step-000000002" / "manifest.json", p / "manifest.json"
    ),
    "manifest of 10 MB": lambda p: (p / "manifest.json").write_bytes(b" " * 10_000_000),
    "manifest nested": lambda p: (p / "manifest.json").write_bytes(b"[" * 100_000),
    "manifest a list": lambda p: (p / "manifest.json").write_bytes(b"[]\n"),
}


@pytest.mark.parametrize("harm", HARM)
def test_other_harm_falls_back_to_the_one_before(store: Store, harm: str) -> None:
    HARM[harm](store.folder / "step-000000003")
    step, aside = newest_of(store)
    assert step == 2 and len(aside) == 1
    assert (store.folder / "damaged" / "step-000000003").exists(), "moved aside, not deleted"


def test_two_damaged_ones_fall_back_further(store: Store) -> None:
    for step in (2, 3):
        (store.folder / f"step-{step:09d}" / MODEL).write_bytes(b"")
    assert newest_of(store)[0] == 1


def test_swapped_folders_are_noticed(store: Store) -> None:
    _swap(store.folder / "step-000000002", store.folder / "step-000000003")
    step, aside = newest_of(store)
    assert step == 1 and len(aside) == 2 and all("swapped" in text for text in aside)


def test_a_folder_that_is_a_link_is_not_followed(store: Store) -> None:
    outside = store.folder.with_suffix(".other") / "step-000000003"
    before = {p.name: p.read_bytes() for p in outside.iterdir()}
    link = store.folder / "step-000000009"
    link.symlink_to(outside)
    assert newest_of(store)[0] == 3
    assert {p.name: p.read_bytes() for p in outside.iterdir()} == before


def test_a_format_of_the_future_is_refused_and_nothing_touched(store: Store) -> None:
    (store.folder / "step-000000002" / MODEL).write_bytes(b"")  # damaged besides
    _resealed(store.folder / "step-000000003", format=2)
    before = sorted(str(p) for p in store.folder.rglob("*"))
    with pytest.raises(CheckpointError, match="format 2 is newer"):
        store.newest()
    assert sorted(str(p) for p in store.folder.rglob("*")) == before


def _header(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


HEADERS = {
    "claims 10 GB": struct.pack("<Q", 10 * 2**30) + b"{}",
    "claims the largest number": struct.pack("<Q", 2**64 - 1) + b"{}",
    "is no JSON": _header(b"\x80\x04ctorch\n"),
    "is a list": _header(b"[]      "),
    "has huge shapes": _header(
        b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}' + b"    "
    ) + bytes(4),
    "points behind the end": _header(
        b'{"a":{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}}'
    ),
    "names an unknown type": _header(
        b'{"a":{"dtype":"PICKLE","shape":[1],"data_offsets":[0,4]}}'
    ) + bytes(4),
    "is cut": b"\x01\x02",
}  # fmt: skip


@pytest.mark.parametrize("header", HEADERS)
def test_a_sealed_file_with_a_lying_header_takes_no_memory(store: Store, header: str) -> None:
    path = store.folder / "step-000000003"
    (path / MODEL).write_bytes(HEADERS[header])
    _resealed(path)
    step, aside = newest_of(store)
    assert step == 2 and "step-000000003" in aside[0]


def mutations(value: Any, draw: random.Random) -> Any:
    """Return `value` with one part of it, however deep, replaced by something else."""
    strange = [None, True, -1, 2**70, 1e400, "", "../../x", "\0", [], {}, [[]], {"a": 1}]
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(sorted(value))
        if draw.random() < 0.2:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: mutations(value[key], draw)}
    return draw.choice(strange)


def test_a_sealed_manifest_of_any_shape_is_refused_in_one_way(store: Store, tally: Any) -> None:
    draw, repaired = random.Random(5), Repaired(store)
    manifest = json.loads(repaired.whole["manifest.json"])
    found: list[tuple[Any, str | None]] = []
    for _ in range(600):
        changed = mutations(manifest, draw)
        if not isinstance(changed, dict):
            continue
        (repaired.path / "manifest.json").write_bytes(sealed(changed))
        wrong = None
        try:
            newest_of(store)
        except CheckpointError:
            pass
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
        found.append((changed, wrong))
        repaired.put_back()
    tally.check(found)


def mutants(stage: Any, tally: Any, count: int) -> None:
    def trial(zygote: Any, runs: Path, seed: int) -> tuple[int, str | None]:
        assert CONDITIONS["plain"].play(zygote, runs, kill_at=7).killed
        outcome = zygote.play(
            "read_mutants", folder=str(runs), count=count, seed=seed, room=100_000_000, limit=900.0
        )
        answer = outcome.answer
        wrong = "; ".join(answer.get("wrong", [outcome.error[-800:]]))
        few = None if answer.get("refused", 0) > count / 4 else "hardly any was refused"
        return seed, wrong or few

    tally.check(stage.each(trial, range(4)))


def test_sealed_mutants_raise_one_exception_and_take_no_memory(stage: Any, tally: Any) -> None:
    mutants(stage, tally, 150)


@pytest.mark.slow
def test_ten_thousand_sealed_mutants(stage: Any, tally: Any) -> None:
    mutants(stage, tally, 2500)


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def test_nothing_that_can_run_code_reads_a_file() -> None:
    """No pickle in any form: neither the module nor what unpickles behind a friendly name."""
    risky = ("pickle", "shelve", "marshal", "dill", "joblib", "torch.load", "np.load", "eval",
             "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load")  # fmt: skip
    for path in SOURCE.rglob("*.py"):
        names = set(imports(ast.parse(path.read_text(encoding="utf-8"))))
        used = [n for n in names if n in risky or n.split(".")[0] in risky[:5]]
        for call, safely in (
            ("np.load", "allow_pickle=False"),
            ("torch.load", "weights_only=True"),
        ):
            if call in used:
                assert path.read_text(encoding="utf-8").count(safely) == 1
                used.remove(call)
        assert not used, f"{path.relative_to(SOURCE)} uses {used}"


def _flip(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)


def _each_checkpoint(run: Path, harm: Callable[[Path], Any]) -> None:
    for path in (run / "checkpoints").glob("step-*"):
        harm(path)


STEP = "checkpoints/step-000000010"
RUIN: dict[str, Callable[[Path], Any]] = {
    "weights flipped": lambda r: _flip(r / STEP / MODEL, 0.9),
    "optimiser flipped": lambda r: _flip(r / STEP / "main.optim.safetensors", 0.5),
    "manifest flipped": lambda r: _flip(r / STEP / "manifest.json", 0.5),
    "state deleted": lambda r: (r / STEP / "state.json").unlink(),
    "all flipped": lambda r: _each_checkpoint(r, lambda p: _flip(p / MODEL, 0.5)),
    "checkpoints deleted": lambda r: shutil.rmtree(r / "checkpoints"),
    "journal flipped at the start": lambda r: _flip(r / "journal", 0.0),
    "journal flipped before the checkpoint": lambda r: _flip(r / "journal", 0.3),
    "journal flipped after the checkpoint": lambda r: _flip(r / "journal", 0.95),
    "journal flipped at the end": lambda r: _flip(r / "journal", 1.0),
    "journal cut": lambda r: os.truncate(r / "journal", 300),
    "journal emptied": lambda r: (r / "journal").write_bytes(b""),
    "journal deleted": lambda r: (r / "journal").unlink(),
    "journal a folder": lambda r: (r / "journal").unlink() or (r / "journal").mkdir(),
}


@pytest.mark.parametrize("ruin", RUIN)
def test_a_run_goes_on_over_damage(stage: Any, ruin: str) -> None:
    _, expected = undisturbed(stage, "plain")
    condition = CONDITIONS["plain"]
    with stage.zygote() as zygote, stage.folder() as runs:
        assert condition.play(zygote, runs, kill_at=10).killed
        RUIN[ruin](runs / "trial")
        for step in (11, None):  # once more killed, so that what was written around damage is read
            outcome = condition.play(zygote, runs, kill_at=step)
            assert outcome.killed == (step is not None), outcome.error
        wrong = go_on(lambda runs: condition.play(zygote, runs), runs)
        wrong = wrong or differences(expected, runs / "trial", "steps kept")
        assert not [w for w in (wrong or "").split(", ") if w and "damaged" not in w], wrong


def test_best_weights_that_are_damaged_do_not_keep_a_run_from_its_end(stage: Any) -> None:
    """They would be the result of a run that was stopped early; the last ones are."""
    condition = CONDITIONS["early stop"]
    with stage.zygote() as zygote, stage.folder() as runs:
        assert condition.play(zygote, runs, kill_at=7).killed
        _flip(runs / "trial" / "checkpoints/step-000000003" / MODEL, 0.9)
        wrong = go_on(lambda runs: condition.play(zygote, runs), runs)
        assert wrong is None
        said = (runs / "trial" / "log.txt").read_text()
        assert (
            "the checkpoint of step 3 is gone or damaged; the last weights are the result" in said
        )


def test_a_run_that_may_not_be_written_is_refused_untouched(stage: Any) -> None:
    condition = CONDITIONS["plain"]
    with stage.zygote() as zygote, stage.folder() as runs:
        assert condition.play(zygote, runs, kill_at=7).killed
        before = {p: p.read_bytes() for p in runs.rglob("*") if p.is_file()}
        outcome = condition.play(zygote, runs, arm=(runs, 1, -13))
        assert outcome.code == 2, outcome.error
        assert {p: p.read_bytes() for p in runs.rglob("*") if p.is_file()} == before
