"""The code recipe as a person uses it: every method, killed and resumed, looked at, given away."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import PINS, QUICK, Surefoot

from surefoot.engine.store import Store
from surefoot.track.folder import find

pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

# The recipe, in a process that is killed when it fetches the rows of step 6 while the marker is there.
FRAGILE = """
import os, signal
from dataclasses import replace
from pathlib import Path
from surefoot import Data
from surefoot.recipes import find

code = find("code")
MARKER = Path({marker!r})

class Fragile:
    def __init__(self, source, config):
        self.source, self.fingerprint = source, source.fingerprint
        index, _ = Data(source, config.train.seed, config.train.batch_size).address(5)
        self.doomed = int(index[0])

    def __len__(self):
        return len(self.source)

    def batch(self, index, epoch, key):
        if self.doomed in index.tolist() and MARKER.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return self.source.batch(index, epoch, key)

def build(config, world):
    job = code.build(config, world)
    return replace(job, source=Fragile(job.source, config))

recipe = replace(code, name="fragile", build=build)
"""
METHODS = ("lora", "lora+", "qlora", "qlora+", "full")


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Modules about shapes, each with a function that takes some lines."""
    folder = tmp_path_factory.mktemp("shapes")
    for n in range(14):
        name = ("circle", "square", "cube", "line", "arc", "ring", "cone")[n % 7] + str(n)
        lines = [f"import math\n\nSIDES_{n} = {n * 3}\n"]
        lines += [
            f"\ndef {name}_{word}(size: float) -> float:\n    total = size * {n + k}\n"
            f"    for step in range({k}):\n        total += step\n    return total\n"
            for k, word in enumerate(("area", "length", "weight"), 2)
        ]
        (folder / f"{name}.py").write_text("".join(lines))
    return folder


def words(repo: Path, *more: str | Path, steps: int = 6) -> list[str]:
    pins = PINS | QUICK | {"micro-batch-size": 2, "track.tensorboard": "no"}
    del pins["warmup-steps"]
    settings = [str(word) for name, value in pins.items() for word in (f"--{name}", value)]
    first = ["train", "code", "--preset", "tiny", "--repo", repo, "--max-steps", steps]
    sizes = ["--context", 32, "--rank", 2, "--val-tokens", 200, "--outside-tokens", 100]
    return [str(word) for word in [*first, *settings, *sizes, "--prompts", 0, *more]]


def end_of(run: Path) -> dict[str, Any]:
    """The bits of the last checkpoint, and the rows of the record without clocks."""
    last = Store(run / "checkpoints", find(run.parent, run.name).meta["id"]).checkpoints()[-1]
    tensors = last.read().tensors
    clocks = ("time", "segment", "tokens_per_s")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in r.items() if k not in clocks} for r in rows if r["kind"] != "system"]
    bits = {f"{file}/{n}": t.tolist() for file, group in tensors.items() for n, t in group.items()}
    return {"step": last.step, "tensors": bits, "rows": kept}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_says_at_which_rates(
    surefoot: Surefoot, repo: Path, tmp_path: Path, method: str
) -> None:
    told = surefoot(*words(repo, "--method", method, "--runs", tmp_path)).ok()
    run = tmp_path / "0001-code"
    row = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()][-1]
    found = next(
        r
        for r in map(json.loads, reversed((run / "metrics.jsonl").read_text().splitlines()))
        if r["kind"] == "eval"
    )
    assert row["step"] == 6
    assert found["val_ppl"] < found["base_val_ppl"]
    assert found["val_ppl_low"] < found["val_ppl"] < found["val_ppl_high"]
    assert "rate" in told.out and "licence" in told.out
    assert {"train.jsonl", "val.jsonl", "test.jsonl"} <= {p.name for p in run.iterdir()}
    if method.endswith("+"):
        groups = [line for line in told.out.split("\n") if line.startswith("group")]
        rates = [[float(x) for x in g.split("rate ")[1].split(" -> ")] for g in groups]
        for fast, slow in zip(*rates):  # at the start, the peak and the end
            assert fast / slow == pytest.approx(16, rel=1e-2)


