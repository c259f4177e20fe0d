"""One full step of tuning a Phi-2 in 4 bits on 65,536 tokens, in a process that may hold 7.2 GiB.

Weights are random: memory does not know. Prints what it took as JSON. Run by test_gpu_code.py, or

    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True python tests/gpu/long_rows.py [tokens] [GiB]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from typing import Any

import torch
import transformers

from surefoot import recipes
from surefoot.config.fields import changed
from surefoot.data.batch import Batch
from surefoot.engine import Learner
from surefoot.engine.auto.fit import Pins
from surefoot.engine.foresee.predict import predict
from surefoot.engine.place import apply
from surefoot.engine.random import rekey
from surefoot.nn.adapters import guard_four_bit
from surefoot.recipes.code import loss
from surefoot.recipes.code.model import arranged, optimiser_of

CODE = recipes.find("code")
WAYS = {"cross_entropy": "chunked"}


def phi_2() -> Any:
    """The sizes of Phi-2."""
    return transformers.PhiConfig(
        vocab_size=51200, hidden_size=2560, intermediate_size=10240, num_hidden_layers=32,
        num_attention_heads=32, max_position_embeddings=2048, partial_rotary_factor=0.4,
        tie_word_embeddings=False,
    )  # fmt: skip


def settings(tokens: int, base: str) -> Any:
    """How the step is taken."""
    told = {
        "adapter.method": "qlora+", "model.context": tokens, "train.batch_size": 1,
        "memory.offload": True, "memory.mlp_tile": 4096, "machine.precision": "fp16",
    }  # fmt: skip
    return changed(CODE.config(), {**told, "model.base": base})


def foreseen(tokens: int, processors: int) -> Any:
    """What is predicted that the step takes."""
    with tempfile.TemporaryDirectory() as folder:
        phi_2().save_pretrained(folder)
        pins = Pins("cpu", precision="fp16", ops=WAYS)
        config = settings(tokens, folder)
        return predict(CODE, config, pins, micro=1, block=512, processors=processors)


def in_four_bits(model: Any, dtype: torch.dtype) -> Any:
    """Hold the linear layers of a model on a card in NF4, all but the head; one after the other."""
    import bitsandbytes as bnb

    head = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is not torch.nn.Linear or child is head:
                continue
            small = bnb.nn.Linear4bit(
                child.in_features, child.out_features, bias=child.bias is not None,
                compute_dtype=dtype, quant_type="nf4", compress_statistics=True, device="meta",
            )  # fmt: skip
            small.weight = bnb.nn.Params4bit(
                child.weight.data.cpu(), requires_grad=False, quant_type="nf4",
                compress_statistics=True, module=small,
            )  # fmt: skip
            small.bias = child.bias
            setattr(module, name, small.to(child.weight.device))
    model.is_loaded_in_4bit = True
    guard_four_bit(model)
    return model


def step(learner: Any, tokens: int, words: int) -> float:
    """Take one full step on random tokens, as the loop does; return its seconds."""
    draw = torch.Generator().manual_seed(1)
    row = torch.randint(0, words, (1, tokens + 1), generator=draw).cuda()
    batch = Batch({"x": row[:, :-1], "y": row[:, 1:]}, tokens)
    torch.cuda.synchronize()
    begun = time.perf_counter()
    rekey(0, torch.device("cuda"))
    learner.accumulate(batch, batch.weight)
    learner.gradient_norm()
    learner.update()
    learner.zero()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def main(tokens: int, gib: float) -> None:
    """Build it, take the step, print what it took."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    public = phi_2()
    config = settings(tokens, "")
    with torch.device("cuda"):
        build: Any = transformers.AutoModelForCausalLM
        base = build.from_config(public, dtype=torch.float16, attn_implementation="sdpa")
    model = arranged(config, in_four_bits(base, torch.float16)).cuda()
    learner = Learner(model, loss, optimiser_of(config, model))
    apply(learner, Pins("cuda", precision="fp16", ops=WAYS))
    step(learner, 256, public.vocab_size)  # the moments are there from now on
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(
        gib * 2**30 / torch.cuda.get_device_properties(0).total_memory
    )
    torch.cuda.reset_peak_memory_stats()
    before = learner.parameters[1].detach().clone()
    seconds = step(learner, tokens, public.vocab_size)
    told = {
        "card": torch.cuda.get_device_name(), "tokens": tokens, "budget_gib": gib,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        "allocated_gib": torch.cuda.max_memory_allocated() / 2**30,
        "seconds": seconds, "moved": bool((learner.parameters[1] != before).any()), "updates": learner.updates,
    }  # fmt: skip
    print(json.dumps(told))


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 65536,
        float(sys.argv[2]) if len(sys.argv) > 2 else 7.2,
    )
