"""Every setting changes something, and a circumstance never changes the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import surefoot as package
from surefoot.config.fields import leaves
from surefoot.errors import Diverged
from surefoot.recipes import find

TEXT = Path(__file__).resolve().parents[1] / "fixtures" / "shakespeare.txt"
BASE = {
    "data.path": TEXT, "train.max_steps": 4, "schedule.warmup_steps": 1,
    "machine.precision": "fp32", "machine.threads": 1, "machine.matmul": "default",
    "machine.compile": "off",
    "machine.device": "cpu", "machine.prefetch_threads": 0, "ops.attention": "sdpa",
    "ops.cross_entropy": "reference", "ops.norm": "fused", "ops.rotary": "fused",
    "ops.swiglu": "reference", "ops.squared_relu": "reference", "ops.keyed_dropout": "table",
    "machine.micro_batch_size": 4,
    "cadence.log_every": 1, "cadence.validate_every": 2, "cadence.sample_every": 0,
    "cadence.save_every": 1, "keep.best": 0, "track.tensorboard": False, "track.report": False,
}  # fmt: skip
WSD = {"schedule.kind": "wsd"}
HASTY = {"train.patience": 1, "train.min_delta": 10.0}


@dataclass(frozen=True)
class Trace:
    """What a run left."""

    numbers: list[tuple[Any, ...]]
    rows: list[tuple[str, int]]
    columns: set[str]
    pins: Mapping[str, Any]
    checkpoints: list[tuple[int, bool]]
    files: set[str]
    tags: list[str]
    samples: int
    weights: bytes


@dataclass(frozen=True)
class Case:
    """Setting `path` to `value`, beside `given`, changes this part of the trace."""

    path: str
    value: Any
    part: str = "numbers"
    given: Mapping[str, Any] = field(default_factory=dict)


CASES = [
    Case("model.layout", "gpt2"),
    Case("model.d_model", 16),
    Case("model.num_layers", 1),
    Case("model.num_heads", 4),
    Case("model.num_kv_heads", 1),
    Case("model.d_ff", 64),
    Case("model.context", 16),
    Case("model.dropout", 0.5),
    Case("model.qk_norm", False),
    Case("model.tie_embeddings", False),
    Case("model.rope_theta", 100.0),
    Case("model.feed_forward", "relu2"),
    Case("model.softcap", 1.0),
    Case("model.value_embeddings", True),
    Case("model.zero_init", True),
    Case("model.norm_eps", 0.01),
    Case("data.val_ratio", 0.3),
    Case("data.vocabulary", "byte"),
    Case("train.seed", 2),
    Case("train.batch_size", 4),
    Case("train.batch_warmup", 3),
    Case("train.max_steps", 5, "rows"),
    Case("train.ema", 0.5),
    Case("train.patience", 1, "rows", {"train.min_delta": 10.0, "train.max_steps": 8}),
    Case("train.min_delta", 10.0, "rows", {"train.patience": 1, "train.max_steps": 8}),
    Case("train.restore_best", False, "weights", {**HASTY, "train.max_steps": 8}),
    Case("optim.kind", "adamw"),
    Case("optim.lr", 0.01),
    Case("optim.muon_lr", 0.04),
    Case("optim.momentum", 0.5),
    Case("optim.beta1", 0.5),
    Case("optim.beta2", 0.5),
    Case("optim.eps", 0.01),
    Case("optim.weight_decay", 0.5),
    Case("optim.clip", 0.01),
    Case("schedule.kind", "constant"),
    Case("schedule.warmup_steps", 3),
    Case("schedule.decay_steps", 2),
    Case("schedule.decay_fraction", 0.9, given=WSD),
    Case("schedule.min_lr", 0.002),
    Case("schedule.horizon", 50),
    Case("machine.precision", "bf16"),
    Case("machine.threads", 2, "pins"),
    Case("machine.matmul", "onednn", "pins"),
    Case("machine.micro_batch_size", 2, "pins"),
    Case("machine.prefetch_threads", 2, "pins"),
    Case("machine.reduce", "tree", "weights", {"machine.micro_batch_size": 1}),
    Case("ops.attention", "reference", "pins"),
    Case("ops.cross_entropy", "chunked", "pins"),
    Case("ops.norm", "reference", "pins"),
    Case("ops.rotary", "reference", "pins"),
    Case("ops.swiglu", "recomputed", "pins"),
    Case("ops.squared_relu", "fused", "pins", {"model.feed_forward": "relu2"}),
    Case("ops.keyed_dropout", "reference", "pins"),
    Case("ops.adamw", "reference", "pins"),
    Case("ops.orthogonalise", "reference"),
    Case("cadence.log_every", 2, "rows"),
    Case("cadence.validate_every", 3, "rows"),
    Case("cadence.sample_every", 2, "samples"),
    Case("cadence.save_every", 2, "checkpoints"),
    Case("keep.last", 3, "checkpoints"),
    Case("keep.best", 9, "checkpoints"),
    Case("keep.milestones", 1, "checkpoints"),
    Case("keep.max_disk", "1kB", "checkpoints", {"keep.last": 4}),
    Case("track.tensorboard", True, "files"),
    Case("track.report", True, "files"),
    Case("track.tags", "wide,first", "tags"),
    Case("track.profile", True, "files", {"train.max_steps": 11}),
    Case("track.update_ratio", True, "columns"),
    Case("track.sinks", str(TEXT.with_name("sink.py")), "files"),
]
LENGTHS = {"train.max_steps"}  # circumstances of how far a run goes
ELSEWHERE = {
    "data.corpus", "data.path", "data.val_batch", "train.epochs", "train.steps_per_epoch",
    "train.nonfinite", "train.nonfinite_limit", "train.rollback_every", "train.rollback_factor",
    "train.spike_factor", "machine.device", "machine.compile", "keep.mirror",
    "track.life_check", "track.compile_check", "track.monitor", "ops.within",
    "memory.checkpointing", "machine.devices", "machine.parallel", "machine.hang_timeout", "keep.sharded",
}  # fmt: skip


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Train with these settings over the base, once for each question; return the trace."""
    place = tmp_path_factory.mktemp("settings")

    @cache
    def play(question: str, pairs: tuple[tuple[str, Any], ...]) -> Trace:
        settings = {**BASE, **dict(pairs)}
        result = package.train(
            "charlm", preset="tiny", runs=place, new=True, quiet=True, **settings
        )
        return trace(result.folder)

    return lambda **settings: play(repr(settings), tuple(settings.items()))