def test_killed_in_four_bits_with_dropout_it_goes_on_bit_for_bit(
    surefoot: Surefoot, repo: Path, tmp_path: Path
) -> None:
    marker, file = tmp_path / "marker", tmp_path / "fragile.py"
    file.write_text(FRAGILE.format(marker=str(marker)))
    own = ["--method", "qlora+", "--dropout", "0.2", "--dora", "on", "--prompts", "2"]
    asked = words(repo, *own, "--new-tokens", 4, "--prompt-tokens", 16)
    asked[1] = str(file)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    surefoot(*asked, "--runs", straight).ok()
    marker.touch()
    command = [sys.executable, "-m", "surefoot", *asked, "--runs", str(killed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    marker.unlink()
    told = surefoot("resume", "last", "--runs", killed, "--json").ok().json
    assert told["step"] == 6 and told["proven_steps"] >= 1
    assert end_of(straight / "0001-fragile") == end_of(killed / "0001-fragile")


def test_a_run_goes_on_with_the_files_as_they_were(
    surefoot: Surefoot, repo: Path, tmp_path: Path, sealed: Path
) -> None:
    mine = shutil.copytree(repo, tmp_path / "mine")
    runs = tmp_path / "runs"
    with surefoot.signalled("step 3/", signal.SIGTERM):
        assert surefoot(*words(mine, "--runs", runs)).code == 75
    for path in mine.glob("c*.py"):
        path.write_text("changed = 1\n")
    surefoot("resume", "last", "--runs", runs).ok()
    whole = tmp_path / "whole"
    surefoot(*words(repo, "--runs", whole)).ok()
    assert end_of(runs / "0001-code")["tensors"] == end_of(whole / "0001-code")["tensors"]


def test_another_base_is_refused_on_resume(
    surefoot: Surefoot, repo: Path, tmp_path: Path, sealed: Path
) -> None:
    from safetensors.torch import load_file, save_file

    runs = tmp_path / "runs"
    with surefoot.signalled("step 3/", signal.SIGTERM):
        assert surefoot(*words(repo, "--runs", runs)).code == 75
    (weights,) = (sealed / "cache" / "bases").glob("*/model.safetensors")
    tensors = load_file(weights)
    tensors["model.norm.weight"][0] += 1e-6
    save_file(tensors, weights, metadata={"format": "pt"})
    told = surefoot("resume", "last", "--runs", runs)
    assert told.code == 2 and "the base is not the one this run began with" in told.err


def test_patience_counts_after_the_peak_and_the_best_is_restored(
    surefoot: Surefoot, repo: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    own = ["--patience", 1, "--min-delta", 9, "--validate-every", 1, "--runs", runs]
    told = surefoot(*words(repo, *map(str, own), steps=12)).ok()
    assert "no improvement in 1 evaluations" in told.out
    stopped = int(told.out.split("no improvement")[0].rsplit("step ", 1)[1].rstrip(": "))
    assert stopped == round(0.3 * 12) + 1
    assert "are the result" in told.out


MISTAKES = [
    (["--base", "nowhere"], 2, "there is no nowhere"),
    (["--base", "someone/model"], 2, "SUREFOOT_OFFLINE is set"),
    (["--base", "{tmp}"], 2, "has no config.json, tokenizer.json, *.safetensors"),
    (["--targets", "qproj"], 2, "no linear layer is called qproj"),
    (["--method", "full", "--quant", "nf4"], 2, "cannot be trained"),
    (["--method", "qlora", "--quant", "none"], 2, "without, it is lora"),
    (["--optim.kind", "muon"], 2, "adapters are trained with adamw"),
    (["--checkpointing", "no", "--offload", "yes"], 2, "no inputs that wait"),
    (["--mlp-tile", "16", "--dropout", "0.1"], 2, "every tile would drop the same places"),
    (["--fim-rate", "0.5"], 2, "no tokens for filling in the middle"),
    (["--context", "100000"], 2, "a smaller --context"),
    (["--repo", "{tmp}"], 2, "0 files of code"),
    (["--repo", "{tmp}/nowhere"], 2, "there is nothing at"),
    (["--base", "org/name"], 2, "to plan, its config.json in a folder is enough"),
    (["--moments", "8bit"], 3, "computed on CUDA only"),
    (["--prompts-file", "{tmp}/none.jsonl"], 2, "there is no file"),
    (["--context", "4"], 2, "at least 8"),
    (["--languages", "cobol"], 2, "unknown: cobol"),
    (["--rank", "100000"], 2, "more than 64, the rank of the layers"),
    (["--val-ratio", "0.49", "--test-ratio", "0.49"], 2, "leave nothing to train on"),
]


@pytest.mark.parametrize(("flags", "code", "said"), MISTAKES)
def test_mistakes_are_told_before_there_is_a_run(
    surefoot: Surefoot, repo: Path, tmp_path: Path, flags: list[str], code: int, said: str
) -> None:
    given = [flag.replace("{tmp}", str(tmp_path)) for flag in flags]
    told = surefoot(*words(repo), "--runs", tmp_path / "runs", *given)
    assert (told.code, said in told.err) == (code, True), told.err
    assert not (tmp_path / "runs").exists()


def test_a_tuned_model_is_given_to_other_programs(
    surefoot: Surefoot, repo: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    runs = ["--runs", tmp_path / "runs"]
    surefoot(*words(repo, "--method", "qlora+", *runs)).ok()
    kinds: dict[str, list[str]] = {
        "adapter": ["--to", "hf"], "merged": ["--to", "hf", "--merge"], "model.gguf": ["--to", "gguf"],
    }  # fmt: skip
    for name, how in kinds.items():
        told = surefoot("export", "last", *how, "--out", tmp_path / name, "--json", *runs).ok()
        assert told.json["difference"] <= 1e-4 * told.json["scale"]
    layout = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in layout
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    told_base = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(told_base["base_model_name_or_path"])
    tuned = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    ours = {n: p for n, p in merged.named_parameters() if "layers" in n and p.dim() == 2}
    theirs = dict(tuned.named_parameters())
    assert ours and all(  # their base is not rounded to 4 bits, ours was
        (p - theirs[n]).norm() < 0.15 * p.norm() for n, p in ours.items()
    )
    refused = surefoot("export", "last", "--to", "pt", "--out", tmp_path / "pt", *runs)
    assert refused.code == 3 and "not written as pt" in refused.err
    text = surefoot("sample", "last", "--prompt", "def ", "--tokens", "5", *runs).ok()
    assert text.out.startswith("def ")


def test_a_tuned_model_is_examined_by_files_that_nothing_was_chosen_by(
    surefoot: Surefoot, repo: Path, tmp_path: Path
) -> None:
    runs = ["--runs", tmp_path / "runs"]
    asked = [*words(repo, *map(str, runs), steps=3), "--new-tokens", "4", "--test-ratio", "0.2"]
    asked[asked.index("--prompts") + 1] = "2"
    surefoot(*asked).ok()
    seen = [
        json.loads(x) for x in (tmp_path / "runs/0001-code/metrics.jsonl").read_text().splitlines()
    ]
    found = surefoot("evaluate", "last", *runs, "--json", "--device", "cpu").ok().json
    metrics = found["metrics"]["main"]
    assert {
        "test_ppl",
        "base_test_ppl",
        "test_ppl_change_high",
        "compile_cut_files",
    } <= metrics.keys()
    assert not any("test_ppl" in row for row in seen)


def test_a_rate_is_found_for_a_base(
    surefoot: Surefoot, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUREFOOT_RUNS", str(tmp_path / "runs"))
    told = words(repo)
    at = told.index("--max-steps")
    told = ["lr-find", *told[1:at], *told[at + 2 :]]
    own = ["--method", "lora+", "--trial-steps", "40", "--to", "3", "--json"]
    found = surefoot(*told, *own).ok().json
    assert found["recipe"] == "code" and len(found["rates"]) > 20
    assert all(3e-6 <= rate <= 3 for rate in found["suggestions"].values())
    assert not (tmp_path / "runs").exists()


def test_a_base_without_a_tokenizer_is_told(surefoot: Surefoot, repo: Path, tmp_path: Path) -> None:
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 40}
    config = transformers.LlamaConfig(num_attention_heads=2, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "bare")
    asked = words(repo, "--base", tmp_path / "bare", "--runs", tmp_path / "runs")
    told = surefoot(*asked)
    assert told.code == 2 and "has no tokenizer.json" in told.err
    (tmp_path / "bare" / "vocab.json").touch()
    assert "transformers can write one from vocab.json: python -c" in surefoot(*asked).err
    (tmp_path / "bare" / "vocabulary.json").touch()
    told = surefoot(*asked)
    assert "one of characters: a base whose tokenizer is a byte-level BPE" in told.err


def test_what_a_run_trained_is_tuned_and_the_resume_finds_it(
    surefoot: Surefoot, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    monkeypatch.setenv("SUREFOOT_RUNS", str(runs))
    text = Path(__file__).parents[1] / "fixtures" / "shakespeare.txt"
    own = ["--path", text, "--max-steps", 2, "--no-tensorboard", "--no-report", "--device", "cpu"]
    surefoot("train", "gpt", "--preset", "tiny", "--name", "mine", *map(str, own)).ok()
    with surefoot.signalled("step 3/", signal.SIGTERM):
        assert surefoot(*words(repo, "--base", "mine", "--name", "tuned")).code == 75
    shutil.rmtree(runs / "mine")
    told = surefoot("resume", "tuned", "--json").ok().json
    assert told["step"] == 6
    meta = find(runs, "tuned").meta
    assert meta["settings"]["model.base"].endswith("-2")  # the step whose weights it took
    surefoot("sample", "tuned", "--prompt", "def ", "--tokens", "3").ok()


def test_auto_takes_a_context_that_there_is_text_for_and_keeps_it(
    surefoot: Surefoot, repo: Path, tmp_path: Path
) -> None:
    runs = ["--runs", tmp_path / "runs"]
    told = surefoot(*words(repo, "--context", "auto", *runs, steps=2)).ok()
    chosen = find(tmp_path / "runs", "last").meta["settings"]["model.context"]
    assert f"context {chosen:,} chosen" in told.out and chosen in (256, 512, 1024, 2048)
    surefoot("resume", "last", "--max-steps", "3", *runs).ok()
    assert find(tmp_path / "runs", "last").meta["settings"]["model.context"] == chosen


def test_problems_and_other_languages_are_judged_beside_the_base(
    surefoot: Surefoot, repo: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tree_sitter_go")
    mine = shutil.copytree(repo, tmp_path / "mine")
    for n in range(40):
        code = f"package a\n\nfunc F{n}(x int) int {{\n\ty := x * {n}\n\treturn y + {n * n}\n}}\n"
        (mine / f"f{n}.go").write_text(code)
    problem = {
        "task_id": 1,
        "text": "Add.",
        "code": "def add(left, right):\n    return left + right",
    }
    file = tmp_path / "problems.jsonl"
    file.write_text(json.dumps(problem))
    own = [
        "--similarity",
        1,
        "--prompts",
        2,
        "--new-tokens",
        4,
        "--prompts-file",
        file,
        "--val-ratio",
        0.3,
    ]
    surefoot(*words(mine, *map(str, own), "--runs", tmp_path / "runs", steps=2)).ok()
    lines = (tmp_path / "runs" / "0001-code" / "metrics.jsonl").read_text().splitlines()
    row = next(r for r in map(json.loads, lines) if r["kind"] == "eval")
    for name in ("compile", "parse", "problems"):
        assert 0 <= row[f"{name}_cut_low"] <= row[f"{name}_cut"] <= row[f"{name}_cut_high"] <= 1
        assert {f"base_{name}_as_is", f"base_{name}_cut"} <= row.keys()
    assert 0 <= row["compile_cut_files"] <= 1 and 0 <= row["parse_cut_files"] <= 1
    for prefix in ("", "parse_", "problems_"):
        parts = [row[f"{prefix}{what}"] for what in ("ended", "empty", "truncated")]
        assert sum(parts) == pytest.approx(1)
    known = json.dumps({**problem, "code": (mine / "cube2.py").read_text()})
    file.write_text(known + "\n")
    refused = surefoot(*words(mine, *map(str, own), "--runs", tmp_path / "other", steps=2))
    train = (tmp_path / "runs" / "0001-code" / "train.jsonl").read_text()
    assert ("cube2.py" in train) == (refused.code == 2 and "stand in the code" in refused.err)
