"""A GPT with a vocabulary of its own: byte-level BPE, documents, loss by token and by byte."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from surefoot.config.model import GPTConfig, Memory
from surefoot.config.schema import (
    Optim,
    RunConfig,
    ScheduleConfig,
    Section,
    Train,
    circumstance,
    knob,
)
from surefoot.config.units import parse_bytes
from surefoot.errors import ConfigError, DataError
from surefoot.recipes import Adoption, Recipe
from surefoot.seeds import derive

if TYPE_CHECKING:
    from torch import Tensor, nn

    from surefoot.data.batch import Batch
    from surefoot.data.bpe import BPE
    from surefoot.data.collection import Collection, Part
    from surefoot.engine import Job, Loss, NextTokens, Scores, TextSpeaker, World
    from surefoot.engine.kit.curriculum import Growth

__all__ = ["GPTRunConfig", "Tokenising", "read", "recipe"]

KEPT = "tokenizer.json"
SAMPLE_TOKENS = 120
_COPY = "copy the one that belongs to them into the folder, or say where it is: --tokenizer FILE"


class DocumentData(Section):
    """Which documents are read, how they are split, and the vocabulary."""

    corpus: str = knob(
        "wiki-mini", "Documents by name; `surefoot data list` shows them. hf:OWNER/NAME: the hub."
    )
    path: Path | None = knob(
        None, "Your own: text, JSON Lines, a folder of them; also packed as .zst or .gz."
    )
    val_path: Path | None = knob(None, "What is held out; default: a split of `path`.")
    test_path: Path | None = knob(None, "What `surefoot evaluate` measures beside it.")
    val_ratio: float = knob(
        0.02, "Share of the documents that is held out where no file says which.", ge=0, lt=0.9
    )
    vocab_size: int = knob(8192, "Tokens of the vocabulary to learn.", ge=257, le=1_000_000)
    tokenizer: Path | None = knob(None, "A tokenizer.json to use instead of learning one.")
    shards: str | None = knob(
        None, "Address of shards (see `surefoot data shard`): a folder, s3://… or https://…."
    )
    shuffle_shards: int = knob(
        0, "Shards that are shuffled together at a time (0: all); cheap where a cache is small.",
        ge=0,
    )  # fmt: skip
    shard_cache: str = circumstance("2GB", "Room on this machine for copies of shards.")
    text_field: str = knob("text", "Field of JSON Lines that holds the text.")
    bad_utf8: Literal["replace", "refuse"] = knob(
        "replace", "Bytes that are no UTF-8: read as U+FFFD and counted, or refused."
    )
    document_masks: bool = knob(False, "Let no token see other documents in its window.")
    context_warmup: int = knob(
        0, "Steps over which what a token sees grows from an eighth of the context.", ge=0
    )
    val_batch: int = circumstance(8, "Windows evaluated at once.", ge=1)

    @field_validator("shard_cache")
    @classmethod
    def _size(cls, value: str) -> str:
        parse_bytes(value)
        return value


class GPTRunConfig(RunConfig):
    """Settings of `surefoot train gpt`."""

    model: GPTConfig = GPTConfig(
        d_model=256, num_layers=6, num_heads=4, context=256, tie_embeddings=False, zero_init=True
    )
    data: DocumentData = DocumentData()
    memory: Memory = Memory()
    train: Train = Train(batch_size=16, max_steps=2000)
    optim: Optim = Optim(lr=0.02, muon_lr=0.01)
    schedule: ScheduleConfig = ScheduleConfig(kind="wsd", decay_fraction=0.9)


def build(config: GPTRunConfig, world: World) -> Job:
    """Read the documents, learn their vocabulary, cut windows, and make one GPT."""
    from surefoot.engine import Job, Learner
    from surefoot.nn.gpt import GPT
    from surefoot.nn.optim import build_optimisers

    found = read(config)
    bpe = found.tokenizer
    seed = derive(config.train.seed, "init")
    border = bpe.boundary if config.data.document_masks else None
    model = GPT(
        config.model, bpe.vocab_size, seed=seed, border=border,
        checkpointing=config.memory.checkpointing,
    ).to(world.device)  # fmt: skip
    measure = partial(held_out, config=config, world=world)
    return Job(
        source=found.source(config.model.context),
        learners={
            "main": Learner(
                model, loss, build_optimisers(model, config.optim), curriculum=_growth(config)
            )
        },
        evals={"held out": measure(found.val, "val")},
        exams={
            "held out": measure(found.val, "val"),
            **({"test": measure(found.test, "test")} if found.test else {}),
        },
        samplers={"": partial(write, bpe=bpe)},
        data=found.describe(),
        notes=[
            f"data   {found.describe_line()}",
            *found.notes,
            *_given_up(config.model, bpe),
            *_never_whole(config),
            *_unread(config.data),
        ],
        files={KEPT: bpe.to_json()},
        settings={} if config.data.path or config.data.shards else {"data.corpus": found.name},
        show=partial(show, bpe=bpe),
    )


def _given_up(model: GPTConfig, bpe: BPE) -> list[str]:
    """Say before training what a model gives up that no other program knows."""
    if model.private:
        what = " and ".join(model.private)
        return [f"export {what}: no HF or GGUF layout has that; ONNX and pt will keep it"]
    if model.layout == "gpt2":
        return ["export layout gpt2: GGUF has it with another GELU; HF, ONNX and pt will keep it"]
    if bpe.splits is None:
        return [
            "export of this tokenizer: GGUF does not split as it does; HF, ONNX and pt will keep it"
        ]
    return []


def _never_whole(config: GPTRunConfig) -> list[str]:
    """Say of what grows that training ends before it is whole."""
    last = config.train.max_steps
    growing = {
        "data.context_warmup": config.data.context_warmup,
        "train.batch_warmup": config.train.batch_warmup,
    }
    return [
        f"{name} lasts {steps:,} steps, and training ends at {last:,}"
        for name, steps in growing.items()
        if last is not None and steps > last
    ]


def _unread(data: DocumentData) -> list[str]:
    """Say so where two sources are named and one is taken."""
    own = data.path or data.shards
    if own is None or data.corpus == DocumentData.model_fields["corpus"].default:
        return []
    return [f"data.corpus {data.corpus} is not read: the documents are those of {own}"]


def read(config: GPTRunConfig) -> Collection:
    """Return the documents of `config` as tokens."""
    from surefoot.data.collection import collect

    data = config.data
    if data.shards is not None:
        return _far(data)
    return collect(
        data.path, data.corpus, val_path=data.val_path, test_path=data.test_path,
        val_ratio=data.val_ratio, vocab_size=data.vocab_size, tokenizer=data.tokenizer,
        text_field=data.text_field, bad_utf8=data.bad_utf8, progress=Tokenising(),
    )  # fmt: skip


def _far(data: DocumentData) -> Collection:
    """Return the documents of shards. Raises ConfigError where others are given, too."""
    from surefoot.data.remote import open_shards

    assert data.shards is not None
    own = [
        n for n in ("path", "val_path", "test_path", "tokenizer") if getattr(data, n) is not None
    ]
    if own:
        raise ConfigError(
            f"data.shards come with their documents and tokenizer, and data.{own[0]} gives others",
            fix="leave one of the two out",
        )
    return open_shards(data.shards, parse_bytes(data.shard_cache), data.shuffle_shards)


class Tokenising:
    """Says on a terminal how far the shards of a large collection are."""

    def __init__(self, doing: str = "tokenising") -> None:
        self._doing = doing
        self._bar: Any = None

    def __call__(self, done: int, count: int) -> None:
        """Show `done` of `count`; the line disappears with the last."""
        from rich.console import Console
        from rich.progress import Progress

        if self._bar is None:
            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.add_task(self._doing, total=count)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done)
        if done >= count:
            self._bar.stop()
            self._bar = None


def loss(model: nn.Module, batch: Batch, share: float = 1.0) -> Loss:
    """Nats summed over the tokens of the batch, in windows of `share` of their length."""
    from surefoot.engine import Loss

    x, y = batch.fields["x"], batch.fields["y"]
    parts = round(1 / share)
    if x.shape[1] % parts:
        parts = 1  # such a window has no such part
    return Loss(model(x.reshape(len(x) * parts, -1), y.reshape(len(y) * parts, -1)))


def _growth(config: GPTRunConfig) -> Growth | None:
    from surefoot.engine.kit.curriculum import Growth

    return Growth(config.data.context_warmup) if config.data.context_warmup else None


def held_out(part: Part, name: str, *, config: GPTRunConfig, world: World) -> NextTokens:
    """Return what measures a model over all of `part`."""
    from surefoot.engine import NextTokens

    batches = partial(part.windows, config.model.context, config.data.val_batch)
    return NextTokens(batches, world.to, partial(told, part=part, name=name))


def told(scores: Scores, *, part: Part, name: str) -> dict[str, float]:
    """Return loss by token and by byte over all of `part`; on WikiText also perplexity by word.

    Bits by byte do not depend on the vocabulary. The perplexity is exp(nats / (words + lines)).
    What ends a document is counted in both, as a token that stands for no byte.
    """
    nats = scores.loss * scores.targets
    found = {
        f"{name}_loss": scores.loss,
        f"{name}_bits_per_byte": nats / math.log(2) / part.side.size,
    }
    if part.wikitext:
        found[f"{name}_word_ppl"] = math.exp(min(nats / part.side.words, 700.0))
    accuracies = {"top1": scores.top1, "top5": scores.top5}
    return found | (accuracies if name == "val" else {})


def show(batch: Batch, *, bpe: BPE) -> str:
    """Return a window, and after the arrow the last token to predict."""
    return f"{bpe.decode(batch.fields['x'][0])} → {bpe.decode(batch.fields['y'][0, -1:])!r}"


def write(model: nn.Module, seed: int, *, bpe: BPE) -> str:
    """Return what the model writes from the start of a document."""
    from surefoot.engine import Request

    request = Request("", SAMPLE_TOKENS, temperature=0.8, top_p=0.95, seed=seed)
    return "".join(speaker(model, bpe).reply("main", request))


def speaker(model: nn.Module, bpe: BPE) -> TextSpeaker:
    """Return how the model continues the beginning of a document, up to its end."""
    from surefoot.engine import TextSpeaker

    return TextSpeaker({"main": model}, bpe, "", border=bpe.boundary)


def speak(config: GPTRunConfig, files: Mapping[str, str], world: World) -> TextSpeaker:
    """Return the model without its documents, and how it continues a prompt."""
    from surefoot.data.bpe import BPE
    from surefoot.nn.gpt import GPT

    try:
        bpe = BPE(files.get(KEPT, ""), KEPT)
    except DataError as error:
        what = f"damaged: {error.what}" if KEPT in files else "missing"
        fix = "surefoot resume RUN writes it anew; or bring it back from a mirror or an export"
        raise DataError(f"the run's {KEPT} is {what}", fix=fix) from None
    return speaker(GPT(config.model, bpe.vocab_size).to(world.device), bpe)


def adopt(tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> Adoption:
    """Read the sizes of a GPT; a tokenizer that came with it is used."""
    from surefoot.data.bpe import way_to_tokenizer
    from surefoot.nn.foreign import gpt_sizes, gpt_weights

    weights, notes = gpt_weights(tensors)
    sizes, left = gpt_sizes(weights, said)
    config = said.get("config")
    told = config if isinstance(config, Mapping) else {}
    sizes |= {k: told[k] for k in GPTConfig.model_fields if k in told and k not in sizes}
    settings = {f"model.{field}": value for field, value in sizes.items()}
    unknown = {f"model.{field}": why for field, why in left.items() if field not in told}
    ways: dict[str, str] = {}
    if kept := said.get("tokenizer"):
        settings["data.tokenizer"] = kept
        weights = _cut(weights, _bpe(Path(kept)).vocab_size, notes)
    else:
        words, open_ = len(weights["embed.weight"]), "data.tokenizer or data.shards"
        unknown[open_] = f"only their own tokenizer says what the {words:,} tokens mean"
        if folder := said.get("folder"):
            unknown[open_] += ", and the folder has no tokenizer.json"
            ways[open_] = way_to_tokenizer(Path(folder), "--recipe charlm") or _COPY
    return Adoption({"main": weights}, settings, unknown, notes, ways)


def _bpe(path: Path) -> BPE:
    from surefoot.data.bpe import BPE

    return BPE(path.read_text("utf-8"), str(path))


def _cut(weights: dict[str, Tensor], count: int, notes: list[str]) -> dict[str, Tensor]:
    """Drop the rows of tables beyond the vocabulary, which only make its length a round number."""
    spare = len(weights["embed.weight"]) - count
    if spare <= 0:
        return weights
    notes.append(f"{spare:,} rows of the embedding stand for no token and are dropped")
    tables = ("embed.weight", "head.weight")
    return {n: t[:count].clone() if n in tables else t for n, t in weights.items()}


_TINY = {"d_model": 32, "num_layers": 2, "num_heads": 2, "context": 32}
_SEED = {"d_model": 512, "num_layers": 8, "num_heads": 8, "context": 512}
_MEDIUM = {"d_model": 640, "num_layers": 8, "num_heads": 10, "context": 512}

recipe = Recipe(
    name="gpt",
    summary="a GPT with its own BPE vocabulary, on Wikipedia or on any documents",
    default_preset="laptop",
    config=GPTRunConfig,
    build=build,
    speak=speak,
    adopt=adopt,
    presets={
        "tiny": {
            "model": _TINY,
            "data": {"vocab_size": 320},
            "train": {"batch_size": 8, "max_steps": 60},
            "cadence": {"validate_every": 20, "sample_every": 30, "save_every": 10},
            "schedule": {"warmup_steps": 10},
        },
        "laptop": {
            "model": {"d_model": 256, "num_layers": 6, "num_heads": 4, "context": 256},
            "data": {"vocab_size": 4096},
            "train": {"batch_size": 16, "max_steps": 2000},
        },
        "seed": {
            "model": {"layout": "gpt2", **_SEED, "d_ff": 2048, "tie_embeddings": True, "zero_init": False},
            "train": {"batch_size": 192, "max_steps": 60_000},
            "optim": {"kind": "adamw", "lr": 3e-4},
            "schedule": {
                "kind": "cosine", "warmup_steps": 1000, "decay_steps": 54_000, "min_lr": 3e-5,
            },
        },
        "full": {
            "model": _SEED,
            "train": {"batch_size": 192, "max_steps": 20_000},
            "optim": {"lr": 0.01},
            "schedule": {"warmup_steps": 500},
        },
        "full-50m": {
            "model": _MEDIUM,
            "train": {"batch_size": 192, "max_steps": 20_000},
            "optim": {"lr": 0.01},
            "schedule": {"warmup_steps": 500},
        },
    },
)  # fmt: skip
