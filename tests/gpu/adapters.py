"""Adapters on models with random weights: what a step of them is foreseen to take on a card, and takes."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
import transformers
from tests.gpu.long_rows import CODE, WAYS, step

from surefoot.config.fields import changed
from surefoot.engine import Learner
from surefoot.engine.auto.fit import Pins
from surefoot.engine.foresee.predict import Need, predict
from surefoot.engine.place import apply
from surefoot.recipes.code import loss
from surefoot.recipes.code.loading import load_base
from surefoot.recipes.code.model import arranged, optimiser_of

SIZES = {
    "hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 16, "vocab_size": 32000,
    "max_position_embeddings": 8192,
}  # fmt: skip
LAYOUTS = {
    "llama": lambda: transformers.LlamaConfig(
        intermediate_size=2816, num_key_value_heads=16, **SIZES
    ),
    "qwen3": lambda: transformers.Qwen3Config(
        intermediate_size=3072, num_key_value_heads=4, head_dim=64, **SIZES
    ),
    "phi": lambda: transformers.PhiConfig(
        intermediate_size=4096, partial_rotary_factor=0.5, **SIZES
    ),
}
PLAIN = {"memory.checkpointing": False}
TILED = {"memory.checkpointing": True, "memory.mlp_tile": 1024}
LEAN = {**TILED, "memory.offload": True}
CASES = [
    ("llama", "lora", PLAIN), ("llama", "lora", {}), ("llama", "lora+", TILED),
    ("llama", "qlora", {}), ("llama", "qlora+", LEAN), ("llama", "full", {}),
    ("qwen3", "lora", PLAIN), ("qwen3", "lora", {}), ("qwen3", "qlora", TILED),
    ("qwen3", "qlora+", LEAN), ("qwen3", "lora", {"ops.cross_entropy": "reference"}),
    ("phi", "lora", PLAIN), ("phi", "qlora", {}), ("phi", "qlora+", TILED), ("phi", "lora", LEAN),
]  # fmt: skip


def random_models(folder: Path) -> dict[str, str]:
    """Write a model with random weights for each layout; return their folders."""
    for name, sizes in LAYOUTS.items():
        torch.manual_seed(0)
        model: Any = transformers.AutoModelForCausalLM.from_config(sizes(), dtype=torch.bfloat16)
        model.save_pretrained(folder / name)
    return {name: str(folder / name) for name in LAYOUTS}


def settings(base: str, method: str, more: dict[str, Any], context: int) -> Any:
    """How a case is trained: one row at a time, in bf16."""
    asked = {"model.base": base, "adapter.method": method, "model.context": context}
    asked |= {"train.batch_size": 1, "machine.precision": "bf16", **more}
    return changed(CODE.config(), asked)


def ways(config: Any) -> dict[str, str]:
    return WAYS | {k: v for k, v in config.ops.ways().items() if v != "auto"}


def foreseen(config: Any) -> Need:
    """What is predicted without a card that a step takes on this one."""
    pins = Pins("cpu", precision="bf16", ops=ways(config))
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    return predict(CODE, config, pins, micro=1, block=512, processors=processors)


def taken(config: Any, base: str) -> int:
    """Bytes at the peak of the second step, beyond what the card held before."""
    device, four = torch.device("cuda:0"), config.four_bit
    dtype = torch.float32 if config.adapter.method == "full" else torch.bfloat16
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model: Any = load_base(Path(base), dtype, device, four_bit=four, double_quant=True)
    found = arranged(config, model)
    learner = Learner(found.to(device) if not four else found, loss, optimiser_of(config, found))
    apply(learner, Pins("cuda", precision="bf16", ops=ways(config)))
    step(learner, config.context, SIZES["vocab_size"])
    torch.cuda.reset_peak_memory_stats()
    step(learner, config.context, SIZES["vocab_size"])
    return int(torch.cuda.max_memory_allocated() - before)
