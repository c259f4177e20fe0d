"""Tune a pretrained model on the code of a repository: LoRA, LoRA+, QLoRA, or all weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from surefoot.errors import DataError, RunError, Unsupported
from surefoot.recipes import Recipe
from surefoot.recipes.code.settings import TINY, CodeConfig
from surefoot.seeds import derive

if TYPE_CHECKING:
    from torch import nn

    from surefoot.data.batch import Batch
    from surefoot.data.bpe import BPE
    from surefoot.data.packed import Packed
    from surefoot.data.repository import Repository
    from surefoot.engine import Job, Loss, World
    from surefoot.nn.adapters import Lora, Pretrained
    from surefoot.recipes.code.base import Base
    from surefoot.recipes.code.speaker import CodeSpeaker

__all__ = ["CodeConfig", "recipe"]

KEPT = "tokenizer.json"
_TINY_WORDS = 512


def build(config: CodeConfig, world: World) -> Job:
    """Read the repository, load the base, put adapters on it."""
    from surefoot.engine import Job, Learner
    from surefoot.recipes.code.base import require
    from surefoot.recipes.code.looks import looks, remember, samplers

    require("transformers", "peft")
    code = gather(config)
    base = base_of(config, code)
    precision = precision_of(config, world)
    model, digest = make(config, base, world, precision)
    source = packed(config, code, base.tokenizer, digest)
    judges = looks(config, code, base.tokenizer, world)
    trying = [name for name in judges if not name.startswith("test")]
    if config.adapter.method == "full":
        remember(judges, model)
    optimisers = optimiser_of(config, model)
    return Job(
        source=source,
        learners={"main": Learner(model, loss, optimisers)},
        evals={name: judges[name] for name in trying},
        exams={n: j for n, j in judges.items() if n != "completions"},
        samplers=samplers(config, code, base.tokenizer),
        data={**code.describe(), "base": base.name, "base_digest": digest},
        notes=list(notes(config, code, base, source, model, optimisers)),
        files={KEPT: base.tokenizer.to_json(), **code.jsonl()},
        settings={
            "data.snapshot": code.digest, "model.base_digest": digest,
            "machine.precision": precision,
        },
        show=partial(show, bpe=base.tokenizer),
    )  # fmt: skip


def gather(config: CodeConfig) -> Repository:
    """Return the repository as it is, or for a run that has begun, as it was then."""
    from surefoot.data.fetch import cache_dir
    from surefoot.data.repository import read_repository, stored_repository

    data = config.data
    if data.snapshot is not None and (kept := stored_repository(cache_dir(), data.snapshot)):
        return kept
    if data.repo is None:
        raise DataError("data.repo: whose code is to be learned?", fix="--repo FOLDER")
    found = read_repository(
        data.repo, languages=data.languages, val_ratio=data.val_ratio, test_ratio=data.test_ratio,
        seed=config.train.seed, similarity=data.similarity, drop_secrets=data.drop_secrets,
    )  # fmt: skip
    if data.snapshot not in (None, found.digest):
        what = "the repository changed since this run began, and its copy in the cache is gone"
        raise RunError(what, where=str(data.repo), fix="check out the old state, or --new")
    found.store(cache_dir())
    return found


def base_of(config: CodeConfig, code: Repository | None, kept: str | None = None) -> Base:
    """Return the base; the tiny one has the tokens `kept`, or learns them from `code`."""
    from surefoot.data.bpe import BPE, train_bpe
    from surefoot.recipes.code.base import find_base, random_base

    if config.model.base != TINY:
        return find_base(config.model.base)
    if kept is not None:
        bpe = BPE(kept, KEPT)
    else:
        assert code is not None
        bpe = train_bpe([f.text for f in code.sides["train"]], _TINY_WORDS)
    return random_base(bpe, derive(config.train.seed, "base"))


def precision_of(config: CodeConfig, world: World) -> str:
    """Return the arithmetic: what is asked for, else bf16 where the device has it."""
    import torch

    asked = config.machine.precision
    if asked != "auto":
        return asked
    if world.device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(False) else "fp16"
    return "bf16" if world.device.type == "cpu" and _processor_has_bf16() else "fp32"


def _processor_has_bf16() -> bool:
    import torch

    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16"))


def make(config: CodeConfig, base: Base, world: World, precision: str) -> tuple[Pretrained, str]:
    """Return the model with fresh adapters, and the digest of the base's bits.

    Raises RunError where the base is not the one that the run began with.
    """
    import torch

    from surefoot.nn.adapters import (
        Pretrained,
        adapt,
        frozen_digest,
        guard_four_bit,
        recompute_layers,
    )
    from surefoot.nn.lean import offload_inputs, tile_feed_forward
    from surefoot.recipes.code.base import load_base, quiet

    size, how = config.model, config.adapter
    full = how.method == "full"
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = kinds["fp32" if full else precision]
    if config.four_bit and world.device.type not in ("cpu", "cuda", "xpu"):
        what = f"bases of 4 bits cannot be computed on {world.device.type}"
        raise Unsupported(what, where="model.quant", fix="--method lora, or --device cpu")
    model: Any = load_base(
        base.folder, dtype, world.device,
        four_bit=config.four_bit, double_quant=size.double_quant,
    )  # fmt: skip
    guard_four_bit(model)
    _same_words(base, model)
    digest = frozen_digest(model)
    if size.base_digest not in (None, digest):
        raise RunError(
            f"the base is not the one this run began with: {digest} and not {size.base_digest}",
            where=str(base.folder), fix="bring the old base back, or start anew with --new",
        )  # fmt: skip
    for parameter in model.parameters():
        parameter.requires_grad_(full)
    with quiet():
        if config.memory.checkpointing:
            recompute_layers(model)
        if config.memory.offload:
            offload_inputs(model)
        if not full:
            model = adapt(model, lora_of(config), derive(config.train.seed, "init"))
    found = Pretrained(model, size.context)
    tile = config.memory.mlp_tile
    if tile is not None and not tile_feed_forward(found.causal, tile):
        what = "memory.mlp_tile: the layers of this base have no part called mlp"
        raise DataError(what, where=config.model.base, fix="leave it out")
    found.train()
    return found, digest


def _same_words(base: Base, model: Any) -> None:
    rows, words = model.get_input_embeddings().weight.size(0), base.tokenizer.vocab_size
    if words > rows:
        what = f"model.base: the tokenizer has {words:,} tokens and the model {rows:,}"
        raise DataError(what, where=str(base.folder), fix="the tokenizer that belongs to the model")


def packed(config: CodeConfig, code: Repository, bpe: BPE, digest: str) -> Packed:
    """Return the rows to train on."""
    from surefoot.data.packed import Packed, middle_tokens, pack

    middle = middle_tokens(bpe) if config.data.fim_rate else None
    if config.data.fim_rate and middle is None:
        raise DataError(
            "data.fim_rate: this base has no tokens for filling in the middle",
            where=config.model.base, fix="--fim-rate 0, or a base like StarCoder or Qwen-Coder",
        )  # fmt: skip
    tokens = pack([f.text for f in code.sides["train"]], bpe)
    return Packed(tokens, config.model.context, config.data.fim_rate, middle, digest)


def optimiser_of(config: CodeConfig, model: nn.Module) -> list[Any]:
    """Return the optimiser: AdamW over the adapters' groups, or what all weights get elsewhere."""
    from surefoot.nn.adapters import adapter_groups
    from surefoot.nn.optim import build_optimisers
    from surefoot.nn.optimiser import AdamW

    optim = config.optim.model_copy(update={"lr": config.optim.lr * config.adapter.peak_factor})
    if config.adapter.method == "full":
        return build_optimisers(model, optim)
    groups = adapter_groups(model, optim.lr, config.ratio, optim.weight_decay)
    return [AdamW(groups, betas=(optim.beta1, optim.beta2), eps=optim.eps)]


