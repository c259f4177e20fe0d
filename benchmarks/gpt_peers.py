"""Training speed of a GPT at the size of the plan, on a processor, against other trainers.

    python benchmarks/gpt_peers.py [--text FILE] [--threads 1] [--rounds 2] [--steps 4] [--sides NAME ...]

Eight layers, eight heads, 512 wide, windows of 512 tokens, four at a time, a vocabulary of 8,192:
29.7 M parameters with a tied head. All sides train the same shapes; each in its own process, side
after side and round after round, at the best setting that its documentation names. Ours is
`surefoot train gpt` with everything on `auto` but the batch: the layout of `seed` (GPT-2, AdamW)
counts, and the default of that size (`full`: Qwen3 layout, Muon) is shown beside it; `lean` passes
one window at a time and makes the loss in pieces, `checkpointing` computes the inside of layers again
and makes the loss in pieces. Memory is judged by the fastest side and by the leanest. Memory includes what Surefoot's checkpoints take,
which the others do not write. With one thread a step's processor time counts, with more its time on
the wall; medians. nanoGPT is written anew here from its description, in few lines: fp32, fused
attention, AdamW, clipping. Utilisation is of 510 GFLOP/s a core in bf16, measured on one such core;
6 operations a weight and token, and causal attention counted half. Writes
benchmarks/results/gpt_peers.md, and gpt_peers_THREADS.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import machine
import numpy as np
import peers

WORDS, FLOOR = 8192, 510e9
LAYERS, HEADS, WIDTH, CONTEXT, BATCH, WARM = 8, 8, 512, 512, 4, 3
GOALS = {  # speed over the best setting of each peer: what is wanted, and what is owed
    "nanoGPT": (4.0, 3.2), "transformers Trainer, bf16": (1.8, 1.5), "LitGPT": (1.5, 1.2),
    "plain loop": (1.2, 1.15), "Lightning": (1.4, None),
}  # fmt: skip
LEAN = {
    "micro_batch_size": 1,
    "ops.cross_entropy": "chunked",
}  # one window at a time, loss in pieces
AGAIN = {
    "memory.checkpointing": True,
    "ops.cross_entropy": "chunked",
}  # layers computed again, loss in pieces
MEMORY = {"nanoGPT": 0.6, "transformers Trainer": 0.45}


def ours(preset: str, compiled: str, **more: Any) -> Callable[..., None]:
    """The whole of `surefoot train gpt`: journal, record, checkpoints; `more` are settings."""

    def run(tokens: Path, size: tuple[int, ...], stamps: peers.Stamps) -> None:
        import torch

        import surefoot
        from surefoot.engine.learner import Learner

        update = Learner.update

        def stamped(learner: Learner) -> float:
            rate = update(learner)
            stamps()
            return rate

        Learner.update = stamped  # type: ignore[method-assign]
        steps = size[5] + size[6]
        text = os.environ["GPT_TEXT"]
        with tempfile.TemporaryDirectory() as folder:
            surefoot.train(
                "gpt", preset=preset, runs=folder, quiet=True, path=text, batch_size=BATCH,
                max_steps=steps, horizon=60_000, threads=torch.get_num_threads(), compile=compiled,
                validate_every=0, sample_every=0, val_ratio=0.0005,
                **{"track.report": False} | more,
            )  # fmt: skip

    return run


def nanogpt(compiled: bool) -> Callable[..., None]:
    """GPT-2 as nanoGPT trains it on a processor: fp32, AdamW with decay for matrices, clipping."""

    def run(tokens: Path, size: tuple[int, ...], stamps: peers.Stamps) -> None:
        import torch
        from torch import nn
        from torch.nn import functional as F

        class Layer(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
                self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
                self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

            def forward(self, x: Any) -> Any:
                b, t, c = x.shape
                parts = self.qkv(self.before(x)).split(c, 2)
                q, k, v = (p.view(b, t, HEADS, c // HEADS).transpose(1, 2) for p in parts)
                seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                x = x + self.out(seen.transpose(1, 2).contiguous().view(b, t, c))
                return x + self.down(F.gelu(self.up(self.after(x))))

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(CONTEXT, WIDTH)
                self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
                self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
                self.apply(self._begin)
                self.head.weight = self.words.weight

            def _begin(self, module: nn.Module) -> None:
                if isinstance(module, nn.Linear | nn.Embedding):
                    nn.init.normal_(module.weight, std=0.02)

            def forward(self, x: Any, y: Any) -> Any:
                h = self.words(x) + self.places(torch.arange(x.size(1)))
                for layer in self.layers:
                    h = layer(h)
                logits = self.head(self.norm(h))
                return F.cross_entropy(logits.view(-1, WORDS), y.view(-1))

        data, model = peers.text(tokens), Model()
        decayed = [p for p in model.parameters() if p.dim() > 1]
        plain = [p for p in model.parameters() if p.dim() < 2]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(groups, 3e-4, betas=(0.9, 0.95))
        forward = torch.compile(model) if compiled else model
        for step in range(size[5] + size[6]):
            x, y = peers.windows(data, CONTEXT, BATCH, step)
            loss = forward(x, y)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            stamps()

    return run


def litgpt(tokens: Path, size: tuple[int, ...], stamps: peers.Stamps) -> None:
    """LitGPT's model in its pretraining loop's form: Fabric, bf16-mixed, compiled, chunked loss."""
    import lightning
    import torch
    from litgpt.model import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    config = Config(
        block_size=CONTEXT, vocab_size=WORDS, padded_vocab_size=WORDS, n_layer=LAYERS,
        n_head=HEADS, n_embd=WIDTH, intermediate_size=4 * WIDTH, rotary_percentage=1.0,
        parallel_residual=False, bias=True,
    )  # fmt: skip
    data = peers.text(tokens)
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    fabric.launch()
    with fabric.init_module(empty_init=False):
        module = GPT(config)
    module = fabric.setup(torch.compile(module))
    optimiser = torch.optim.AdamW(module.parameters(), 3e-4, betas=(0.9, 0.95), fused=True)
    optimiser = fabric.setup_optimizers(optimiser)
    for step in range(size[5] + size[6]):
        x, y = peers.windows(data, CONTEXT, BATCH, step)
        loss = chunked_cross_entropy(module(x), y)
        fabric.backward(loss)
        fabric.clip_gradients(module, optimiser, max_norm=1.0)
        optimiser.step()
        optimiser.zero_grad()
        stamps()


SIDES: dict[str, tuple[str, Callable[..., None]]] = {
    "Surefoot, `seed`, compiled": ("", ours("seed", "on")),
    "Surefoot, `seed`, not compiled": ("", ours("seed", "off")),
    "Surefoot, `seed`, checkpointing": ("", ours("seed", "off", **AGAIN)),
    "Surefoot, `seed`, lean": ("", ours("seed", "off", **LEAN)),
    "Surefoot, `seed`, lean, checkpointing": ("", ours("seed", "off", **(LEAN | AGAIN))),
    "Surefoot, `full`, compiled": ("", ours("full", "on")),
    "plain loop, same model, compiled, bf16, fused": ("", peers.bare),
    "nanoGPT": ("", nanogpt(False)),
    "nanoGPT, compiled": ("", nanogpt(True)),
    "transformers Trainer, fp32": ("transformers", peers.trainer("fp32")),
    "transformers Trainer, bf16": ("transformers", peers.trainer("bf16")),
    "LitGPT, compiled, bf16": ("litgpt", litgpt),
    "Lightning, compiled, bf16": ("lightning", peers.lightning),
}


def child(side: str, tokens: str, options: argparse.Namespace) -> None:
    """Run one side and print what it took."""
    import torch

    torch.set_num_threads(options.threads)
    peers.VOCABULARY = WORDS
    stamps = peers.Stamps()
    SIDES[side][1](
        Path(tokens), (LAYERS, HEADS, WIDTH, CONTEXT, BATCH, options.steps, WARM), stamps
    )
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("RESULT " + json.dumps({**stamps.report(WARM), "held": held}))


def ask(side: str, tokens: Path, options: argparse.Namespace) -> dict[str, float] | str:
    """Return what a child process found, or why it found nothing."""
    needs = SIDES[side][0]
    if needs and importlib.util.find_spec(needs) is None:
        return f"no {needs}"
    more = ["--threads", str(options.threads), "--steps", str(options.steps)]
    command = [sys.executable, "-W", "ignore", __file__, "--child", side, str(tokens), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            found: dict[str, float] = json.loads(line[7:])
            return found
    return (done.stderr.strip().splitlines() or ["nothing"])[-1]


def work() -> float:
    """Return floating-point operations of a step, forward and backward."""
    matrices = LAYERS * 12 * WIDTH**2 + WORDS * WIDTH
    return BATCH * CONTEXT * (6.0 * matrices + 6.0 * LAYERS * WIDTH * CONTEXT)


def measure(tokens: Path, options: argparse.Namespace) -> list[str]:
    """Return the table and which goals are reached."""
    found: dict[str, list[dict[str, float]]] = {}
    why: dict[str, str] = {}
    for number in range(options.rounds):
        for side in SIDES:
            if options.sides and not any(part in side for part in options.sides):
                continue
            if side not in why:
                got = ask(side, tokens, options)
                if isinstance(got, str):
                    why[side] = got
                else:
                    found.setdefault(side, []).append(got)
                print(f"{number + 1}/{options.rounds} {side}: {got}", flush=True)
    clock = "cpu" if options.threads == 1 else "wall"
    took = {side: statistics.median(x[clock] for x in rows) for side, rows in found.items()}
    held = {side: statistics.median(x["held"] for x in rows) for side, rows in found.items()}
    base = min((t for side, t in took.items() if side.startswith("nanoGPT")), default=math.nan)
    kind = "processor" if clock == "cpu" else "wall"
    lines = [f"| | {kind} ms a step | tokens/s | x nanoGPT | of the bf16 floor | peak MB |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for side, ms in took.items():
        share = work() / (ms / 1e3) / (FLOOR * options.threads)
        rate = BATCH * CONTEXT / ms * 1e3
        lines.append(
            f"| {side} | {ms:.0f} | {rate:.0f} | {base / ms:.2f} | {share:.0%} | {held[side]:.0f} |"
        )
    lines += [f"| {side} | skipped: {reason[:120]} | | | | |" for side, reason in why.items()]
    return [*lines, "", *judge(took, held, options.threads)]


def judge(took: dict[str, float], held: dict[str, float], threads: int) -> list[str]:
    """Return which goals the layout that all sides share reaches."""
    mine = {side: t for side, t in took.items() if "`seed`" in side}
    if not mine:
        return []
    best = min(mine, key=lambda side: mine[side])
    found = []
    for peer, (bound, floor) in GOALS.items():
        theirs = [t for side, t in took.items() if side.startswith(peer)]
        if theirs:
            found.append(
                machine.goal(f"speed against {peer}", min(theirs) / mine[best], bound, floor=floor)
            )
    share = work() / (mine[best] / 1e3) / (FLOOR * threads)
    found.append(machine.goal("share of the bf16 floor", share, 0.75, unit="", floor=0.59))
    least = min(mine, key=lambda side: held[side])
    for (peer, bound), side in product(MEMORY.items(), dict.fromkeys((best, least))):
        theirs = [m for other, m in held.items() if other.startswith(peer)]
        if theirs:
            words = f"peak memory of {side.partition(', ')[2]} against {peer}"
            found.append(machine.goal(words, held[side] / min(theirs), bound, least=False))
    return found


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", help="some MB of text; default: wiki-mini from the cache")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--sides", nargs="+", help="only those whose name has one of these")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        side, tokens = options.child
        child(side, tokens, options)
        return
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(options.text) if options.text else Path(folder) / "text.txt"
        if not options.text:
            from surefoot.data.corpora import find
            from surefoot.data.fetch import cache_dir

            text.write_bytes(find("wiki-mini", cache_dir()).path.read_bytes())
        os.environ["GPT_TEXT"] = str(text.resolve())
        tokens = Path(folder) / "tokens.npy"
        np.save(tokens, np.random.default_rng(0).integers(0, WORDS, 1_000_000, "uint16"))
        title = f"Training a GPT of the plan's size on {options.threads} core"
        page = machine.heading(title, "benchmarks/gpt_peers.py", __doc__)
        name = "gpt_peers" if options.threads == 1 else f"gpt_peers_{options.threads}"
        machine.write(name, [*page, *measure(tokens, options)])


if __name__ == "__main__":
    main()