def trace(folder: Path) -> Trace:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    meta = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    manifests = sorted(folder.glob("checkpoints/step-*/manifest.json"))
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in manifests]
    numbers = [
        tuple(row.get(key) for key in ("kind", "step", "loss", "grad_norm", "lr", "val_loss"))
        for row in rows
    ]
    pins = {k: v for k, v in meta["pinned"].items() if k != "why"}
    last = max(folder.glob("checkpoints/step-*"))
    samples = folder / "samples.jsonl"
    written = samples.read_text(encoding="utf-8") if samples.exists() else ""
    return Trace(
        numbers, [(row["kind"], row["step"]) for row in rows], set().union(*rows), pins,
        [(m["step"], "slim" in m) for m in kept], {p.name for p in folder.iterdir()},
        meta["tags"], len(written.splitlines()), (last / "main.model.safetensors").read_bytes(),
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.path)
def test_a_setting_changes_something(case: Case, train: Any) -> None:
    before = train(**case.given)
    after = train(**{**case.given, case.path: case.value})
    assert getattr(after, case.part) != getattr(before, case.part)
    if not leaves(find("charlm").config)[case.path].identity and case.path not in LENGTHS:
        assert after.weights == before.weights, "a circumstance changed the weights"


def test_every_setting_has_its_case() -> None:
    known = set(leaves(find("charlm").config))
    assert {case.path for case in CASES} | ELSEWHERE == known


