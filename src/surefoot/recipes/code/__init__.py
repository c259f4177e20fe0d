"""Tune a pretrained model on the code of a repository: LoRA, LoRA+, QLoRA, or all weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from surefoot.errors import DataError, RunError
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
    from surefoot.engine.foresee.cards import Place
    from surefoot.engine.foresee.tier import Tier
    from surefoot.nn.adapters import Pretrained
    from surefoot.recipes.code.base import Base
    from surefoot.recipes.code.speaker import CodeSpeaker

__all__ = ["CodeConfig", "recipe"]

KEPT = "tokenizer.json"
_TINY_WORDS = 512


def build(config: CodeConfig, world: World) -> Job:
    """Read the repository, load the base, put adapters on it."""
    from surefoot.recipes.code.base import require

    require("transformers", "peft")
    from surefoot.data.packed import pack
    from surefoot.engine import Job, Learner
    from surefoot.nn.pretend import pretending
    from surefoot.recipes.code.looks import looks, remember, samplers
    from surefoot.recipes.code.model import make, optimiser_of, precision_of

    if pretending():
        return rehearsal(config, world)
    code = gather(config)
    base = base_of(config, code)
    tokens = pack([f.text for f in code.sides["train"]], base.tokenizer)
    config, chosen = settled(config, len(tokens))
    precision = precision_of(config, world)
    model, digest = make(config, base, world, precision)
    source = packed(config, tokens, base.tokenizer, digest)
    judges = looks(config, code, base.tokenizer, world)
    trying = [name for name in judges if not name.startswith("test")]
    if config.adapter.method == "full":
        remember(judges, model)
    optimisers = optimiser_of(config, model)
    return Job(
        source=source,
        learners={"main": Learner(model, loss, optimisers)},
        evals={name: judges[name] for name in trying},
        exams={n: j for n, j in judges.items() if not n.startswith("completions")},
        samplers=samplers(config, code, base.tokenizer),
        data={**code.describe(), "base": base.name, "base_digest": digest},
        notes=[*notes(config, code, base, source, model, optimisers), *chosen],
        files={KEPT: base.tokenizer.to_json(), **code.jsonl()},
        settings={
            "data.snapshot": code.digest, "model.base_digest": digest,
            "machine.precision": precision, "model.context": config.context,
            "model.base": base.pinned or config.model.base,
        },
        show=partial(show, bpe=base.tokenizer),
    )  # fmt: skip


def settled(config: CodeConfig, tokens: int) -> tuple[CodeConfig, list[str]]:
    """Return `config` with the context that fits here where that is asked for, and a note on it.

    There are `tokens` to train on, and a row is no longer than half of them.
    """
    if config.model.context != "auto":
        return config, []
    from surefoot.config.fields import changed
    from surefoot.data.fetch import cache_dir
    from surefoot.engine.foresee.cards import here
    from surefoot.recipes.code.tiers import chosen_context

    tier = chosen_context(recipe, config, here(cache_dir() / "ceilings.json"), tokens // 2)
    why = (
        f"{tier.bytes / 1e9:.1f} GB of {tier.room / 1e9:.1f}, within what the base was trained for"
    )
    note = f"       context {tier.context:,} chosen: {why}"
    return changed(config, {"model.context": tier.context}), [note]


def depth_of(config: CodeConfig) -> int | None:
    """Return the layers of the base, None where they are of several kinds."""
    from surefoot.recipes.code.base import public_config, quiet, require

    require("transformers", "peft")
    with quiet():  # bitsandbytes tells of kernels that it can do without
        import peft  # noqa: F401  # a plan that asks this first counts what a run loads

    public = public_config(config.model.base)
    kinds = set(getattr(public, "layer_types", None) or ())
    return int(public.num_hidden_layers) if len(kinds) < 2 else None


def offered(recipe: Recipe, config: CodeConfig, place: Place) -> Iterator[Tier]:
    """Yield how long rows may be at a place, and with what."""
    from surefoot.recipes.code.tiers import tiers

    yield from tiers(recipe, config, place)


def rehearsal(config: CodeConfig, world: World) -> Job:
    """Return the job without contents, for planning: neither repository nor weights are read.

    The base has only so many layers as the world says, where it does.
    """
    from surefoot.data.packed import Blank
    from surefoot.engine import Job, Learner
    from surefoot.recipes.code.model import imagined, optimiser_of, precision_of

    model = imagined(config, precision_of(config, world), getattr(world, "layers", None))
    rows = config.limit(1)
    learner = Learner(model, loss, optimiser_of(config, model))
    return Job(Blank(config.context, max(rows or 1, config.train.batch_size)), {"main": learner})


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


def packed(config: CodeConfig, tokens: Any, bpe: BPE, digest: str) -> Packed:
    """Return the rows to train on."""
    from surefoot.data.packed import Packed, middle_tokens

    middle = middle_tokens(bpe) if config.data.fim_rate else None
    if config.data.fim_rate and middle is None:
        raise DataError(
            "data.fim_rate: this base has no tokens for filling in the middle",
            where=config.model.base, fix="--fim-rate 0, or a base like StarCoder or Qwen-Coder",
        )  # fmt: skip
    return Packed(tokens, config.context, config.data.fim_rate, middle, digest)


def loss(model: nn.Module, batch: Batch) -> Loss:
    """Nats summed over the tokens of the batch."""
    from surefoot.engine import Loss

    return Loss(model(batch.fields["x"], batch.fields["y"]))


def notes(
    config: CodeConfig, code: Repository, base: Base, source: Packed, model: Pretrained,
    optimisers: list[Any],
) -> Iterator[str]:  # fmt: skip
    """Say what is learned from and what is trained, and at which rates."""
    from surefoot.data.parse_rate import missing_grammars
    from surefoot.engine.plan import schedule_for
    from surefoot.recipes.code.model import held_in
    from surefoot.track.text import bytes_text

    told = code.describe()
    kinds = ", ".join(f"{count} {name}" for name, count in told["languages"].items())
    counts = " / ".join(f"{told[side]['files']}" for side in ("train", "val", "test"))
    yield f"data   {code.name}: {kinds}; {counts} files train / validate / test"
    yield f"       {len(source.tokens):,} tokens, {len(source):,} rows of {source.context}"
    yield from (f"       {note}" for note in code.notes)
    if code.secrets:
        yield (
            f"       strings that look secret: {len(code.secrets)}, first at {code.secrets[0]}; "
            "--drop-secrets leaves such files out"
        )
    absent = missing_grammars(f.language for f in (*code.sides["val"], *code.sides["test"]))
    if absent and config.evaluation.prompts:
        yield f'       no parse rate of {", ".join(absent)}: pip install "surefoot[code]" brings grammars'
    frozen = sum(p.nbytes for p in model.parameters() if not p.requires_grad)
    yield f"base   {base.name}, {bytes_text(frozen)} {held_in(model)}; licence: {base.licence}"
    longest = getattr(model.config.public, "max_position_embeddings", None)
    if longest and config.context > longest:
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
    from surefoot.recipes.code.model import lora_of, make, precision_of
    from surefoot.recipes.code.speaker import CodeSpeaker

    base = base_of(config, None, files.get(KEPT))
    model, _ = make(config, base, world, precision_of(config, world))
    border, engines = base.tokenizer.boundary, {"main": Writer(model, base.tokenizer.vocab_size)}
    lora = None if config.adapter.method == "full" else lora_of(config)
    return CodeSpeaker(
        {"main": model}, base.tokenizer, "", border, engines, folder=base.folder, lora=lora,
        double_quant=config.model.double_quant if config.four_bit else None,
    )  # fmt: skip


recipe = Recipe(
    name="code",
    summary="a pretrained model tuned on a repository: LoRA, LoRA+, QLoRA or all weights",
    config=CodeConfig,
    build=build,
    speak=speak,
    depth=depth_of,
    tiers=offered,
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
