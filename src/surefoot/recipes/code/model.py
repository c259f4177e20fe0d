"""The model that is trained: a pretrained base, arranged to save memory, with adapters on top."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from surefoot.errors import DataError, RunError, Unsupported
from surefoot.nn.adapters import (
    Lora,
    Pretrained,
    adapt,
    adapter_groups,
    frozen_digest,
    recompute_layers,
    still_dropout,
)
from surefoot.nn.eight_bit import in_eight_bits
from surefoot.nn.lean import (
    fuse_gelu,
    narrow_norms,
    offload_inputs,
    repeat_keys,
    tile_feed_forward,
)
from surefoot.nn.optim import build_optimisers
from surefoot.nn.optimiser import AdamW, Optimiser
from surefoot.nn.pretend import hollow
from surefoot.recipes.code.base import Base, most_positions, public_config, quiet
from surefoot.recipes.code.loading import load_base, require_bits
from surefoot.recipes.code.settings import CodeConfig
from surefoot.seeds import derive

if TYPE_CHECKING:
    from surefoot.engine import World

__all__ = ["arranged", "held_in", "imagined", "lora_of", "make", "optimiser_of", "precision_of"]

_KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision_of(config: CodeConfig, world: World) -> str:
    """Return the arithmetic: what is asked for, else bf16 where the device has it."""
    asked = config.machine.precision
    if asked != "auto":
        return asked
    if world.device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(False) else "fp16"
    return "bf16" if world.device.type == "cpu" and _processor_has_bf16() else "fp32"


def _processor_has_bf16() -> bool:
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16"))


def _dtype(config: CodeConfig, precision: str) -> torch.dtype:
    """Return what the base is held in: weights that are trained themselves, in fp32."""
    return _KINDS["fp32" if config.adapter.method == "full" else precision]


def make(config: CodeConfig, base: Base, world: World, precision: str) -> tuple[Pretrained, str]:
    """Return the model with fresh adapters, and the digest of the base's bits.

    Raises RunError where the base is not the one that the run began with.
    """
    size = config.model
    if config.four_bit and world.device.type not in ("cpu", "cuda", "xpu"):
        what = f"bases of 4 bits cannot be computed on {world.device.type}"
        raise Unsupported(what, where="model.quant", fix="--method lora, or --device cpu")
    model: Any = load_base(
        base.folder, _dtype(config, precision), world.device,
        four_bit=config.four_bit, double_quant=size.double_quant,
    )  # fmt: skip
    _same_words(base, model)
    digest = frozen_digest(model)
    if size.base_digest not in (None, digest):
        raise RunError(
            f"the base is not the one this run began with: {digest} and not {size.base_digest}",
            where=str(base.folder), fix="bring the old base back, or start anew with --new",
        )  # fmt: skip
    return arranged(config, model), digest


def imagined(config: CodeConfig, precision: str, layers: int | None = None) -> Pretrained:
    """Return the model without contents, for planning; of the base only its config.json is read.

    With `layers`, it has only so many.
    """
    if config.four_bit:
        require_bits()
    public = public_config(config.model.base)
    if layers is not None:
        public.num_hidden_layers = layers
        if getattr(public, "layer_types", None):
            public.layer_types = public.layer_types[:layers]
    with quiet():
        model = hollow(
            public, _dtype(config, precision), four_bit=config.four_bit,
            double_quant=config.model.double_quant,
        )  # fmt: skip
    return arranged(config, model)


def arranged(config: CodeConfig, model: Any) -> Pretrained:
    """Return `model` with what saves memory, and with adapters: ready to be trained."""
    full, memory = config.adapter.method == "full", config.memory
    most = most_positions(model.config)
    if most is not None and config.context > most:
        what = f"model.context: {config.context:,} tokens are more than this base has positions for"
        raise DataError(what, where=config.model.base, fix=f"--context {most}")
    for parameter in model.parameters():
        parameter.requires_grad_(full)
    still_dropout(model)
    narrow_norms(model)
    fuse_gelu(model)
    repeat_keys()
    with quiet():
        if memory.checkpointing:
            recompute_layers(model)
        if memory.offload:
            offload_inputs(model)
        if not full:
            model = adapt(model, lora_of(config), derive(config.train.seed, "init"))
    found = Pretrained(model, config.context)
    tile = memory.mlp_tile
    if tile is not None and not tile_feed_forward(found.causal, tile):
        what = "memory.mlp_tile: the layers of this base have no part called mlp"
        raise DataError(what, where=config.model.base, fix="leave it out")
    found.train()
    return found


def held_in(model: nn.Module) -> str:
    """Return in words what the numbers of the base are held in.

    Of 4 bits are linear layers alone, so it says which share that is: embeddings are none, nor are
    experts that are one tensor.
    """
    base = [p for p in model.parameters() if not p.requires_grad] or list(model.parameters())
    packed = [s.shape.numel() for p in base if (s := getattr(p, "quant_state", None)) is not None]
    plain = Counter[torch.dtype]()
    for parameter in base:
        if getattr(parameter, "quant_state", None) is None:
            plain[parameter.dtype] += parameter.numel()
    kind = str(plain.most_common(1)[0][0])[6:]
    if not packed:
        return f"in {kind}"
    share = sum(packed) / (sum(packed) + plain.total())
    return f"with {share:.0%} of its numbers in 4 bits (nf4), the rest in {kind}"


def _same_words(base: Base, model: Any) -> None:
    rows, words = model.get_input_embeddings().weight.size(0), base.tokenizer.vocab_size
    if words > rows:
        what = f"model.base: the tokenizer has {words:,} tokens and the model {rows:,}"
        raise DataError(what, where=str(base.folder), fix="the tokenizer that belongs to the model")


def optimiser_of(config: CodeConfig, model: nn.Module) -> list[Optimiser]:
    """Return the optimiser: AdamW over the adapters' groups, or what all weights get elsewhere."""
    optim = config.optim.model_copy(update={"lr": config.optim.lr * config.adapter.peak_factor})
    found: list[Optimiser]
    if config.adapter.method == "full":
        found = build_optimisers(model, optim)
    else:
        groups = adapter_groups(model, optim.lr, config.ratio, optim.weight_decay)
        found = [AdamW(groups, betas=(optim.beta1, optim.beta2), eps=optim.eps)]
    if config.memory.moments == "8bit":
        return in_eight_bits(found, next(model.parameters()).device)
    return found


def lora_of(config: CodeConfig) -> Lora:
    """Return what the adapters are like."""
    how = config.adapter
    return Lora(how.rank, how.alpha, how.dropout, how.targets, how.rslora, how.dora, how.freeze_a)