def test_epochs_are_another_way_to_say_max_steps(train: Any) -> None:
    steps = {"train.epochs": 1.5, "train.steps_per_epoch": 2, "train.max_steps": None}
    with_words = {k: v for k, v in steps.items() if v is not None}
    found = play_without_max_steps(train, with_words)
    assert [step for kind, step in found.rows if kind == "train"] == [1, 2, 3]


def play_without_max_steps(train: Any, settings: Mapping[str, Any]) -> Trace:
    kept = BASE.pop("train.max_steps")
    try:
        found: Trace = train(**settings)
    finally:
        BASE["train.max_steps"] = kept
    return found


def test_other_text_is_other_numbers(train: Any, tmp_path: Path) -> None:
    shutil.copy(TEXT, tmp_path / "same.txt")
    (tmp_path / "other.txt").write_text(TEXT.read_text(encoding="utf-8")[::-1], encoding="utf-8")
    same, other = (train(**{"data.path": tmp_path / f"{n}.txt"}) for n in ("same", "other"))
    assert same.numbers == train().numbers
    assert other.numbers != same.numbers


def test_a_corpus_by_name_is_other_text(
    train: Any, monkeypatch: pytest.MonkeyPatch, sealed: Path
) -> None:
    from dataclasses import replace

    from surefoot.data import corpora

    text = TEXT.read_text(encoding="utf-8")
    made = replace(corpora.corpora()["pydocs"], build=lambda _: text[::-1])
    monkeypatch.setattr(corpora, "_ALL", [made])
    named = train(**{"data.path": None, "data.corpus": "pydocs"})
    assert named.numbers != train().numbers


def test_the_size_of_validation_batches_is_no_number(
    train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surefoot.data.text import Text

    asked: list[int] = []
    windows = Text.windows
    monkeypatch.setattr(Text, "windows", lambda self, c, b: asked.append(b) or windows(self, c, b))
    assert train(**{"data.val_batch": 3}).weights == train().weights
    assert set(asked) == {3}


def test_compile_on_compiles(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **_: compiled.append(type(self).__name__)
    )
    assert train(**{"machine.compile": "on"}).pins["compile"] is True
    assert compiled == ["GPT"]


WILD = {"optim.kind": "adamw", "optim.lr": 1e30, "schedule.kind": "constant"}


def test_what_happens_to_numbers_that_are_not(train: Any) -> None:
    calm = train(**WILD, **{"train.nonfinite": "skip"})
    skipped = [step for kind, step in calm.rows if kind == "event"]
    assert skipped, "nothing diverged"
    first = skipped[0]
    with pytest.raises(Diverged, match="1 non-finite step in a row"):
        train(**WILD, **{"train.nonfinite": "stop"})
    with pytest.raises(Diverged, match="2 non-finite steps in a row"):
        train(**WILD, **{"train.nonfinite_limit": 2, "train.max_steps": first + 4})


def test_a_rollback_goes_back_and_slows_down(train: Any) -> None:
    policy = {"train.nonfinite": "rollback", "train.rollback_every": 2, "train.max_steps": 5}
    found = train(**WILD, **policy, **{"train.rollback_factor": 1e-33})
    assert ("event", 1) in found.rows, "it went back to step 0, and step 1 says so"
    rates = [row[4] for row in found.numbers if row[0] == "train"]
    assert [step for kind, step in found.rows if kind == "train"] == [1, 2, 3, 4, 5]
    assert max(rates) <= 1e30 * 1e-33 * 1.001
    with pytest.raises(Diverged, match="rolled back 10 times"):
        train(**WILD, **policy, **{"train.rollback_factor": 1.0})
    with pytest.raises(Diverged, match="rolled back 10 times"):  # step 1 is ruined already
        train(**WILD, **{**policy, "train.rollback_every": 1, "train.rollback_factor": 1e-33})


def test_a_mirror_holds_the_same_checkpoints(train: Any, tmp_path: Path) -> None:
    assert train(**{"keep.mirror": tmp_path}).weights == train().weights
    (copy,) = tmp_path.iterdir()
    assert trace(copy).weights == train().weights