def loss(model: nn.Module, batch: Batch) -> Loss:
    """Nats summed over the tokens of the batch."""
    from surefoot.engine import Loss

    return Loss(model(batch.fields["x"], batch.fields["y"]))


def notes(
    config: CodeConfig, code: Repository, base: Base, source: Packed, model: Pretrained,
    optimisers: list[Any],
) -> Iterator[str]:  # fmt: skip
    """Say what is learned from and what is trained, and at which rates."""
    from surefoot.engine.plan import schedule_for

    told = code.describe()
    kinds = ", ".join(f"{count} {name}" for name, count in told["languages"].items())
    counts = " / ".join(f"{told[side]['files']}" for side in ("train", "val", "test"))
    yield f"data   {code.name}: {kinds}; {counts} files train / validate / test"
    yield f"       {len(source.tokens):,} tokens, {len(source):,} rows of {source.context}"
    yield from (f"       {note}" for note in code.notes)
    if code.secrets:
        yield (
            f"       {len(code.secrets)} strings look secret, first at {code.secrets[0]}; "
            "--drop-secrets leaves such files out"
        )
    bits = "4 bits (nf4)" if config.four_bit else str(next(model.parameters()).dtype)[6:]
    frozen = sum(p.nbytes for p in model.parameters() if not p.requires_grad)
    yield f"base   {base.name}, {frozen / 1e6:.0f} MB in {bits}; licence: {base.licence}"
    longest = getattr(model.config.public, "max_position_embeddings", None)
    if longest and config.model.context > longest:
        yield f"       trained for {longest:,} tokens; beyond, what it writes may be noise"
    horizon = config.schedule.horizon or config.limit(len(source))
    plan = schedule_for(config, horizon)
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            yield _group(group, plan, horizon)


