"""What each choice of the gpt recipe is worth: loss for tokens and for time, at a small scale.

    python benchmarks/gpt_quality.py --train TEXT --valid TEXT [--suites clock goal choices]
        [--device cuda --workers 12] [--seeds 3] [--tokens 1024000] [--budget SECONDS]

Four layers, four heads, 256 wide, 8 windows of 256 tokens, a vocabulary of 2,048. `goal`: the
classic recipe (`seed`: GPT-2 layout, AdamW, cosine) is tried at five learning rates with one seed,
and the best is run again with the others; the default is run with the same tokens and with fewer,
each a run of its own with its own schedule. `choices`: one choice of the default is changed at a
time, at half of the tokens, for the same tokens and, where `clock` found its step dearer or cheaper, for the same time.
`clock`: processor milliseconds of a step on one thread of a processor, each side in turn; other
suites read what it wrote last. `rates` looks for the default's learning rates, at a quarter of
the tokens. Writes benchmarks/results/gpt_quality.md and gpt_quality.json.

On a processor all runs take --workers processes of one thread. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine

BATCH, CONTEXT = 8, 256
SIZE = {
    "vocab_size": 2048, "d_model": 256, "num_layers": 4, "num_heads": 4, "context": CONTEXT,
    "batch_size": BATCH,
}  # fmt: skip
RATES = (1e-3, 1.4e-3, 2e-3, 2.8e-3, 4e-3)
HALF = 0.5  # of the tokens, for choices
SHARES = (0.5, 0.3, 0.25, 0.22, 0.19)
SEED: dict[str, Any] = {"preset": "seed", "d_ff": 1024}
CHOICES: dict[str, dict[str, Any]] = {
    "AdamW instead of Muon": {"optim.kind": "adamw", "optim.lr": 3e-3},
    "cosine": {"schedule.kind": "cosine"},
    "decay over the last 20 %, not 90 %": {"decay_fraction": 0.2},
    "momentum of Muon 0.9, not 0.95": {"optim.momentum": 0.9},
    "tied head": {"tie_embeddings": True},
    "SwiGLU without QK-norm (Llama)": {"feed_forward": "swiglu", "qk_norm": False},
    "squared ReLU without QK-norm (Arcee)": {"feed_forward": "relu2", "qk_norm": False},
    "squared ReLU with QK-norm": {"feed_forward": "relu2", "qk_norm": True},
    "soft cap of 15": {"softcap": 15.0},
    "value embeddings": {"value_embeddings": True},
    "layers do not begin with zeros": {"zero_init": False},
    "batch warm-up over 30 %": {"batch_warmup": 0.3},
    "context warm-up over 30 %": {"context_warmup": 0.3},
    "average of weights (0.98)": {"ema": 0.98},
    "document masks": {"document_masks": True},
    "squared ReLU, QK-norm, soft cap, values": {
        "feed_forward": "relu2", "qk_norm": True, "softcap": 15.0, "value_embeddings": True,
    },
}  # fmt: skip
SAME = (  # the work of a step is that of the default, so their times are pooled
    "default", "cosine", "decay over the last 20 %, not 90 %", "momentum of Muon 0.9, not 0.95",
    "layers do not begin with zeros", "batch warm-up over 30 %", "context warm-up over 30 %",
)  # fmt: skip
OF_STEPS = ("batch_warmup", "context_warmup")  # given as a share of the run


@dataclass(frozen=True)
class Run:
    """One run: `share` is how many of the tokens it takes."""

    label: str
    seed: int = 1
    share: float = 1.0
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """What came out of it: nats a token, bits a byte, seconds and tokens."""

    label: str
    seed: int
    share: float
    loss: float
    bits: float
    seconds: float
    tokens: int


def asked(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of `run`; nothing is probed, so that runs are comparable."""
    steps = max(8, round(options.tokens * run.share / (BATCH * CONTEXT)))
    settings = {k: round(v * steps) if k in OF_STEPS else v for k, v in run.settings.items()}
    if settings.get("preset") == "seed":
        settings["schedule.decay_steps"] = round(0.9 * steps)
        settings["min_lr"] = settings["optim.lr"] / 10
    attention = "sdpa" if options.device == "cuda" else "matmul"
    return {
        **SIZE, "path": options.train, "val_path": options.valid, "seed": run.seed,
        "max_steps": steps, "warmup_steps": steps // 10, "device": options.device, "threads": 1,
        "precision": "bf16", "compile": "off", "micro_batch_size": BATCH, "val_batch": 32,
        "ops.attention": attention, "ops.cross_entropy": "reference", "matmul": "default",
        "validate_every": steps, "sample_every": 0, "save_every": 0, "log_every": 100,
        "prefetch_threads": 0, "track.report": False, "track.tensorboard": False,
        "track.life_check": False, **settings,
    }  # fmt: skip


