"""A character-level language model: the smallest real thing to learn from text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from surefoot.config.model import GPTConfig, Memory
from surefoot.config.schema import (
    Cadence,
    Optim,
    RunConfig,
    ScheduleConfig,
    Section,
    Train,
    circumstance,
    knob,
)
from surefoot.recipes import Adoption, Recipe
from surefoot.seeds import derive
from surefoot.track.picture import Bars, Grid, Picture

if TYPE_CHECKING:
    from torch import Tensor, nn

    from surefoot.data.batch import Batch
    from surefoot.data.text import Text
    from surefoot.data.tokenizer import Tokenizer
    from surefoot.engine import Drawing, Job, Loss, NextTokens, Scores, Speaker, World

__all__ = ["CharConfig", "TextData", "recipe"]

SAMPLE_TOKENS = 300
DRAWN = 4  # batches of held-out windows that pictures are made from
SYMBOLS = 24  # shown in the table of what is expected


class TextData(Section):
    """Which text is read, and how it is cut."""

    corpus: str = knob("shakespeare9", "Text by name; `surefoot data list` shows them.")
    path: Path | None = knob(None, "Your own text: a file, or a folder of text files.")
    val_ratio: float = knob(0.1, "Share of the text that is held out for validation.", gt=0, lt=0.9)
    vocabulary: Literal["char", "byte"] = knob(
        "char", "Symbols: characters seen, or all 256 bytes."
    )
    val_batch: int = circumstance(64, "Windows evaluated at once.", ge=1)


class CharConfig(RunConfig):
    """Settings of `surefoot train charlm`."""

    model: GPTConfig = GPTConfig()
    data: TextData = TextData()
    memory: Memory = Memory()
    train: Train = Train(batch_size=12, max_steps=2000)
    optim: Optim = Optim()
    schedule: ScheduleConfig = ScheduleConfig()
    cadence: Cadence = Cadence()


def build(config: CharConfig, world: World) -> Job:
    """Read the text, cut windows, and make one GPT."""
    from surefoot.engine import Job, Learner
    from surefoot.nn.gpt import GPT
    from surefoot.nn.optim import build_optimisers

    text = read(config)
    seed = derive(config.train.seed, "init")
    words, again = text.tokenizer.vocab_size, config.memory.checkpointing
    model = GPT(config.model, words, seed=seed, checkpointing=again).to(world.device)
    learner = Learner(model, loss, build_optimisers(model, config.optim))
    start = beginning(text.tokenizer)
    return Job(
        source=text.source(config.model.context),
        learners={"main": learner},
        evals={"held out": held_out(text, config, world)},
        samplers={start: partial(write, tokenizer=text.tokenizer)},
        pictures=dict(pictures(text, config, world)),
        data=text.describe(),
        notes=[f"data   {text.describe_line()}", *text.notes],
        files={"vocabulary.json": text.tokenizer.to_json()},
        settings={} if config.data.path else {"data.corpus": text.name},
        show=partial(show, tokenizer=text.tokenizer),
    )


def read(config: CharConfig) -> Text:
    """Return the text of `config`, encoded, with its split."""
    from surefoot.data.text import load_text

    data = config.data
    return load_text(
        data.path,
        data.corpus,
        val_ratio=data.val_ratio,
        vocabulary=data.vocabulary,
    )


def loss(model: nn.Module, batch: Batch) -> Loss:
    """Nats summed over the batch."""
    from surefoot.engine import Loss

    return Loss(model(batch.fields["x"], batch.fields["y"]))


def held_out(text: Text, config: CharConfig, world: World) -> NextTokens:
    """Return what measures loss, bits and accuracies over the whole held-out part."""
    from surefoot.engine import NextTokens

    batches = partial(text.windows, config.model.context, config.data.val_batch)
    unit = "val_bits_per_char" if config.data.vocabulary == "char" else "val_bits_per_byte"
    return NextTokens(batches, world.to, partial(told, unit=unit))


def told(scores: Scores, *, unit: str) -> dict[str, float]:
    """Return the metrics of scores."""
    return {
        "val_loss": scores.loss,
        unit: scores.loss / math.log(2),
        "top1": scores.top1,
        "top5": scores.top5,
    }


def pictures(text: Text, config: CharConfig, world: World) -> Iterator[tuple[str, Drawing]]:
    """Yield what is drawn at evaluations, from the first windows of the held-out part."""
    from surefoot.engine import confusions, loss_by_place

    def first() -> Iterator[Batch]:
        windows = text.windows(config.model.context, config.data.val_batch)
        return map(world.to, islice(windows, DRAWN))

    def by_place(model: nn.Module) -> Picture:
        bits = [nats / math.log(2) for nats in loss_by_place(model, first())]
        places = [str(place) for place in range(1, len(bits) + 1)]
        note = "The more characters came before, the better the next one can be told."
        return Bars("Loss by place in the context", places, bits, "bits", note)

    def by_symbol(model: nn.Module) -> Picture:
        listed, shares = confusions(model, first(), SYMBOLS)
        names = [_name(text.tokenizer.decode([symbol])) for symbol in listed]
        percent = [[100 * share for share in row] for row in shares]
        note = "The diagonal is what is told right; the frequent ones come first."
        return Grid(
            "What it expects", names, names, percent, "%", note,
            down="comes next", across="expected", low=0.0, high=100.0,
        )  # fmt: skip

    yield "place", by_place
    yield "symbol", by_symbol


def _name(symbol: str) -> str:
    return {" ": "␣", "\n": "⏎", "\t": "⇥"}.get(symbol, symbol)


def show(batch: Batch, *, tokenizer: Tokenizer) -> str:
    """Return a window, and after the arrow the last character to predict."""
    window, last = batch.fields["x"][0], batch.fields["y"][0, -1:]
    given, wanted = tokenizer.decode(window), tokenizer.decode(last)
    return "".join(map(_name, given)).replace("␣", " ") + " → " + _name(wanted)


def beginning(tokenizer: Tokenizer) -> str:
    """Return what samples go on from: a new line, or the first symbol where a text has no lines."""
    symbols = tokenizer.decode(range(tokenizer.vocab_size))
    return "\n" if "\n" in symbols else symbols[0]


def write(model: nn.Module, seed: int, *, tokenizer: Tokenizer) -> str:
    """Return what the model writes from its `beginning`."""
    from surefoot.engine import Request, TextSpeaker

    request = Request(beginning(tokenizer), SAMPLE_TOKENS, temperature=0.8, seed=seed)
    return "".join(TextSpeaker({"main": model}, tokenizer).reply("main", request))


def speak(config: CharConfig, files: Mapping[str, str], world: World) -> Speaker:
    """Return the model without its text, and how it continues a prompt."""
    from surefoot.data.tokenizer import tokenizer_from_json
    from surefoot.engine import TextSpeaker
    from surefoot.nn.gpt import GPT

    kept = "vocabulary.json"
    tokenizer = tokenizer_from_json(files.get(kept, ""), where=kept)
    model = GPT(config.model, tokenizer.vocab_size).to(world.device)
    return TextSpeaker({"main": model}, tokenizer, beginning(tokenizer))


def adopt(tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> Adoption:
    """Read the sizes of a GPT; the text must have as many kinds of characters as the embedding."""
    from surefoot.nn.foreign import gpt_sizes, gpt_weights

    weights, notes = gpt_weights(tensors)
    sizes, left = gpt_sizes(weights, said)
    symbols = len(weights["embed.weight"])
    kind = "byte" if symbols == 256 else "char"
    if kind == "char":
        notes.append(f"{symbols} kinds of characters, taken in the order of their code points")
    settings = {f"model.{field}": value for field, value in sizes.items()}
    return Adoption(
        {"main": weights}, settings | {"data.vocabulary": kind},
        {f"model.{field}": why for field, why in left.items()}, notes,
    )  # fmt: skip


_FULL = {"d_model": 384, "num_layers": 6, "num_heads": 6, "context": 256}
_CLASSIC = {
    "optim": {"kind": "adamw", "lr": 1e-3, "beta2": 0.99},
    "schedule": {"kind": "cosine", "warmup_steps": 100, "min_lr": 1e-4},
}

recipe = Recipe(
    name="charlm",
    summary="a character-level language model on Shakespeare, or on any text",
    config=CharConfig,
    build=build,
    speak=speak,
    adopt=adopt,
    default_preset="laptop",
    presets={
        "tiny": {
            "model": {"d_model": 32, "num_layers": 2, "num_heads": 2, "context": 32},
            "train": {"batch_size": 8, "max_steps": 60},
            "schedule": {"warmup_steps": 10},
            "cadence": {"validate_every": 20, "sample_every": 30, "save_every": 10},
        },
        "laptop": {
            "model": {"d_model": 128, "num_layers": 4, "num_heads": 4, "context": 64},
            "train": {"batch_size": 12, "max_steps": 2000},
        },
        "classic": {
            "model": {"layout": "gpt2", "d_model": 128, "context": 64},
            "train": {"batch_size": 12, "max_steps": 2000},
            **_CLASSIC,
        },
        "full": {
            "model": {**_FULL, "dropout": 0.2},
            "train": {"batch_size": 64, "max_steps": 5000},
        },
        "full-classic": {
            "model": {"layout": "gpt2", **_FULL, "dropout": 0.2},
            "train": {"batch_size": 64, "max_steps": 5000},
            **_CLASSIC,
        },
    },
)
