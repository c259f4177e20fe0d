"""Training speed against other trainers: the same GPT-2-shaped model, text and batch for all.

    python benchmarks/peers.py [--sizes laptop full] [--rounds 3] [--nanogpt FOLDER]

Every side runs in a process of its own, side after side and round after round; the medians of a
step's processor time (on one thread) and of its time on the wall count. A side that is not
installed is named as skipped. nanoGPT has no package: give the folder of a checkout of it; its
loop is repeated here as its README documents it for processors. Writes benchmarks/results/peers_SIZE.md.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import numpy as np

SIZES = {  # layers, heads, width, context, batch, steps to measure, steps to warm up
    "laptop": (4, 4, 128, 64, 12, 60, 15),
    "full": (6, 6, 384, 256, 12, 6, 3),
}
GOALS: dict[str, dict[str, tuple[float, float | None]]] = {  # over the best of each peer: wanted, owed
    "laptop": {
        "nanoGPT": (3.0, 2.4), "transformers Trainer, bf16": (3.0, 2.2), "Lightning": (2.0, 1.7),
        "bare": (0.99, None),
    },
    "full": {"bare": (0.99, None)},
}  # fmt: skip
VOCABULARY = 65


class Stamps:
    """When each step ended, by the clock on the wall and by processor time."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def __call__(self, *_: Any) -> None:
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def report(self, warm: int) -> dict[str, float]:
        """Return medians of a step in ms after the first `warm`."""
        wall, cpu = (np.diff(x[warm:]) * 1e3 for x in (self.wall, self.cpu))
        return {"wall": float(np.median(wall)), "cpu": float(np.median(cpu))}