def train(run: Run, options: argparse.Namespace) -> Outcome:
    """Return what came out of one run, in this process."""
    import surefoot

    with tempfile.TemporaryDirectory() as folder:
        clock = time.process_time if options.device == "cpu" else time.perf_counter
        begun = clock()
        given = asked(run, options)
        result = surefoot.train("gpt", runs=folder, quiet=True, **given)
        seconds = clock() - begun
        rows = (Path(result.folder) / "metrics.jsonl").read_text().splitlines()
    last = [row for row in map(json.loads, rows) if "val_loss" in row][-1]
    tokens = given["max_steps"] * BATCH * CONTEXT
    return Outcome(
        run.label, run.seed, run.share, last["val_loss"], last["val_bits_per_byte"], seconds, tokens
    )


def _enter() -> None:
    """Prepare a worker: one thread, and no words of libraries."""
    os.environ["OMP_NUM_THREADS"] = "1"


def play(runs: Iterable[Run], options: argparse.Namespace, until: float) -> list[Outcome]:
    """Return the outcomes of `runs`, in several processes; those that begin after `until` are left."""
    found: list[Outcome] = []
    waiting = list(runs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, context, _enter) as pool:
        going = {pool.submit(_unless_late, run, options, until): run for run in waiting}
        for done in as_completed(going):
            run = going[done]
            try:
                one = done.result()
            except Exception as error:  # one that failed must not cost the others
                print(f"{run.label} seed {run.seed}: {type(error).__name__}: {error}", flush=True)
                continue
            if one is None:
                continue
            found.append(one)
            print(
                f"{one.label} | seed {one.seed} | {one.tokens / 1e6:.2f} M | {one.loss:.4f} | "
                f"{one.bits:.4f} | {one.seconds:.0f} s",
                flush=True,
            )
    return found


def _unless_late(run: Run, options: argparse.Namespace, until: float) -> Outcome | None:
    return None if time.time() > until else train(run, options)


def clock(options: argparse.Namespace) -> dict[str, float]:
    """Return processor ms of a step on one thread for each choice, the default and `seed`.

    Every round takes each side once; the medians of the steps after the first few count.
    """
    from surefoot.engine.learner import Learner

    sides = {"seed": {**SEED, "optim.lr": 2e-3}, "default": {}, **CHOICES}
    stamps: list[float] = []
    update = Learner.update

    def stamped(learner: Learner) -> float:
        rate = update(learner)
        stamps.append(time.process_time())
        return rate

    Learner.update = stamped  # type: ignore[method-assign]
    short = argparse.Namespace(**{**vars(options), "device": "cpu", "tokens": 12 * BATCH * CONTEXT})
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, settings in sides.items():
            stamps.clear()
            # Growing batches and contexts make some steps cheaper and leave the rest as they are.
            fixed = {k: v for k, v in settings.items() if k not in OF_STEPS}
            train(Run(name, settings=fixed), short)
            taken[name] += [(b - a) * 1e3 for a, b in itertools.pairwise(stamps[3:])]
        print({name: round(statistics.median(x)) for name, x in taken.items()}, flush=True)
    Learner.update = update  # type: ignore[method-assign]
    return {name: statistics.median(x) for name, x in taken.items()}


def goal_runs(seeds: int) -> list[Run]:
    """Return the first half of `goal`: everything but the classic recipe's other seeds."""
    runs = [Run(f"seed {lr:g}", 1, 1.0, {**SEED, "optim.lr": lr}) for lr in RATES]
    numbers = range(1, seeds + 1)
    runs += [Run("default", s) for s in numbers]
    return runs + [Run(f"default x {share:g}", s, share) for share in SHARES for s in numbers]


def choice_runs(seeds: int, times: dict[str, float]) -> list[Run]:
    """Return each choice with the tokens, and with the time, of the default."""
    runs = []
    for seed in range(1, seeds + 1):
        for name, settings in CHOICES.items():
            runs.append(Run(name, seed, HALF, settings))
            share = times["default"] / times[name] if times else 1.0
            if abs(share - 1) > 0.02:
                runs.append(Run(f"{name} [time]", seed, HALF * share, settings))
    return runs


def rate_runs() -> list[Run]:
    """Return the default at a quarter of the tokens, with other learning rates."""
    changes: list[dict[str, Any]] = [
        {"optim.muon_lr": muon, "optim.lr": lr}
        for muon in (0.005, 0.01, 0.02)
        for lr in (0.01, 0.02, 0.03)
    ]
    changes += json.loads(os.environ.get("RATES", "[]"))
    return [Run(json.dumps(c), 1, 0.25, c) for c in changes]


def mean(found: Iterable[Outcome]) -> float:
    return statistics.mean(x.loss for x in found)


