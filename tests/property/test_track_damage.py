"""Whatever stands in the files of a run: a verb answers or explains, and never falls over."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from surefoot.cli import main
from surefoot.track.folder import RunFolder
from surefoot.track.record import Record

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, "nan", "x\x1b[2J", [], {}, [1, 2], {"a": None}, "2026-99-99",
    [None], {"main": None}, {"main": [1]}, {"main": ["a", "b"]},
)  # fmt: skip
LINES = ("", "{", "[1]", "null", '"x"', "\x00\x01")
CONFIGS = ("", "model:\n  d_model: 3\n", "\x00: [", "train:\n  batch_size: x\n  seed: 1\n")
VERBS = (
    "runs --metric loss>1 --tag x", "runs", "show bad", "compare good bad --json",
    "compare bad good --all --json", "prune", "prune --newest 0", "du", "tail bad",
    "tail bad --json", "top bad --once", "tb bad --rebuild", "tag bad word", "keep bad",
)  # fmt: skip


def hurt(draw: random.Random, values: dict[str, Any], most: int) -> dict[str, Any]:
    """Return a copy with some entries gone or replaced by something odd."""
    changed = dict(values)
    for key in draw.sample(list(changed), draw.randint(0, most)):
        if draw.random() < 0.3:
            del changed[key]
        else:
            changed[key] = draw.choice(ODD)
    return changed


@pytest.mark.parametrize("seed", range(12))
def test_no_verb_falls_over_a_damaged_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    monkeypatch.setenv("SUREFOOT_RUNS", str(tmp_path))
    draw = random.Random(seed)
    for name in ("good", "bad"):
        meta = {"id": name, "max_steps": 60, "tags": ["a"], "segments": [{"step": 0}]}
        run = RunFolder.create(tmp_path, "charlm", name, {"config.yaml": CONFIGS[1]}, meta)
        with Record(run.path) as record:
            for step in range(10, 61, 10):
                record.row("train", step, loss=1.0, lr=0.1, tokens_per_s=10.0)
                record.row("eval", step, val_loss=2.0, top1=0.5)
            record.sample(60, "main", "a", "b")
    run.path.joinpath("config.yaml").write_text(draw.choice(CONFIGS))
    run.path.joinpath("run.json").write_text(json.dumps(hurt(draw, run.meta, 3)))
    for file in ("metrics.jsonl", "samples.jsonl"):
        rows = [json.loads(line) for line in (run.path / file).read_text().splitlines()]
        lines = [json.dumps(hurt(draw, row, 2)) for row in rows]
        lines.insert(draw.randint(0, len(lines)), draw.choice(LINES))
        (run.path / file).write_text("\n".join(lines) + "\n")
    for words in VERBS:
        code, said = main(words.split()), capsys.readouterr()
        assert code in (0, 2), (words, said.err)
        assert "Traceback" not in said.err and "\x1b" not in said.out, words