def text(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def windows(tokens: np.ndarray, context: int, count: int, seed: int) -> tuple[Any, Any]:
    """Return random windows and what follows each token, i64[count, context] both."""
    import torch

    rng = np.random.default_rng(seed)
    at = rng.integers(0, len(tokens) - context - 1, count)[:, None] + np.arange(context)
    return tuple(torch.from_numpy(tokens[at + k].astype(np.int64)) for k in (0, 1))


def surefoot(preset: str, **settings: Any) -> Callable[..., None]:
    """The whole of `surefoot train charlm`: journal, record, report, checkpoints."""

    def run(tokens: Path, size: tuple[int, ...], stamps: Stamps) -> None:
        import surefoot as package
        from surefoot.engine.learner import Learner

        layers, heads, width, context, batch, steps, warm = size
        update = Learner.update

        def stamped(learner: Learner) -> float:
            rate = update(learner)
            stamps()
            return rate

        Learner.update = stamped  # type: ignore[method-assign]
        with tempfile.TemporaryDirectory() as folder:
            package.train(
                "charlm", preset=preset, runs=folder, quiet=True, num_layers=layers,
                num_heads=heads, d_model=width, context=context, batch_size=batch, dropout=0.0,
                max_steps=steps + warm, threads=1, **settings,
            )  # fmt: skip

    return run


def bare(tokens: Path, size: tuple[int, ...], stamps: Stamps) -> None:
    """A loop as one writes it by hand around the same model: fused AdamW, bf16, compiled."""
    import torch

    from surefoot.config.model import GPTConfig
    from surefoot.nn.gpt import GPT

    layers, heads, width, context, batch, steps, warm = size
    data = text(tokens)
    shape = {"num_layers": layers, "num_heads": heads, "d_model": width, "context": context}
    model = GPT(GPTConfig.model_validate({"layout": "gpt2", **shape}), VOCABULARY)
    model.compile()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    for step in range(steps + warm):
        x, y = windows(data, context, batch, step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(x, y) / y.numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        stamps()


def nanogpt(compiled: bool) -> Callable[..., None]:
    """nanoGPT's model in its loop for processors: fp32, AdamW that is not fused, clipping."""

    def run(tokens: Path, size: tuple[int, ...], stamps: Stamps) -> None:
        import torch

        sys.path.insert(0, os.environ["NANOGPT"])
        theirs = importlib.import_module("model")
        layers, heads, width, context, batch, steps, warm = size
        data = text(tokens)
        model = theirs.GPT(
            theirs.GPTConfig(
                block_size=context,
                vocab_size=VOCABULARY,
                n_layer=layers,
                n_head=heads,
                n_embd=width,
                dropout=0.0,
                bias=True,
            )
        )
        optimiser = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
        forward = torch.compile(model) if compiled else model
        for step in range(steps + warm):
            x, y = windows(data, context, batch, step)
            _, loss = forward(x, y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            stamps()

    return run


def trainer(precision: str) -> Callable[..., None]:
    """`transformers.Trainer` around its own GPT-2."""

    def run(tokens: Path, size: tuple[int, ...], stamps: Stamps) -> None:
        import transformers
        from torch.optim.optimizer import register_optimizer_step_post_hook
        from torch.utils.data import Dataset

        layers, heads, width, context, batch, steps, warm = size
        data = text(tokens)

        class Windows(Dataset[dict[str, Any]]):
            def __len__(self) -> int:
                return batch * (steps + warm)

            def __getitem__(self, i: int) -> dict[str, Any]:
                row = windows(data, context, 1, i)[0][0]
                return {"input_ids": row, "labels": row}

        config = transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=context, n_embd=width, n_layer=layers,
            n_head=heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            activation_function="gelu", bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                folder, per_device_train_batch_size=batch, max_steps=steps + warm,
                use_cpu=True, bf16=precision == "bf16", report_to=[], save_strategy="no",
                logging_steps=10, optim="adamw_torch_fused", disable_tqdm=True,
            )  # fmt: skip
            model = transformers.GPT2LMHeadModel(config)
            register_optimizer_step_post_hook(stamps)
            transformers.Trainer(model, arguments, train_dataset=Windows()).train()

    return run


def lightning(tokens: Path, size: tuple[int, ...], stamps: Stamps) -> None:
    """Lightning at its best here: the same model compiled, bf16, fused AdamW, nothing else on."""
    import lightning as package
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from surefoot.config.model import GPTConfig
    from surefoot.nn.gpt import GPT

    layers, heads, width, context, batch, steps, warm = size
    data = text(tokens)
    shape = {"num_layers": layers, "num_heads": heads, "d_model": width, "context": context}

    class Module(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = GPT(GPTConfig.model_validate({"layout": "gpt2", **shape}), VOCABULARY)
            self.net.compile()

        def training_step(self, batch: Any, _: int) -> Any:
            x, y = batch
            return self.net(x, y) / y.numel()

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), 1e-3, fused=True)

    register_optimizer_step_post_hook(stamps)
    with tempfile.TemporaryDirectory() as folder:
        package.Trainer(
            max_steps=steps + warm, accelerator="cpu", precision="bf16-mixed", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=folder,
        ).fit(Module(), (windows(data, context, batch, i) for i in range(steps + warm)))  # fmt: skip


SIDES: dict[str, tuple[str, Callable[..., None]]] = {
    "Surefoot, classic recipe, compiled": ("", surefoot("classic", compile="on")),
    "Surefoot, classic recipe, not compiled": ("", surefoot("classic", compile="off")),
    "Surefoot, modern recipe, compiled": ("", surefoot("laptop", compile="on")),
    "Surefoot, modern recipe, not compiled": ("", surefoot("laptop", compile="off")),
    "bare loop, same model, compiled, bf16, fused": ("", bare),
    "nanoGPT": ("NANOGPT", nanogpt(False)),
    "nanoGPT, compiled": ("NANOGPT", nanogpt(True)),
    "transformers Trainer, fp32": ("transformers", trainer("fp32")),
    "transformers Trainer, bf16": ("transformers", trainer("bf16")),
    "Lightning, compiled, bf16": ("lightning", lightning),
}


def child(side: str, size: str, tokens: str) -> None:
    """Run one side and print what it took."""
    import torch

    torch.set_num_threads(1)
    stamps = Stamps()
    SIDES[side][1](Path(tokens), SIZES[size], stamps)
    print("RESULT " + json.dumps(stamps.report(SIZES[size][-1])))


def ask(side: str, size: str, tokens: Path) -> dict[str, float] | str:
    """Return what a child process found, or why it found nothing."""
    command = [sys.executable, __file__, "--child", side, size, str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            found: dict[str, float] = json.loads(line[7:])
            return found
    return (done.stderr.strip().splitlines() or ["nothing"])[-1]


def missing(needs: str) -> str | None:
    """Return why a side cannot run here, or None."""
    if needs == "NANOGPT":
        return None if (Path(os.environ.get(needs, "-")) / "model.py").exists() else "no checkout"
    return f"no {needs}" if needs and importlib.util.find_spec(needs) is None else None


def measure(size: str, rounds: int, tokens: Path) -> list[str]:
    """Return the rows of one size."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    why = {side: missing(needs) for side, (needs, _) in SIDES.items()}
    for number in range(rounds):
        for side in SIDES:
            if why[side] is None:
                got = ask(side, size, tokens)
                if isinstance(got, str):
                    why[side] = got
                else:
                    found[side].append(got)
                print(f"{size} {number + 1}/{rounds} {side}: {got}", flush=True)
    medians = {
        side: {key: statistics.median(x[key] for x in rows) for key in rows[0]}
        for side, rows in found.items()
        if rows
    }
    _, _, _, context, batch, *_ = SIZES[size]
    base = min((m["cpu"] for s, m in medians.items() if s.startswith("nanoGPT")), default=None)
    rows = ["| | processor ms a step | wall ms | tokens per processor second | x nanoGPT |"]
    rows.append("|---|---|---|---|---|")
    for side in SIDES:
        if side not in medians:
            rows.append(f"| {side} | skipped: {why[side]} | | | |")
            continue
        cpu, wall = medians[side]["cpu"], medians[side]["wall"]
        ratio = f"{base / cpu:.2f}" if base else ""
        rows.append(f"| {side} | {cpu:.1f} | {wall:.1f} | {batch * context / cpu:.1f}k | {ratio} |")
    return [*rows, "", *judge(size, {side: m["cpu"] for side, m in medians.items()})]


def judge(size: str, cpu: dict[str, float]) -> list[str]:
    """Return which goals the classic recipe, the model that all sides share, reaches."""
    ours = min(cpu[s] for s in cpu if s.startswith("Surefoot, classic"))
    found = []
    for peer, (bound, floor) in GOALS[size].items():
        theirs = [cpu[s] for s in cpu if s.startswith(peer)]
        if theirs:
            ratio = min(theirs) / ours
            found.append(machine.goal(f"speed against {peer}", ratio, bound, floor=floor))
    return found


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nanogpt", help="a checkout of nanoGPT")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(*asked.child)
        return
    if asked.nanogpt:
        os.environ["NANOGPT"] = str(Path(asked.nanogpt).resolve())
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.npy"
        np.save(tokens, np.random.default_rng(0).integers(0, VOCABULARY, 1_000_000, "uint8"))
        for size in asked.sizes:
            layers, heads, width, context, batch, *_ = SIZES[size]
            title = f"Training speed against other trainers: {size}"
            page = machine.heading(title, "benchmarks/peers.py", __doc__)
            page += [
                f"{layers} layers, {heads} heads, {width} wide, {batch} x {context}.", "",
                *measure(size, asked.rounds, tokens),
            ]  # fmt: skip
            machine.write(f"peers_{size}", page)


if __name__ == "__main__":
    main()
