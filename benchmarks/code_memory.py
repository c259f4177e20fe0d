"""Memory and time of LoRA steps: Surefoot against transformers + peft + Trainer, the same job.

    python benchmarks/code_memory.py [--context 2048] [--steps 5] [--base smollm2]

Each side runs in a process of its own, on one thread: the same base in bf16, rank 16 in every
linear layer, one row a step, layers computed again for the gradient. Told are the peak of resident
memory, what of it came after the model was loaded, and processor seconds of a step (the median
without the first). Writes benchmarks/results/code_memory.md at the usual context.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import machine
import torch

from surefoot.data.packed import Packed
from surefoot.recipes.code.base import find_base, quiet
from surefoot.recipes.code.loading import load_base

CONTEXT = 2048  # tokens


def peak() -> float:
    """Megabytes of resident memory at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(folder: Path, rows: torch.Tensor) -> tuple[float, list[float]]:
    """Our learner, with its loss in chunks."""
    from surefoot.data.batch import Batch
    from surefoot.engine import Learner, Loss
    from surefoot.nn.adapters import Lora, Pretrained, adapt, adapter_groups, recompute_layers
    from surefoot.nn.optimiser import AdamW
    from surefoot.ops import CROSS_ENTROPY

    base = load(folder)
    with quiet():
        recompute_layers(base)
        model = Pretrained(adapt(base, Lora(), 1), rows.size(1) - 1).train()
    model.entropy = CROSS_ENTROPY.pick("chunked", torch.device("cpu"))
    optimiser = AdamW(adapter_groups(model, 2e-4, 1.0, 0.0))
    learner = Learner(
        model, lambda m, b: Loss(m(b.fields["x"], b.fields["y"])), [optimiser], precision="bf16"
    )
    loaded, seconds = peak(), []
    for row in rows:
        begun = time.process_time()
        batch = Batch({"x": row[None, :-1], "y": row[None, 1:]}, row.numel() - 1)
        learner.accumulate(batch, batch.weight)
        learner.gradient_norm()
        learner.update()
        learner.zero()
        seconds.append(time.process_time() - begun)
    return loaded, seconds


def theirs(folder: Path, rows: torch.Tensor) -> tuple[float, list[float]]:
    """transformers' Trainer with peft, as its documentation shows it."""
    import transformers
    from peft import LoraConfig, get_peft_model

    base: Any = load(folder)
    with quiet():
        base.activation_checkpointing_enable({"use_reentrant": False})
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(base, lora)
    stamps: list[float] = []

    class Watch(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            stamps.append(time.process_time())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            stamps.append(time.process_time())

    with tempfile.TemporaryDirectory() as out:
        arguments = transformers.TrainingArguments(
            out, per_device_train_batch_size=1, max_steps=len(rows), learning_rate=2e-4, bf16=True,
            use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no",
            disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        data: Any = [{"input_ids": row[:-1], "labels": row[:-1]} for row in rows]
        trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[Watch()])
        loaded = peak()
        trainer.train()
    return loaded, [b - a for a, b in zip(stamps[::2], stamps[1::2])]


def load(folder: Path) -> Any:
    """The base in bf16, frozen."""
    cpu = torch.device("cpu")
    base = load_base(folder, torch.bfloat16, cpu, four_bit=False, double_quant=False)
    return base.requires_grad_(False)


def page(told: dict[str, dict[str, float]]) -> list[str]:
    """Return what was measured as a page."""
    rows = [
        f"| {name} | {found['peak']:,.0f} MB | {found['after']:,.0f} MB | {found['seconds']:.1f} |"
        for name, found in told.items()
    ]
    mine, other = told.values()
    return [
        *machine.heading("LoRA steps: memory and time", "benchmarks/code_memory.py", __doc__ or ""),
        "| | peak of resident memory | of it after loading | processor seconds a step |",
        "|---|---:|---:|---:|", *rows, "",
        machine.goal("memory of a LoRA step", mine["peak"] / other["peak"], 0.7, least=False),
        machine.goal("speed of a LoRA step", other["seconds"] / mine["seconds"], 1.0),
    ]  # fmt: skip


def measure(side: str, options: argparse.Namespace) -> dict[str, float]:
    """Return peak and what of it came after loading, in MB, and seconds a step of one side."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    base = find_base(options.base)
    text = Path(__file__).read_text("utf-8") * 200
    tokens = base.tokenizer.encode(text)[: (options.context + 1) * (options.steps + 1)]
    source = Packed(tokens, options.context)
    found = [
        source.tokens[i * options.context :][: options.context + 1] for i in range(options.steps)
    ]
    rows = torch.stack([torch.tensor(row.astype("int64")) for row in found])
    loaded, seconds = (ours if side == "ours" else theirs)(base.folder, rows)
    return {"peak": peak(), "after": peak() - loaded, "seconds": statistics.median(seconds[1:])}


def main() -> None:
    """Measure both sides, or with --side one of them."""
    own = argparse.ArgumentParser(description=__doc__)
    own.add_argument("--context", type=int, default=CONTEXT)
    own.add_argument("--steps", type=int, default=5)
    own.add_argument("--base", default="smollm2")
    own.add_argument("--side", choices=("ours", "theirs"))
    options = own.parse_args()
    if options.steps < 2:
        own.error("--steps: at least 2, the first of which does not count")
    if options.side is not None:
        print(json.dumps(measure(options.side, options)))
        return
    told = {}
    for side, name in (("ours", "Surefoot"), ("theirs", "transformers + peft + Trainer")):
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        told[name] = json.loads(done.stdout.splitlines()[-1])  # the Trainer prints, too
    if options.context == CONTEXT:
        machine.write("code_memory", page(told))
    else:
        print("\n".join(page(told)))


if __name__ == "__main__":
    main()
