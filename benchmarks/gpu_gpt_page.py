"""The pages about gpt on a CUDA device, from what gpu_gpt.py wrote.

    python benchmarks/gpu_gpt_page.py --runs FOLDER --profile FILE --machine WORDS --date DATE
        [--note TEXT ...]

FOLDER holds speed.summary.json, reference.summary.json, reference.metrics.jsonl and
reference.samples.txt; FILE is a speed.summary.json of a call with --profile. Writes
benchmarks/results/gpt_device.md and gpt_device.json (all of it but the texts), the curve as
docs/recipes/pictures/gpt-reference.png and the ten texts, as they are, as docs/recipes/gpt-samples.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import machine

HERE = Path(__file__).resolve().parent
RECIPES = HERE.parent / "docs" / "recipes"
BATCH, CONTEXT, PLAN = 192, 512, 60_000
PEAK, MEMORY = 989.4, 4.8  # TFLOP/s in bf16 and TB/s of an H200, as published
A100 = {"40 GB": (312.0, 1.555), "80 GB": (312.0, 2.039)}
BOUND = ("products", "attention")  # kinds of kernels that arithmetic bounds; memory bounds the rest
KINDS = {
    "products": "matrix products", "attention": "attention, forward and backward",
    "compiled": "what the compiler fused: norms, GELU or SwiGLU, casts, residuals",
    "other": "gradient of the embedding and other sums", "loss": "softmax and loss",
    "optimiser": "optimiser", "copies": "copies",
}  # fmt: skip


def speed(found: dict[str, Any]) -> list[str]:
    """Return the table of both presets and the goals."""
    rows = [
        "| | parameters | ms a step | tokens/s | of the bf16 peak | most memory | 60,000 steps | first step after |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in ("seed", "full"):
        one = found[name]
        rows.append(
            f"| `{name}` | {one['parameters'] / 1e6:.1f} M | {one['ms_a_step']:.1f} | "
            f"{one['tokens_per_s'] / 1e6:.3f} M | {100 * one['mfu']:.1f} % | {one['peak_gb']:.1f} GB | "
            f"{one['hours_of_the_plan']:.3f} h | {one['first_step_s']:.0f} s |"
        )
    seed = found["seed"]
    return [
        *rows, "",
        machine.goal("60,000 steps of `seed`", seed["hours_of_the_plan"], 1.0, least=False, unit="h"),
        machine.goal("share of the bf16 peak, `seed`", 100 * seed["mfu"], 45, unit="%"),
    ]  # fmt: skip


def parts(profile: dict[str, Any]) -> list[str]:
    """Return where a step's time goes, and what that says about the goal."""
    seed, full = profile["seed"], profile["full"]
    rows = ["| ms a step | `seed` | `full` |", "|---|---:|---:|"]
    for kind, words in KINDS.items():
        rows.append(f"| {words} | {seed['kernels'][kind]:.1f} | {full['kernels'][kind]:.1f} |")
    sums = [sum(x["kernels"].values()) for x in (seed, full)]
    whole = [x["ms_a_step"] for x in (seed, full)]
    rows.append(f"| all kernels | {sums[0]:.1f} | {sums[1]:.1f} |")
    rows.append(f"| the step | {whole[0]:.1f} | {whole[1]:.1f} |")
    rows.append(
        f"| share of the time in which a kernel runs | {100 * sums[0] / whole[0]:.0f} % | "
        f"{100 * sums[1] / whole[1]:.0f} % |"
    )
    work = seed["tflops"] * whole[0] / 1e3  # TFLOP a step
    bound = sum(seed["kernels"][k] for k in BOUND)
    inside = 6 * 8 * 512 * CONTEXT * BATCH * CONTEXT / 1e12  # attention's own, causal half
    rate = (work - inside) / seed["kernels"]["products"] * 1e3
    ordered, free = profile["attention"]["ordered"], profile["attention"]["as it comes"]
    wanted = work / (0.45 * PEAK) * 1e3
    return [
        *rows, "",
        f"Why 45 % is missed: a step of `seed` is {work:.2f} TFLOP, which at 45 % of the peak would take "
        f"{wanted:.1f} ms. Products and attention alone take {bound:.1f} ms, so {wanted - bound:.1f} ms would "
        f"be left for all else, which takes {sums[0] - bound:.1f} ms: at a width of 512 a layer reads and writes "
        f"much for what it computes, and these kernels are bound by memory. Products run at {rate:.0f} TFLOP/s. "
        f"Attention's sums have an order, so that a resume can be proven: {ordered:.2f} ms a layer, timed by "
        f"itself, against {free:.2f} as it comes.",
    ]  # fmt: skip


