"""Colours and their names through one bottleneck: what comes back, and what is lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from surefoot.recipes import Recipe
from surefoot.recipes.colours.settings import ColoursConfig
from surefoot.seeds import derive

if TYPE_CHECKING:
    from torch import nn

    from surefoot.data.batch import Batch
    from surefoot.data.colours import Colours
    from surefoot.engine import Job, World
    from surefoot.recipes.colours.answers import Palette

__all__ = ["ColoursConfig", "recipe"]

EXAMPLES = ("rgb 0,0.28,0.73", "name dusty teal")  # written down while training


def build(config: ColoursConfig, world: World) -> Job:
    """Set up the list and the model."""
    from surefoot.data.colours import Names
    from surefoot.engine import Job, Learner
    from surefoot.nn.optim import build_optimisers
    from surefoot.recipes.colours.answers import Exam, Palette
    from surefoot.recipes.colours.pictures import pictures
    from surefoot.recipes.colours.tables import Tables, loss, vector_loss

    colours = listed(config)
    tables = Tables.of(colours, config.model, world.device)
    model = make(config, derive(config.train.seed, "init")).to(world.device)
    measure: Any = partial(loss, tables=tables, weights=config.loss)
    if config.model.reads == "vectors":
        measure = partial(vector_loss, tables=tables)
    exam = Exam(colours, tables, config)
    source = Names(colours)
    palette = Palette({}, colours, config.model.reads, config.model.gram_kinds)
    return Job(
        source=source,
        learners={"main": Learner(model, measure, build_optimisers(model, config.optim))},
        evals={"list": exam.scores},
        exams={"list": exam.scores_beside_words},
        samplers={text: partial(palette.write, text) for text in EXAMPLES if palette.can(text)},
        pictures=pictures(exam),
        data={"kind": "colours", "list": colours.list_name, "names": len(colours.names),
              "trained": len(source), "loss_unit": ""},
        notes=list(notes(config, colours)),
        show=partial(show, colours),
    )  # fmt: skip


def listed(config: ColoursConfig) -> Colours:
    """Return the list that the configuration names."""
    from surefoot.data.colours import load

    return load(config.data.list_name, config.data.val_ratio, config.data.most_names)


def make(config: ColoursConfig, seed: int = 0) -> nn.Module:
    """Return the model that the configuration describes."""
    from surefoot.recipes.colours.models import ColourModel, VectorModel

    size = config.model
    if size.reads == "vectors":
        return VectorModel(size.vector_width, size.bottleneck, size.vector_hidden, seed)
    return ColourModel(size, seed)


def notes(config: ColoursConfig, colours: Colours) -> Iterator[str]:
    """Say what is learned from, and who collected it."""
    held, total = int(colours.held_out.sum()), len(colours.names)
    values = len({bytes(value) for value in colours.values})
    who = {"wikipedia": "Wikipedia, by way of nc 1.2.0", "large": "color-name-list 14.29.0"}
    yield f"data   {total:,} names of {values:,} colours ({who[colours.list_name]}, MIT)"
    trained = len(colours.rows(held_out=False))
    yield f"       {trained:,} train and {held:,} are held out; names of one colour are never parted"


def show(colours: Colours, batch: Batch) -> str:
    """Write a batch of one example for a person."""
    from surefoot.data.colours import hex_code

    place = int(batch.fields["row"][0])
    return f"{colours.names[place]} {hex_code(colours.rgb[place])}"


def speak(config: ColoursConfig, files: Mapping[str, str], world: World) -> Palette:
    """Return the model, and how it answers."""
    from surefoot.recipes.colours.answers import Palette

    colours = listed(config)
    models = {"main": make(config).to(world.device)}
    return Palette(models, colours, config.model.reads, config.model.gram_kinds)


_TINY = {
    "rgb_hidden": 16, "name_hidden": 32, "gram_kinds": 512, "gram_width": 16, "waves": 16,
    "symbol_width": 8,
}  # fmt: skip

recipe = Recipe(
    name="colours",
    summary="colours and their names through one bottleneck",
    config=ColoursConfig,
    build=build,
    speak=speak,
    default_preset="laptop",
    presets={
        "tiny": {
            "model": _TINY,
            "train": {"batch_size": 32, "max_steps": 60},
            "schedule": {"warmup_steps": 10},
            "cadence": {"validate_every": 20, "sample_every": 30, "save_every": 10},
        },
        "laptop": {"train": {"batch_size": 256, "max_steps": 1000}},
        "full": {
            "data": {"list_name": "large"},
            "model": {"name_hidden": 512, "gram_kinds": 1 << 15, "waves": 256, "bottleneck": 16},
            "train": {"batch_size": 512, "max_steps": 4000},
        },
        "original": {
            "model": {"reads": "vectors", "bottleneck": 56},
            "optim": {"kind": "adamw"},
            "train": {"batch_size": 64, "max_steps": 4000},
        },
    },
)