def _group(group: Mapping[str, Any], plan: Any, horizon: int | None) -> str:
    count = sum(p.numel() for p in group["params"])
    last = (horizon or 1000) - 1
    peak = max(plan(step) for step in range(last + 1)) if last < 100_000 else 1.0
    rates = " -> ".join(f"{group['peak'] * share:.3g}" for share in (plan(0), peak, plan(last)))
    name = group.get("name", "weights")
    return f"group  {name}: {len(group['params'])} tensors, {count:,} numbers, rate {rates}"


def show(batch: Batch, *, bpe: BPE) -> str:
    """Return a row as text."""
    return bpe.decode(batch.fields["x"][0])


def speak(config: CodeConfig, files: Mapping[str, str], world: World) -> CodeSpeaker:
    """Return the tuned model without its data."""
    from surefoot.nn.adapters import Writer
    from surefoot.recipes.code.speaker import CodeSpeaker

    base = base_of(config, None, files.get(KEPT))
    model, _ = make(config, base, world, precision_of(config, world))
    border, engines = base.tokenizer.boundary, {"main": Writer(model)}
    lora = None if config.adapter.method == "full" else lora_of(config)
    return CodeSpeaker(
        {"main": model}, base.tokenizer, "", border, engines, folder=base.folder, lora=lora,
        double_quant=config.model.double_quant if config.four_bit else None,
    )  # fmt: skip


def lora_of(config: CodeConfig) -> Lora:
    """Return what the adapters are like."""
    from surefoot.nn.adapters import Lora

    how = config.adapter
    return Lora(how.rank, how.alpha, how.dropout, how.targets, how.rslora, how.dora, how.freeze_a)


recipe = Recipe(
    name="code",
    summary="a pretrained model tuned on a repository: LoRA, LoRA+, QLoRA or all weights",
    config=CodeConfig,
    build=build,
    speak=speak,
    default_preset="laptop",
    presets={
        "tiny": {
            "model": {"base": TINY, "context": 64},
            "adapter": {"rank": 4, "alpha": 8.0},
            "machine": {"precision": "fp32"},
            "train": {"batch_size": 4, "max_steps": 30},
            "optim": {"lr": 3e-3},
            "evaluation": {
                "val_tokens": 1000, "outside_tokens": 1000, "prompts": 4, "new_tokens": 16,
                "prompt_tokens": 32,
            },
            "cadence": {"validate_every": 10, "sample_every": 30, "save_every": 10},
        },
        "laptop": {
            "model": {"base": "smollm2", "context": 512},
            "train": {"batch_size": 4, "max_steps": 200},
            "optim": {"lr": 5e-4},
            "memory": {"checkpointing": False},
            "cadence": {"validate_every": 50, "sample_every": 100},
        },
        "gpu8": {
            "model": {"context": 4096},
            "adapter": {"method": "qlora+"},
            "train": {"batch_size": 8, "max_steps": 1000},
            "machine": {"micro_batch_size": 1},
            "memory": {"offload": True, "mlp_tile": 4096},
        },
        "gpu24": {
            "model": {"context": 8192},
            "adapter": {"method": "qlora+", "rank": 32, "alpha": 64.0},
            "train": {"batch_size": 16, "max_steps": 2000},
            "machine": {"micro_batch_size": 1},
        },
        "gpu80": {
            "model": {"context": 8192},
            "adapter": {"method": "lora+", "rank": 64, "alpha": 128.0},
            "train": {"batch_size": 32, "max_steps": 2000},
        },
    },
)  # fmt: skip
