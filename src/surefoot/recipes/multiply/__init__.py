"""Multiplication, learned side by side: does a bottleneck of latents help a transformer?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from surefoot.config.learners import alone
from surefoot.config.model import EncoderDecoderConfig
from surefoot.recipes import Adoption, Recipe
from surefoot.recipes.multiply.settings import MultiplyConfig, Name, Teaching
from surefoot.seeds import derive

if TYPE_CHECKING:
    from torch import Tensor, nn

    from surefoot.data.arithmetic import Problems, Split
    from surefoot.data.batch import Batch
    from surefoot.data.notation import Form
    from surefoot.engine import Job, Learner, Loss, World
    from surefoot.recipes.multiply.answers import Calculator

__all__ = ["MultiplyConfig", "recipe"]

VALIDATE, TEST = 1, 2  # parts of the split


def build(config: MultiplyConfig, world: World) -> Job:
    """Set up the problems and the learners."""
    from surefoot.data.arithmetic import Pairs
    from surefoot.engine import Job
    from surefoot.recipes.multiply.answers import Exam, say
    from surefoot.recipes.multiply.pictures import pictures

    data, (split, form) = config.data, parts(config)
    source = problems(config, split, form)
    held = Pairs(split, form, VALIDATE, data.val_problems, data.operand_order)
    tested = Pairs(split, form, TEST, data.test_problems, data.operand_order)
    exam = Exam(held, data.val_batch, world.to)
    test = Exam(tested, data.val_batch, world.to)
    return Job(
        source=source,
        learners={name: learner(config, name, form, world) for name in config.learners.active},
        evals={"held out": exam.scores},
        exams={"test": test.scores_with_interval} if data.test_ratio else {},
        samplers={f"{a} x {b} = ": partial(say, a=a, b=b, form=form) for a, b in held.first(2)},
        pictures=pictures(exam),
        data=describe(source),
        notes=list(notes(config, source)),
    )


def parts(config: MultiplyConfig) -> tuple[Split, Form]:
    """Return who is held out, and how problems are written."""
    from surefoot.data.arithmetic import Split
    from surefoot.data.notation import Form

    data = config.data
    split = Split(
        data.min_digits, data.max_digits, data.val_ratio, data.test_ratio, config.train.seed
    )
    return split, Form(data.max_digits, data.reversed, data.padding, data.work)


def problems(config: MultiplyConfig, split: Split, form: Form) -> Problems:
    """Return the training problems; noise comes with them where teachers may fall silent.

    They do not depend on who is active, so that a learner can be added.
    """
    from surefoot.data.arithmetic import Problems

    data = config.data
    noise = any(forced(alone(config, name).curriculum) for name in get_args(Name))
    return Problems(
        split, form, data.num_problems, data.replacement, data.operand_order, noise=noise
    )


def forced(teaching: Teaching) -> bool:
    """Whether the decoder ever reads what it would have said."""
    return teaching.forcing != "constant" or teaching.first_share < 1


def learner(config: MultiplyConfig, name: Name, form: Form, world: World) -> Learner:
    """Return one learner, from nothing but its own configuration."""
    from surefoot.engine import Learner, TeacherForcing
    from surefoot.nn.optim import build_optimisers
    from surefoot.nn.sequence_loss import SequenceAccuracyLoss

    mine = alone(config, name)
    model = make(config, name, form, derive(config.train.seed, "init")).to(world.device)
    teach, curriculum = mine.curriculum, None
    if forced(teach):
        start = None if teach.start_step == "stable" else teach.start_step
        curriculum = TeacherForcing(
            teach.forcing, teach.first_share, teach.last_share, teach.fall_steps, start,
            teach.stable_window, teach.stable_tolerance,
        )  # fmt: skip
    measure = partial(loss, criterion=SequenceAccuracyLoss(mine.loss.sequence_weight))
    return Learner(model, measure, build_optimisers(model, mine.optim), curriculum=curriculum)


def make(config: MultiplyConfig, name: Name, form: Form, seed: int = 0) -> nn.Module:
    """Return the model of one learner, as large as the largest where they are to match."""
    if not config.learners.match_params:
        return _model(alone(config, name).model, name, form, seed)
    pair: tuple[Name, Name] = ("simple", "latent")  # whoever else is active: beside is as alone
    wanted = max(_count(_model(alone(config, n).model, n, form)) for n in pair)
    mine = alone(config, name).model
    width = mine.block().ff_width
    small, large = (
        _count(_model(mine.model_copy(update={"d_ff": w}), name, form)) for w in (width, width + 1)
    )
    wide = max(1, width + round((wanted - small) / (large - small)))
    return _model(mine.model_copy(update={"d_ff": wide}), name, form, seed)


def _model(size: EncoderDecoderConfig, name: Name, form: Form, seed: int = 0) -> nn.Module:
    from surefoot.data.notation import ALPHABET
    from surefoot.nn.latent import DecoderOnly, LatentTransformer, SimpleTransformer

    kind = {"simple": SimpleTransformer, "latent": LatentTransformer, "decoder": DecoderOnly}[name]
    return kind(size, len(ALPHABET), form.question_length, form.answer_length, seed=seed)


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def loss(model: nn.Module, batch: Batch, level: float = 1.0, *, criterion: Any) -> Loss:
    """Return the loss over the tokens of the answers; `level` of them read the true token before.

    The others read what the model says when it is shown the truth up to there: two passes
    (Mihaylova and Martins, "Scheduled Sampling for Transformers", 2019).
    """
    import torch

    from surefoot.engine import Loss

    fields = batch.fields
    inputs, parts = fields["inputs"], {}
    if "noise" in fields and level < 1:
        with torch.no_grad():
            said = model(fields["question"], inputs).argmax(-1)[:, :-1]  # [m, T - 1]
        kept = fields["noise"][:, 1:] < level
        inputs = torch.cat((inputs[:, :1], torch.where(kept, inputs[:, 1:], said)), 1)
    found = criterion(model(fields["question"], inputs), fields["targets"])
    count = (fields["targets"] != -100).sum(1)
    parts = {"token_accuracy": found.hits, "sequence_accuracy": (found.right * count).sum()}
    if "noise" in fields:
        parts["teacher_forcing"] = found.hits.new_tensor(level * batch.weight)
    return Loss(found.loss, parts)


def describe(source: Problems) -> dict[str, Any]:
    """Return for the record what is learned from."""
    val, test = source.split.held_out
    return {
        "kind": "multiplication",
        "pairs": source.split.pairs,
        "val_pairs": val,
        "test_pairs": test,
        "problems": len(source),
        "trained_pairs": source.distinct,
    }


def notes(config: MultiplyConfig, source: Problems) -> Iterator[str]:
    """Say what is learned from, and what does not make sense."""
    data, facts = config.data, describe(source)
    digits = f"{data.min_digits} to " if data.min_digits < data.max_digits else ""
    plural = "" if data.max_digits == 1 else "s"
    many = "problems drawn from" if data.replacement else "different problems from"
    yield (
        f"data   numbers of {digits}{data.max_digits} digit{plural}: {facts['pairs']:,} pairs, of which "
        f"{facts['val_pairs']:,} validate and {facts['test_pairs']:,} test"
    )
    share = facts["trained_pairs"] / facts["pairs"]
    yield (
        f"       {len(source):,} {many} {facts['trained_pairs']:,} pairs, {share:.1%} of the space"
    )
    for name in config.learners.active:
        latents = alone(config, name).model.num_latent
        if name == "latent" and latents >= source.form.question_length:
            yield f"       {latents} latents for {source.form.question_length} tokens are no bottleneck"


def speak(config: MultiplyConfig, files: Mapping[str, str], world: World) -> Calculator:
    """Return the models, and how they answer."""
    from surefoot.recipes.multiply.answers import Calculator

    _, form = parts(config)
    names = config.learners.active
    return Calculator({n: make(config, n, form).to(world.device) for n in names}, form)


def adopt(tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> Adoption:
    """Read the sizes of a simple or latent learner, and from its places which problems it knows."""
    from surefoot.data.notation import Form
    from surefoot.nn.latent import dimensions, lengths

    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    question, answer = lengths(shapes)
    settings: dict[str, Any] = {f"model.{k}": v for k, v in dimensions(shapes).items()}
    for form in (f for f in Form.all(question // 2) if f.answer_length == answer):
        settings |= {"data.max_digits": form.digits, "data.min_digits": min(2, form.digits)}
        settings |= {"data.work": form.work, "data.padding": form.padding}
    name = "latent" if "latents.weight" in tensors else "simple"
    return Adoption({name: tensors}, settings | {"learners.active": (name,)})


_TINY = {"d_model": 32, "num_layers": 1, "num_heads": 2}

recipe = Recipe(
    name="multiply",
    summary="multiplication, by a simple and a latent transformer side by side",
    config=MultiplyConfig,
    build=build,
    adopt=adopt,
    speak=speak,
    default_preset="laptop",
    presets={
        "tiny": {
            "model": _TINY,
            "data": {
                "min_digits": 1,
                "max_digits": 1,
                "num_problems": 10_000,
                "replacement": True,
            },
            "train": {"batch_size": 16, "max_steps": 60},
            "schedule": {"warmup_steps": 10},
            "cadence": {"validate_every": 20, "sample_every": 30, "save_every": 10},
        },
        "laptop": {
            "data": {"num_problems": 1_000_000, "replacement": True},
            "train": {"batch_size": 128, "max_steps": 1200},
        },
        "full": {
            "data": {
                "min_digits": 3,
                "max_digits": 3,
                "num_problems": 1_000_000,
                "replacement": True,
            },
            "train": {"batch_size": 128, "max_steps": 4000},
        },
    },
)
