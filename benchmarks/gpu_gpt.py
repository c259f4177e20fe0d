"""The gpt recipe on a CUDA device: speed at the plan's size, and what it learns in some minutes.

    python benchmarks/gpu_gpt.py speed --text FILE [--profile]
    python benchmarks/gpu_gpt.py reference --text FILE --out FOLDER [--budget 150]
    python benchmarks/gpu_gpt.py wikitext --folder FOLDER --out FOLDER [--budget 40]

`speed` (about a minute) trains the presets `seed` and `full` for some steps of 192 x 512 tokens as
the product does: compiled, bf16, kernels whose sums have an order. It prints tokens a second, the
share of the device's dense bf16 peak (6 operations a weight and token, causal attention counted
half), memory, and what 60,000 such steps would take. Attention's cost with and without an order is
timed beside it. `reference` trains `full` on FILE (text, .gz or .zst) with early stopping for about
--budget seconds. `wikitext` trains `laptop`, `seed` and `full` on wikitext2.{train.shuffled,valid,
test}.txt, about --budget seconds each. --set NAME=VALUE changes a setting of all runs. Nothing is
downloaded; the vocabulary and the tokens are made here and cached. Each writes a summary.json, a
page and, of the last two, metrics and ten samples of fixed seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

BATCH, CONTEXT, PLAN = 192, 512, 60_000
PEAKS = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}  # dense bf16, as published
MARKS = (  # WikiText-2, perplexity by word, as published: model, parameters, validation, test
    ("AWD-LSTM (Merity et al., 2017)", "33 M", "68.6", "65.8"),
    ("Mogrifier LSTM (Melis et al., 2019)", "35 M", "57.3", "55.1"),
)
PROMPTS = ("", "The city of", "In mathematics ,", "The war", "She was born in")


class Watch:
    """Stamps each update of the last learner that took one; the device has finished by then."""

    def __init__(self, on_step: Callable[[int], None] | None = None) -> None:
        self.at: list[float] = []
        self.model: Any = None
        self.on_step = on_step

    @contextmanager
    def looking(self) -> Iterator[Watch]:
        from surefoot.engine.learner import Learner

        update = Learner.update

        def stamped(learner: Learner) -> float:
            rate = update(learner)
            self.at.append(time.perf_counter())
            self.model = learner.model
            if self.on_step is not None:
                self.on_step(len(self.at))
            return rate

        Learner.update = stamped  # type: ignore[method-assign]
        try:
            yield self
        finally:
            Learner.update = update  # type: ignore[method-assign]

    def step(self, warm: int) -> float:
        """Return the median seconds of a step after the first `warm`."""
        return statistics.median(b - a for a, b in itertools.pairwise(self.at[warm:]))


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return what was given as NAME=VALUE."""
    found = {}
    for pair in options.set:
        name, _, value = pair.partition("=")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def peak(device: int = 0) -> float | None:
    name = torch.cuda.get_device_name(device) if torch.cuda.is_available() else ""
    return next((p for key, p in PEAKS.items() if key in name), None)


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Return what steps of the plan's size take."""
    found: dict[str, Any] = {}
    for preset in options.presets:
        try:
            found[preset] = one_speed(preset, options)
        except Exception as error:  # the other preset is still worth its time
            found[preset] = {"error": f"{type(error).__name__}: {error}"}
        print(preset, json.dumps(found[preset], indent=1), flush=True)
    if torch.cuda.is_available():
        found["attention"] = attention()
        print("attention", json.dumps(found["attention"]), flush=True)
    return found


def one_speed(preset: str, options: argparse.Namespace) -> dict[str, Any]:
    import surefoot

    profiler: Any = None
    warm, count = options.warm, options.steps

    def on_step(number: int) -> None:
        nonlocal profiler
        if options.profile and number == warm + count:
            profiler = torch.profiler.profile()
            profiler.__enter__()
        if options.profile and number == warm + count + 3:
            torch.cuda.synchronize()
            profiler.__exit__(None, None, None)

    watch = Watch(on_step)
    steps = warm + count + (5 if options.profile else 0)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, watch.looking():
        done = surefoot.train(
            "gpt", preset=preset, runs=folder, quiet=not options.loud, **{
                "path": options.text, "max_steps": steps, "horizon": PLAN, "compile": "on",
                "validate_every": 0, "sample_every": 0, "save_every": 0, "track.report": False,
                "track.tensorboard": False, "track.life_check": False,
                **settings(options),
            },
        )  # fmt: skip
        pins = json.loads((done.folder / "run.json").read_text())["pinned"]
        context, held = watch.model.config.context, most_memory(done.folder)
    taken = watch.step(warm)
    tokens = options.batch * context
    rate = tokens / taken
    work = watch.model.flops_per_token() * rate
    top = peak()
    result = {
        "ms_a_step": taken * 1e3, "tokens_per_s": rate, "parameters": watch.model.num_parameters,
        "tflops": work / 1e12, "mfu": work / top if top else None,
        "hours_of_the_plan": PLAN * taken / 3600,
        "first_step_s": watch.at[0] - begun, "whole_s": time.perf_counter() - begun,
        "peak_gb": held,
        "pins": {k: v for k, v in pins.items() if k != "why"}, "why": pins["why"],
    }  # fmt: skip
    if profiler is not None:
        print(
            profiler.key_averages().table(
                sort_by="cuda_time_total", row_limit=32, max_name_column_width=70
            )
        )
        result["kernels"] = kernels(profiler)
    return result