def table(found: list[Outcome], times: dict[str, float]) -> list[str]:
    """Return a row for each label: means over seeds, their spread, and the distance to the default."""
    base = [x for x in found if x.label == f"default x {HALF:g}"]
    rows = [
        "| | tokens | nats a token | between seeds | bits a byte | ms a step | against the default at half, same seeds |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for label in dict.fromkeys(x.label for x in found):
        some = [x for x in found if x.label == label]
        losses = [x.loss for x in some]
        spread = f"{max(losses) - min(losses):.3f}" if len(losses) > 1 else "-"
        name = label.removesuffix(" [time]")
        same = [x for x in base if x.seed in {y.seed for y in some}]  # seeds, not all of them
        away = f"{mean(some) - mean(same):+.3f}" if same and name in CHOICES else ""
        ms = times.get("seed" if name.startswith("seed") else name.partition(" x ")[0])
        shown = f"{name}, the same time" if name != label else name
        rows.append(
            f"| {shown} | {some[0].tokens / 1e6:.2f} M | {mean(some):.3f} | {spread} | "
            f"{statistics.mean(x.bits for x in some):.3f} | {f'{ms:.0f}' if ms else '-'} | {away} |"
        )
    return rows


def judge(found: list[Outcome], times: dict[str, float]) -> list[str]:
    """Return which goals are reached by the fewest tokens that come to the classic loss."""
    classic = {
        x.label: [y for y in found if y.label == x.label]
        for x in found
        if x.label.startswith("seed")
    }
    if not classic:
        return []
    # The rate that was run again with other seeds: one seed of another rate may be lucky.
    best = min(classic, key=lambda label: (-len(classic[label]), mean(classic[label])))
    modern = {
        x.share: [y for y in found if y.label == x.label]
        for x in found
        if x.label.startswith("default")
    }
    enough = [share for share, runs in modern.items() if mean(runs) <= mean(classic[best])]
    told = [f"The classic recipe's best is {mean(classic[best]):.3f} ({best}).", ""]
    if not enough:
        return [*told, "- the default did not come to the loss of the classic recipe"]
    told.append(
        machine.goal("fewer tokens to the classic recipe's loss", 1 / min(enough), 4.0, floor=3.9)
    )
    exact = crossing(modern, mean(classic[best]))
    if exact:
        told.append(f"- between the runs, the lines cross at {1 / exact:.2f} x fewer tokens")
    if times:
        ratio = times["seed"] / times["default"]
        told.append(machine.goal("less time to it", ratio / min(enough), 3.0, floor=2.6))
        if exact:
            told.append(f"- between the runs: {ratio / exact:.2f} x less time")
    return told


def crossing(modern: dict[float, list[Outcome]], wanted: float) -> float | None:
    """Return the share of tokens at which the default's losses, joined by lines, reach `wanted`."""
    points = sorted((share, mean(runs)) for share, runs in modern.items())
    for (low, above), (high, below) in itertools.pairwise(points):
        if below <= wanted < above:
            return low + (high - low) * (above - wanted) / (above - below)
    return None


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True, help="text to train on")
    parser.add_argument("--valid", required=True, help="text to validate on")
    parser.add_argument(
        "--suites",
        nargs="+",
        default=["clock", "goal", "choices"],
        choices=["clock", "goal", "choices", "rates"],
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3, help="of clock")
    parser.add_argument("--tokens", type=int, default=500 * BATCH * CONTEXT)
    parser.add_argument(
        "--budget", type=float, default=1e9, help="seconds after which no run begins"
    )
    parser.add_argument("--out", type=Path, help="another folder for the results")
    options = parser.parse_args()
    out = options.out or Path(__file__).resolve().parent / "results"
    until = time.time() + options.budget
    read_once(options)
    kept, before = out / "gpt_quality.json", Path(__file__).parent / "results/gpt_quality.json"
    known = next((json.loads(p.read_text()) for p in (kept, before) if p.exists()), {})
    times = known.get("clock", {}) if "clock" not in options.suites else clock(options)
    if times:
        times |= dict.fromkeys(SAME, statistics.median(times[name] for name in SAME))
    found: list[Outcome] = []
    if "rates" in options.suites:
        found += sorted(play(rate_runs(), options, until), key=lambda x: x.loss)
    first = goal_runs(options.seeds) if "goal" in options.suites else []
    if "choices" in options.suites:
        half = [Run(f"default x {HALF:g}", s, HALF) for s in range(1, options.seeds + 1)]
        first += [*(half if not first else []), *choice_runs(options.seeds, times)]
    found += play(first, options, until)
    swept = [x for x in found if x.label.startswith("seed")]
    if swept:
        best = min(swept, key=lambda x: x.loss)
        settings = {**SEED, "optim.lr": float(best.label.split()[1])}
        again = [Run(best.label, s, 1.0, settings) for s in range(2, options.seeds + 1)]
        found += play(again, options, until)
    order = {run.label: i for i, run in enumerate(first)}
    found.sort(key=lambda x: (order.get(x.label, -1), x.seed))
    out.mkdir(parents=True, exist_ok=True)
    page = machine.heading("What each choice of gpt is worth", "benchmarks/gpt_quality.py", __doc__)
    page += [*table(found, times), "", *judge(found, times)]
    text = "\n".join(page) + "\n"
    (out / "gpt_quality.md").write_text(text, encoding="utf-8")
    kept.write_text(json.dumps({"clock": times, "runs": [vars(x) for x in found]}, indent=1))
    print(text)


def read_once(options: argparse.Namespace) -> None:
    """Make the vocabulary and the tokens before the workers ask for them."""
    from surefoot.data.collection import collect

    paths = Path(options.train), "", Path(options.valid)
    collect(paths[0], paths[1], val_path=paths[2], vocab_size=SIZE["vocab_size"])


if __name__ == "__main__":
    sys.exit(main())
