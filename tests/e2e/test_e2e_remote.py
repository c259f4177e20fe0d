"""Shards elsewhere as a person uses them: written by one command, trained on by another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import PINS, QUICK, TEXT
from tests.storage import Storage

from surefoot.data import place

DATA = ("--vocab-size", 300, "--val-ratio", 0.2)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    monkeypatch.delenv("SUREFOOT_OFFLINE")
    monkeypatch.setattr(place, "PAUSES", (0.0, 0.0))
    made = Storage()
    yield made
    made.close()


def words(runs: Path, name: str, *more: Any, steps: int = 6) -> list[str]:
    settings = [word for key, value in (PINS | QUICK).items() for word in (f"--{key}", value)]
    first = ["train", "gpt", "--preset", "tiny", "--runs", runs, "--name", name, "--quiet"]
    return [str(w) for w in [*first, "--max-steps", steps, *settings, "--context", 16, *more]]


def left(run: Path) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """What a run learned: its rows without times, and the weights of its last checkpoint."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = {"step", "kind", "loss", "val_loss", "grad_norm", "val_bits_per_byte"}
    last = max((run / "checkpoints").iterdir())
    files = {path.name: path.read_bytes() for path in last.glob("*.safetensors")}
    assert files
    trained = [row for row in rows if row["kind"] == "train" or row["step"] % 3 == 0]
    return [{k: v for k, v in row.items() if k in kept} for row in trained], files


def test_the_run_is_that_of_the_text_bit_for_bit(
    surefoot: Any, tmp_path: Path, storage: Storage, sealed: Path
) -> None:
    to, runs = f"{storage.url}/web/shk", tmp_path / "runs"
    written = surefoot(
        "data", "shard", "--path", TEXT, *DATA, "--shard-size", "2KB", "--to", to, "--json"
    ).ok().json  # fmt: skip
    assert written["shards"]["train"] > 3 and written["sent"] > 9000
    surefoot(*words(runs, "near", "--path", TEXT, *DATA)).ok()
    surefoot(*words(runs, "far", "--shards", to, "--shard-cache", "10KB")).ok()
    assert left(runs / "near") == left(runs / "far")
    cached = [path.stat().st_size for path in (sealed / "cache" / "shards").glob("*.bin")]
    assert 5000 < sum(cached) <= 10_000

    # A part of them at a time: another order, and a resume goes on exactly.
    few = ("--shards", to, "--shard-cache", "30KB", "--shuffle-shards", 2, "--schedule.horizon", 6)
    surefoot(*words(runs, "few", *few)).ok()
    surefoot(*words(runs, "cut", *few, steps=4)).ok()
    surefoot("resume", "cut", "--runs", runs, "--max-steps", 6, "--quiet").ok()
    assert left(runs / "few") == left(runs / "cut") != left(runs / "far")

    # Other shards at the same address are other data: nothing goes on with them.
    for name in [n for n in storage.files if n.startswith("web/shk/")]:
        del storage.files[name]
    surefoot(
        "data", "shard", "--path", TEXT, "--vocab-size", 299, "--shard-size", "2KB", "--to", to
    ).ok()
    refused = surefoot("resume", "cut", "--runs", runs, "--max-steps", 9, "--quiet")
    assert refused.code == 2 and "data" in refused.err


def test_a_shard_whose_bytes_changed_ends_the_run_by_name(surefoot: Any, tmp_path: Path) -> None:
    to, runs = tmp_path / "store", tmp_path / "runs"
    first = surefoot("data", "shard", "--path", TEXT, *DATA, "--shard-size", "2KB", "--to", to).ok()
    assert "tokens in" in first.out and f"surefoot train gpt --shards {to}" in first.out
    again = surefoot("data", "shard", "--path", TEXT, *DATA, "--shard-size", "2KB", "--to", to)
    assert "all was there already" in again.ok().out
    shard = min(to.glob("train-*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:9] + b"!" + content[10:])
    answer = surefoot(*words(runs, "a", "--shards", to, "--shard-cache", "30KB", steps=40))
    assert answer.code == 2 and f"shard {shard.name} is not what its manifest says" in answer.err
    shard.write_bytes(content)
    surefoot(*words(runs, "a", "--shards", to, "--shard-cache", "30KB", steps=40)).ok()


def test_mistakes(surefoot: Any, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for more, says in (
        (("--shards", tmp_path / "none"), "there is no such file"),
        (("--shards", tmp_path, "--path", TEXT), "leave one of the two out"),
        (("--shards", tmp_path, "--shard-cache", "lots"), "expected a size like 500MB"),
    ):
        answer = surefoot(*words(runs, "a", *more))
        assert answer.code == 2 and says in answer.err, answer.err
    assert not runs.exists()
    answer = surefoot("data", "shard", "--path", TEXT, "--val-ratio", "2", "--to", tmp_path / "x")
    assert answer.code == 2 and "val_ratio" in answer.err
    shutil.rmtree(tmp_path / "x", ignore_errors=True)