def most_memory(run: Path) -> float | None:
    """Return the most gigabytes that the run's tensors took on the device, as its record says."""
    rows = map(json.loads, (run / "system.jsonl").read_text().splitlines())
    return max((row["gpu_bytes"] / 1e9 for row in rows if "gpu_bytes" in row), default=None)


def kernels(profiler: Any) -> dict[str, float]:
    """Return ms a step by kind of kernel, of three profiled steps."""
    kinds = {
        "attention": ("flash", "fmha", "attention", "sdpa"),
        "products": ("gemm", "nvjet", "cutlass", "sm90_xmma", "splitk"),
        "compiled": ("triton_",), "loss": ("_softmax_gradient",),
        "optimiser": ("multi_tensor", "foreach"), "copies": ("memcpy", "memset", "copy"),
    }  # fmt: skip
    sums: dict[str, float] = {}
    for event in profiler.events():
        if str(event.device_type).endswith("CUDA"):
            name = event.name.lower()
            kind = next((k for k, words in kinds.items() if any(w in name for w in words)), "other")
            sums[kind] = sums.get(kind, 0.0) + event.device_time_total / 3e3
    return {k: round(v, 2) for k, v in sorted(sums.items(), key=lambda kv: -kv[1])}


def attention() -> dict[str, float]:
    """Return ms of causal attention forward and backward at 192 x 8 x 512 x 64, both ways."""
    q, k, v = (
        torch.randn(BATCH, CONTEXT, 8, 64, device="cuda", dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
        for _ in range(3)
    )  # fmt: skip

    def once() -> None:
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()

    found = {}
    before = torch.are_deterministic_algorithms_enabled()
    for name, ordered in (("ordered", True), ("as it comes", False)):
        torch.use_deterministic_algorithms(ordered)
        for _ in range(3):
            once()
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(10):
            once()
        torch.cuda.synchronize()
        found[name] = round((time.perf_counter() - begun) * 100, 3)
    torch.use_deterministic_algorithms(before)
    return found


def trained(name: str, preset: str, options: argparse.Namespace, **given: Any) -> dict[str, Any]:
    """Train one run with early stopping and return its summary; its record goes to `options.out`."""
    import surefoot
    from surefoot import use

    out = Path(options.out)
    watch = Watch()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, watch.looking():
        done = surefoot.train(
            "gpt", preset=preset, runs=folder, quiet=not options.loud, **{
                "track.tensorboard": False, "track.report": False, "sample_every": 0,
                "save_every": 0, "val_batch": 32, "patience": 4, **given, **settings(options),
            },
        )  # fmt: skip
        seconds = time.perf_counter() - begun
        tested = use.evaluate(done.folder, runs=folder)[1]["main"]
        rows = [json.loads(x) for x in (done.folder / "metrics.jsonl").read_text().splitlines()]
        about = json.loads((done.folder / "run.json").read_text())
        held = most_memory(done.folder)
        (out / f"{name}.samples.txt").write_text(samples(done.folder, folder, watch.model))
        shutil.copyfile(done.folder / "metrics.jsonl", out / f"{name}.metrics.jsonl")
    summary = {
        "preset": preset, "given": {**given, **settings(options)}, "steps": len(watch.at),
        "seconds": seconds, "seconds_training": watch.at[-1] - watch.at[0],
        "ms_a_step": watch.step(5) * 1e3, "parameters": watch.model.num_parameters,
        "best": about["best"], "scores": tested, "data": about.get("data"),
        "curve": [(r["step"], r["val_loss"]) for r in rows if r["kind"] == "eval"],
        "peak_gb": held,
        "compile": about["pinned"]["compile"],
    }  # fmt: skip
    print(
        name, json.dumps({k: v for k, v in summary.items() if k != "data"}, default=str), flush=True
    )
    return summary


def samples(run: Path, runs: str, model: Any) -> str:
    """Return ten texts of seeds 1 to 10, none left out."""
    from surefoot import use
    from surefoot.engine import Request

    speaker, step = use.load(run, runs=runs)
    texts = [f"temperature 0.8, top-p 0.95, 120 tokens, seeds 1 to 10, weights of step {step}"]
    for seed in range(1, 11):
        prompt = PROMPTS[(seed - 1) // 2]
        request = Request(prompt, 120, temperature=0.8, top_p=0.95, seed=seed)
        texts.append(f"[{seed}] {prompt}{''.join(speaker.reply('main', request))}")
    return "\n\n".join(texts) + "\n"


def reference(options: argparse.Namespace) -> dict[str, Any]:
    """Train `full` on one text; its plan is as long as the budget allows and overfitting does."""
    steps = options.max_steps or max(60, round(0.9 * (options.budget - 35) / options.step_seconds))
    return {
        "reference": trained(
            "reference", "full", options, path=options.text, max_steps=steps, warmup_steps=steps // 20,
            validate_every=max(1, steps // 25), dropout=0.1, log_every=10,
        )
    }  # fmt: skip


def wikitext(options: argparse.Namespace) -> dict[str, Any]:
    """Train three presets on WikiText-2 and print the table."""
    place = Path(options.folder)
    paths = {
        "path": place / "wikitext2.train.shuffled.txt",
        "val_path": place / "wikitext2.valid.txt", "test_path": place / "wikitext2.test.txt",
    }  # fmt: skip
    plans = {
        "laptop": {"max_steps": 2000},
        "seed": {"max_steps": 400, "warmup_steps": 40, "schedule.decay_steps": 360, "dropout": 0.1},
        "full": {"max_steps": 250, "warmup_steps": 25, "dropout": 0.2},
    }
    found = {}
    for preset in options.presets or plans:
        plan = plans[preset]
        every = max(1, int(plan["max_steps"]) // 20)
        found[preset] = trained(
            f"wikitext_{preset}", preset, options, **paths, validate_every=every, **plan
        )
    lines = [
        "| model | parameters | validation | test | bits a byte (test) | tokens seen |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for preset, run in found.items():
        score = run["scores"]
        best = next(iter(run["best"].values()))[0]
        each = 16 * 256 if preset == "laptop" else BATCH * CONTEXT
        lines.append(
            f"| `{preset}` | {run['parameters'] / 1e6:.1f} M | {score['val_word_ppl']:.1f} | "
            f"{score['test_word_ppl']:.1f} | {score['test_bits_per_byte']:.3f} | {best * each / 1e6:.0f} M |"
        )
    lines += [
        f"| {model} | {size} | {valid} | {test} | - | - |" for model, size, valid, test in MARKS
    ]
    print("\n".join(lines), flush=True)
    return {**found, "table": lines}


def main() -> None:
    """Measure, print and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["speed", "reference", "wikitext"])
    parser.add_argument("--text", type=Path)
    parser.add_argument("--folder", type=Path, help="where wikitext2.*.txt are")
    parser.add_argument("--out", type=Path, default=Path("gpu_gpt"))
    parser.add_argument("--presets", nargs="+")
    parser.add_argument("--set", nargs="+", default=[], help="settings of all runs, NAME=VALUE")
    parser.add_argument("--steps", type=int, default=20, help="of speed, measured")
    parser.add_argument("--warm", type=int, default=6, help="of speed, before that")
    parser.add_argument("--batch", type=int, default=BATCH, help="what the presets take, for rates")
    parser.add_argument("--budget", type=float, default=150.0, help="seconds of a training")
    parser.add_argument("--step-seconds", type=float, default=0.07, help="what speed found")
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--profile", action="store_true", help="of speed: where the time goes")
    parser.add_argument("--loud", action="store_true", help="let the runs say what they do")
    options = parser.parse_args()
    if options.what == "speed":
        options.presets = options.presets or ["seed", "full"]
    options.out.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    found = {"speed": speed, "reference": reference, "wikitext": wikitext}[options.what](options)
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "processor"
    found["torch"], found["took_s"] = torch.__version__, time.perf_counter() - begun
    path = options.out / f"{options.what}.summary.json"
    path.write_text(json.dumps(found, indent=1, default=str))
    print(f"{path}: {found['took_s']:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
