"""Writing speed at one text: ours, transformers with its cache, and llama.cpp, on the same weights.

    python benchmarks/generation.py [--threads 1] [--rounds 3] [--tokens 128]

A model of the size of the gpt recipe's `full`, with random weights, those of its layers three times
as large as usual so that hardly a token comes twice: speed does not depend on them, and that two
sides write the same says more. Each side runs in a process of its own, side after side and round after round. With
one thread processor time counts, with more the time on the wall. The first line is the bound: every
weight is read once for a token, and added up, and nothing else. Writes
benchmarks/results/generation.md, for several threads generation_2.md and so on. A side that is not
installed is named as skipped.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import machine

BOUND = "reading the weights, fp32"
SIDES = {
    BOUND: ("bound", "fp32"),
    "transformers, fp32": ("transformers", "fp32"),
    "Surefoot, fp32": ("native", "fp32"),
    "llama.cpp, f32": ("llama_cpp", "fp32"),
    "Surefoot, bf16": ("native", "bf16"),
    "Surefoot, fp16": ("native", "fp16"),
    "Surefoot, int8": ("native", "int8"),
    "llama.cpp, q8_0": ("llama_cpp", "int8"),
    "Surefoot, int4": ("native", "int4"),
    "llama.cpp, q4_0": ("llama_cpp", "int4"),
}
PROMPT, WORDS = 16, 8192


def child(kind: str, dtype: str, threads: int, count: int) -> None:
    """Measure one side in this process and print what was found as JSON."""
    import torch

    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    tokens = torch.randint(0, WORDS, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as place:
        write = writer(kind, dtype, tokens, count, Path(place))
        write()
        took = []
        for _ in range(3):
            begun = clock()
            ids = write()
            took.append(clock() - begun)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"speed": count / min(took), "ids": ids, "resident": resident}))


def writer(kind: str, dtype: str, tokens, count: int, place: Path) -> Callable[[], list[int]]:
    """Return what writes `count` tokens greedily."""
    import torch

    from surefoot.config.model import GPTConfig
    from surefoot.engine.kit.sample import generate
    from surefoot.engine.load import narrow
    from surefoot.formats import llama
    from surefoot.nn.gpt import GPT
    from surefoot.nn.one_text import side_by_side

    config = GPTConfig(d_model=512, num_layers=8, num_heads=8, context=512, zero_init=False)
    model = GPT(config, WORDS).eval()
    with torch.no_grad():
        for weight in model.blocks.parameters():
            weight.mul_(3.0 if weight.dim() > 1 else 1.0)
    if kind == "bound":
        side_by_side(model)
        weights = [p.detach() for p in model.parameters() if p.dim() > 1]
        return lambda: [int(sum(w.sum() for w in weights).isnan()) for _ in range(count)]
    if kind == "transformers":
        import transformers

        from surefoot.nn.public import public_config, public_weights

        shape = transformers.AutoConfig.for_model(**public_config(config, WORDS, None))
        theirs = transformers.AutoModelForCausalLM.from_config(shape).eval()
        theirs.load_state_dict(public_weights(model), strict=False)
        model.to("meta")
        how = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        return lambda: theirs.generate(tokens, pad_token_id=0, **how)[0, PROMPT:].tolist()
    if kind == "native":
        narrow({"main": model}, dtype)
        return lambda: [int(t) for t in generate(model, tokens, count, temperature=0)]
    from surefoot.formats import gguf_file

    gguf_file.write(model, vocabulary(), place / "model.gguf", llama.QUANT_OF[dtype], {})
    model.to("meta")
    computer = llama.LlamaCpp(place / "model.gguf", config.context)
    torch.set_grad_enabled(False)
    return lambda: [int(t) for t in generate(computer, tokens, count, temperature=0)]


def vocabulary():
    """Return any BPE of the right size: a made text has enough pairs of letters."""
    from surefoot.data.bpe import train_bpe

    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [a + b + c + d for a in letters for b in letters[:20] for c in letters for d in "aeio"]
    return train_bpe([" ".join(pieces)] * 2, WORDS)


def measured(side: str, options: argparse.Namespace) -> dict | None:
    kind, dtype = SIDES[side]
    if kind not in ("native", "bound") and importlib.util.find_spec(kind) is None:
        return None
    command = [sys.executable, "-W", "ignore", __file__, "--child", kind, dtype]
    more = ["--threads", str(options.threads), "--tokens", str(options.tokens)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    out = subprocess.run(
        command + more, check=True, capture_output=True, text=True, env=environment
    )
    return json.loads(out.stdout.splitlines()[-1])


def main() -> None:
    own = argparse.ArgumentParser()
    own.add_argument("--threads", type=int, default=1)
    own.add_argument("--rounds", type=int, default=3)
    own.add_argument("--tokens", type=int, default=128)
    own.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = own.parse_args()
    if options.child:
        kind, dtype = options.child
        child(kind, dtype, options.threads, options.tokens)
        return
    found: dict[str, list[dict]] = {}
    for _ in range(options.rounds):
        for side in SIDES:
            if one := measured(side, options):
                found.setdefault(side, []).append(one)
                print(side, round(one["speed"]), flush=True)
    speed = {s: statistics.median(x["speed"] for x in runs) for s, runs in found.items()}
    base = speed.get("transformers, fp32")
    ids = found["Surefoot, fp32"][0]["ids"]
    assert len(set(ids)) > len(ids) // 2, "a text that repeats itself would compare nothing"
    lines = [
        "| | tokens/s | x transformers | resident | greedy tokens |",
        "|---|---:|---:|---:|---|",
    ]
    for side, runs in found.items():
        same = next((i for i, (a, b) in enumerate(zip(runs[0]["ids"], ids)) if a != b), None)
        told = "the same" if same is None else f"the same up to token {same}"
        told = "-" if side == BOUND else told
        ratio = f"{speed[side] / base:.2f}" if base else "-"
        resident = min(r["resident"] for r in runs) / 1e6
        lines.append(f"| {side} | {speed[side]:.0f} | {ratio} | {resident:.0f} MB | {told} |")
    skipped = [side for side in SIDES if side not in found]
    if skipped:
        lines.append(f"\nNot installed: {', '.join(skipped)}.")
    of = lambda side, other: speed.get(side, 0.0) / speed.get(other, float("nan"))
    goals = [
        ("fp32 against transformers", of("Surefoot, fp32", "transformers, fp32"), 3.0, 2.3),
        ("fp32 against llama.cpp", of("Surefoot, fp32", "llama.cpp, f32"), 1.0, 0.88),
        ("int8 against transformers", of("Surefoot, int8", "transformers, fp32"), 3.0, None),
    ]
    lines += ["", *(machine.goal(what, x, least, floor=low) for what, x, least, low in goals)]
    if of(BOUND, "transformers, fp32") < 3:
        lines.append(
            "\nThree times transformers in fp32 would be more than this memory gives: see the first line."
        )
    threads = "one thread" if options.threads == 1 else f"{options.threads} threads"
    title = f"Writing: 29.5 M parameters, {PROMPT} + {options.tokens} tokens, one text, {threads}"
    name = "generation" if options.threads == 1 else f"generation_{options.threads}"
    machine.write(name, machine.heading(title, "benchmarks/generation.py", __doc__) + lines)


if __name__ == "__main__":
    main()
