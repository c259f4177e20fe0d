"""What each choice of the gpt recipe is worth: loss for tokens and for time, at a small scale.

    python benchmarks/gpt_quality.py --train TEXT --valid TEXT [--seeds 3] [--steps 400]

Two layers, two heads, 64 wide, 16 windows of 64 tokens, a vocabulary of 1,024. The classic
recipe (`seed`: GPT-2 layout, AdamW, cosine) is tried at five learning rates with one seed, and the
best is run again with the others. The default is run with the same tokens and with fewer, each a
run of its own with its own schedule; it is not tuned. Then one choice at a time is changed. All
runs are in one process on one thread; seconds are their processor time, from the settings to the
last checkpoint. Writes benchmarks/results/gpt_quality.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import machine

import surefoot

TOKENS = 16 * 64
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
SHARES = (0.5, 0.35, 0.25)
CHOICES: dict[str, dict[str, Any]] = {
    "AdamW instead of Muon": {"optim.kind": "adamw", "optim.lr": 4e-3},
    "no QK-norm (Llama)": {"qk_norm": False},
    "squared ReLU": {"feed_forward": "relu2"},
    "squared ReLU, no QK-norm (Arcee)": {"feed_forward": "relu2", "qk_norm": False},
    "untied head": {"tie_embeddings": False},
    "soft cap of 15": {"softcap": 15.0},
    "value embeddings": {"value_embeddings": True},
    "layers begin with zeros": {"zero_init": True},
    "document masks": {"document_masks": True},
    "context warm-up": {"context_warmup": 0.3},
    "cosine": {"schedule.kind": "cosine"},
    "average of weights (0.98)": {"ema": 0.98},
    "squared ReLU, untied, soft cap, zeros, values": {
        "feed_forward": "relu2", "tie_embeddings": False, "softcap": 15.0, "zero_init": True,
        "value_embeddings": True,
    },
}  # fmt: skip


Run = tuple[float, float, float]  # nats a token, bits a byte, processor seconds


def run(options: argparse.Namespace, seed: int, share: float = 1.0, **settings: Any) -> Run:
    """Return what came out of one run."""
    steps = round(options.steps * share)
    if "context_warmup" in settings:
        settings["context_warmup"] = round(steps * settings["context_warmup"])
    asked = {
        "path": options.train or None, "val_path": options.valid or None, "vocab_size": 1024, "d_model": 64,
        "num_layers": 2, "num_heads": 2, "context": 64, "batch_size": 16, "seed": seed,
        "max_steps": steps, "warmup_steps": steps // 10, "threads": 1, "validate_every": steps,
        "sample_every": 0, "save_every": steps, "compile": "off", "track.report": False,
        "track.tensorboard": False, **settings,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        before = time.process_time()
        result = surefoot.train("gpt", runs=folder, quiet=True, **asked)
        seconds = time.process_time() - before
        rows = (Path(result.folder) / "metrics.jsonl").read_text().splitlines()
    last = [row for row in map(json.loads, rows) if "val_loss" in row][-1]
    loss, bits = last["val_loss"], last["val_bits_per_byte"]
    print(f"{settings} seed {seed} steps {steps}: {loss:.4f} {seconds:.0f} s", flush=True)
    return loss, bits, seconds


def row(name: str, tokens: float, found: list[Run], base: list[Run] | None = None) -> str:
    """Return a row of the table: means over seeds, the spread, and the distance from `base`."""
    losses = [x[0] for x in found]
    spread = f"{max(losses) - min(losses):.3f}" if len(losses) > 1 else "-"
    away = f"{statistics.mean(losses) - mean(base):+.3f}" if base else ""
    seconds = statistics.median(x[2] for x in found)
    bits = statistics.mean(x[1] for x in found)
    return (
        f"| {name} | {tokens / 1e6:.2f} M | {statistics.mean(losses):.3f} | {spread} | {bits:.3f} "
        f"| {seconds:.0f} | {away} |"
    )


def mean(found: list[Run]) -> float:
    return statistics.mean(x[0] for x in found)


def judge(classic: list[Run], modern: dict[float, list[Run]]) -> list[str]:
    """Return which goals are reached by the fewest tokens that come to the classic loss."""
    enough = [share for share, found in modern.items() if mean(found) <= mean(classic)]
    if not enough:
        return ["- the default did not come to the loss of the classic recipe"]
    share = min(enough)
    faster = statistics.median(x[2] for x in classic) / statistics.median(
        x[2] for x in modern[share]
    )
    return [
        machine.goal("fewer tokens to the classic recipe's loss", 1 / share, 4.0),
        machine.goal("less time to it", faster, 3.0),
    ]


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", default="", help="text to train on")
    parser.add_argument("--valid", default="", help="text to validate on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    page = machine.heading("What each choice of gpt is worth", "benchmarks/gpt_quality.py", __doc__)
    page += [
        "| | tokens | nats a token | between seeds | bits a byte | processor s | against the default |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    seeds, tokens = range(1, options.seeds + 1), options.steps * TOKENS
    old = {"preset": "seed", "d_ff": 256, "schedule.decay_steps": round(options.steps * 0.9)}
    swept = {lr: run(options, 1, **old, **{"optim.lr": lr, "min_lr": lr / 10}) for lr in RATES}
    best = min(swept, key=lambda lr: swept[lr][0])
    rate = {"optim.lr": best, "min_lr": best / 10}
    classic = [swept[best], *(run(options, s, **old, **rate) for s in seeds[1:])]
    page += [row(f"`seed`, lr {lr:g}", tokens, [x]) for lr, x in swept.items() if lr != best]
    default = [run(options, s) for s in seeds]
    page.append(row(f"**`seed`, lr {best:g}, the best**", tokens, classic, default))
    page.append(row("**the default**", tokens, default))
    modern = {1.0: default}
    for share in SHARES:
        modern[share] = [run(options, s, share) for s in seeds]
        page.append(row(f"the default, {share:.0%} of it", tokens * share, modern[share], default))
        machine.write("gpt_quality", [*page, "", *judge(classic, modern)])
    for name, settings in CHOICES.items():
        found = [run(options, s, **settings) for s in seeds]
        page.append(row(name, tokens, found, default))
        machine.write("gpt_quality", [*page, "", *judge(classic, modern)])


if __name__ == "__main__":
    main()