def older(profile: dict[str, Any]) -> list[str]:
    """Return what an A100 would take: arithmetic from the profile, not a measurement."""
    lines = []
    for size, (peak, memory) in A100.items():
        words = []
        for name in ("seed", "full"):
            kernels = profile[name]["kernels"]
            bound = sum(kernels[k] for k in BOUND)
            rest = sum(kernels.values()) - bound
            step = bound * PEAK / peak + rest * MEMORY / memory
            words.append(
                f"`{name}` {bound:.1f} x {PEAK / peak:.2f} + {rest:.1f} x {MEMORY / memory:.2f} = "
                f"{step:.0f} ms a step, {PLAN * step / 3.6e6:.1f} h for 60,000"
            )
        lines.append(f"- A100, {size} ({peak:g} TFLOP/s, {memory:g} TB/s): {'; '.join(words)}")
    return lines


def learned(run: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """Return what the run of `full` came to, its data, and the passes after which it overfits."""
    data, scores = run["data"], run["scores"]
    step = run["best"]["main"][0]
    epochs = step * BATCH * CONTEXT / data["train"]["tokens"]
    near = [r["loss"] for r in rows if r["kind"] == "train" and abs(r["step"] - step) <= 10]
    late = [r["loss"] for r in rows if r["kind"] == "train"][-1]
    last = run["curve"][-1]
    return [
        f"Corpus `reference`: {data['train']['documents']:,} documents, {data['train']['bytes'] / 1e6:.1f} MB, "
        f"{data['train']['tokens'] / 1e6:.2f} M tokens to train on, {data['val']['documents']:,} documents, "
        f"{data['val']['bytes'] / 1e3:.0f} kB, {data['val']['tokens'] / 1e3:.0f} k tokens held out; a vocabulary of "
        f"{data['vocab_size']:,}. {run['parameters'] / 1e6:.1f} M parameters, dropout {run['given']['dropout']:g}, "
        f"patience 4, planned {run['given']['max_steps']} steps.",
        "",
        f"- best: {scores['val_loss']:.3f} nats a token = {scores['val_bits_per_byte']:.3f} bits a byte at step {step}, "
        f"after {step * BATCH * CONTEXT / 1e6:.1f} M tokens ({epochs:.1f} passes); {100 * scores['top1']:.1f} % of "
        f"tokens were the likeliest, {100 * scores['top5']:.1f} % among five",
        f"- stopped at step {last[0]}, when four validations had not been better ({last[1]:.3f})",
        f"- loss on what is trained: {sum(near) / len(near):.2f} near the best step, {late:.2f} at the end: with "
        "dropout; from then on it learns the text by heart",
        f"- {run['seconds_training']:.0f} s of steps, {run['seconds']:.0f} s with the start; "
        f"{run['ms_a_step']:.0f} ms a step, since so short a run is not compiled; {run['peak_gb']:.1f} GB",
        "",
        "![Loss of `full` on `reference`](../../docs/recipes/pictures/gpt-reference.png)",
        "",
        "The loss on what is trained falls at the beginning of each pass over the text (74 steps): it has been "
        "seen before.",
        "",
        "Ten texts, as they came: [gpt-samples](../../docs/recipes/gpt-samples.md).",
    ]


def curve(rows: list[dict[str, Any]], best: int, path: Path) -> None:
    """Draw both losses by passes through the text's steps."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(8, 4.2), layout="constrained")
    axes = canvas.add_subplot()
    for kind, name, label, hue in (
        ("train", "loss", "on what is trained, with dropout", "#8aa4bf"),
        ("eval", "val_loss", "held out", "#b3541e"),
    ):
        points = [(r["step"], r[name]) for r in rows if r["kind"] == kind]
        axes.plot(*zip(*points, strict=True), color=hue, label=label, linewidth=1.8)
    low = next(r["val_loss"] for r in rows if r["kind"] == "eval" and r["step"] == best)
    axes.plot([best], [low], "o", color="#b3541e")
    axes.annotate(
        f"best {low:.3f}, step {best}",
        (best, low),
        (0, 14),
        textcoords="offset points",
        ha="center",
    )
    axes.set_xlabel("steps of 192 x 512 tokens")
    axes.set_ylabel("nats a token (vocabulary of 8,192)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    canvas.savefig(path, dpi=110)


def texts(samples: str, scores: dict[str, float], about: str) -> str:
    """Return the page of samples: what the file holds, unchanged, in a block."""
    first, _, rest = samples.partition("\n\n")
    return (
        "# Ten texts of gpt\n\n"
        f"Written by `full` after its training on `reference` ({scores['val_loss']:.3f} nats a token of 8,192, "
        f"{scores['val_bits_per_byte']:.3f} bits a byte): seeds 1 to 10, two of each beginning, none chosen "
        f"and none left out ({first}).\n{about}\n\n"
        "It has the form of an article of an encyclopedia or of an entry of a dictionary, and sentences "
        "that hang together; what they say is not true. 7 M tokens of text are few.\n\n"
        f"```text\n{rest.rstrip()}\n```\n"
    )


def main() -> None:
    """Read the records and write the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", required=True, type=Path)
    parser.add_argument("--profile", required=True, type=Path)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--date", required=True)
    parser.add_argument("--note", nargs="+", default=[])
    asked = parser.parse_args()
    found = json.loads((asked.runs / "speed.summary.json").read_text())
    run = json.loads((asked.runs / "reference.summary.json").read_text())["reference"]
    profile = json.loads(asked.profile.read_text())
    lines = (asked.runs / "reference.metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    page = ["# gpt on a CUDA device", "", f"{asked.date}: {asked.machine}.", "", "## Speed at 192 x 512 tokens", ""]  # fmt: skip
    page += ["`python benchmarks/gpu_gpt.py speed --text wikitext2.train.shuffled.txt`", ""]
    page += [*speed(found), "", "## Where the time goes", ""]
    page += ["The same with `--profile`, an earlier call the same day; kernels of three steps:", ""]
    page += [*parts(profile), "", *(f"{x}\n" for x in asked.note), "## What an A100 would take", ""]
    page += [
        "An estimate, not measured: kernels that arithmetic bounds (products, attention) scaled by the "
        "published peaks, the others by the published speeds of memory, the processor never waited for.",
        "", *older(profile), "", "## `full` on `reference`", "",
        "`python benchmarks/gpu_gpt.py reference --text reference.txt`", "", *learned(run, rows),
    ]  # fmt: skip
    (HERE / "results" / "gpt_device.md").write_text("\n".join(page) + "\n", encoding="utf-8")
    run["given"]["path"] = run["data"]["where"] = Path(run["given"]["path"]).name
    kept = {"speed": found, "profile": profile, "reference": run, "rows": rows}
    (HERE / "results" / "gpt_device.json").write_text(json.dumps(kept, indent=1) + "\n")
    curve(rows, run["best"]["main"][0], RECIPES / "pictures" / "gpt-reference.png")
    samples = (asked.runs / "reference.samples.txt").read_text()
    about = f"{asked.date}, {asked.machine}; `python benchmarks/gpu_gpt.py reference --text reference.txt`."
    (RECIPES / "gpt-samples.md").write_text(texts(samples, run["scores"], about), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
