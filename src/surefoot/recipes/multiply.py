"""Multiplication, learned side by side: does a bottleneck of latents help a transformer?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from surefoot.config.learners import alone, own
from surefoot.config.model import EncoderDecoderConfig
from surefoot.config.schema import (
    Cadence,
    RunConfig,
    ScheduleConfig,
    Section,
    Train,
    circumstance,
    growing,
    knob,
)
from surefoot.recipes import Recipe
from surefoot.seeds import derive

if TYPE_CHECKING:
    from torch import nn

    from surefoot.data.arithmetic import Pairs, Problems, Split
    from surefoot.data.batch import Batch
    from surefoot.data.notation import Form
    from surefoot.engine import Job, Learner, Loss, World

__all__ = ["MultiplyConfig", "recipe"]

VALIDATE, TEST = 1, 2  # parts of the split

Name = Literal["simple", "latent", "decoder"]


class Arithmetic(Section):
    """Which problems there are, and how they are written."""

    min_digits: int = knob(2, "Digits of the shortest numbers; zero has one.", ge=1, le=6)
    max_digits: int = knob(2, "Digits of the longest numbers.", ge=1, le=6)
    num_problems: int | None = knob(
        None, "Training problems; default: each ordered pair that trains, once.", ge=1
    )
    replacement: bool = knob(
        False, "Draw problems again and again, lengths evenly; off: all are different."
    )
    operand_order: Literal["both", "ascending", "descending"] = knob(
        "both", "Which of two numbers comes first: either, the smaller or the larger."
    )
    reversed: bool = knob(True, "Write numbers with the least significant digit first.")
    padding: bool = knob(False, "Fill numbers with zeros to their full width.")
    work: bool = knob(
        True, "Write the product with each digit of the second number before the answer."
    )
    val_ratio: float = knob(0.1, "Share of unordered pairs that validates.", gt=0, lt=0.9)
    test_ratio: float = knob(0.1, "Share that only `surefoot evaluate` asks.", ge=0, lt=0.9)
    val_problems: int = circumstance(2000, "Problems asked at each evaluation, at most.", ge=1)
    test_problems: int = circumstance(
        100_000, "Problems asked by `surefoot evaluate`, at most.", ge=1
    )
    val_batch: int = circumstance(1000, "Problems asked at once.", ge=1)

    def conflicts(self) -> list[tuple[str, str]]:
        """Return broken rules between these fields as (field, explanation)."""
        found = []
        if self.min_digits > self.max_digits:
            text = f"min_digits {self.min_digits} is more than max_digits {self.max_digits}"
            found.append(("min_digits", text))
        if self.replacement and self.num_problems is None:
            found.append(("num_problems", "with replacement it must be said how many to draw"))
        if self.val_ratio + self.test_ratio > 0.95:
            found.append(("test_ratio", "val_ratio and test_ratio leave nothing to train on"))
        return found


class SequenceLossConfig(Section):
    """What is minimised beside the cross-entropy of the tokens."""

    sequence_weight: float = knob(
        0.0, "Weight of 1 - probability of the whole answer; 0 is plain cross-entropy.", ge=0
    )


class Teaching(Section):
    """Teacher forcing: how often the decoder reads the true token, and not what it would say."""

    forcing: Literal["constant", "linear", "exponential", "inverse-sigmoid"] = knob(
        "constant", "How the share of true tokens falls; constant: it does not."
    )
    first_share: float = knob(1.0, "Share of true tokens at the beginning.", ge=0, le=1)
    last_share: float = knob(0.0, "Share of true tokens at the end.", ge=0, le=1)
    fall_steps: int = knob(1000, "Steps that the fall takes.", ge=1)
    start_step: int | Literal["stable"] = knob(
        0, "Step at which it begins to fall; `stable`: when the loss is."
    )
    stable_window: int = knob(50, "stable: losses in each of the two windows compared.", ge=1)
    stable_tolerance: float = knob(
        0.02, "stable: relative difference of their means that counts as none.", gt=0
    )


class Learners(Section):
    """Who learns, side by side on the same batches, and what each has of its own."""

    active: tuple[Name, ...] = growing(
        ("simple", "latent"), "Which of simple, latent, decoder; a resume may add.", min_length=1
    )
    match_params: bool = knob(
        False, "Widen the feed-forward parts until all are as large as the larger of the first two."
    )
    simple: dict[str, Any] = knob({}, "Encoder-decoder: settings of its own.")
    latent: dict[str, Any] = knob({}, "With latents in between: settings of its own.")
    decoder: dict[str, Any] = knob({}, "Decoder only: settings of its own.")


class MultiplyConfig(RunConfig):
    """Settings of `surefoot train multiply`."""

    model: EncoderDecoderConfig = EncoderDecoderConfig()
    data: Arithmetic = Arithmetic()
    loss: SequenceLossConfig = SequenceLossConfig()
    curriculum: Teaching = Teaching()
    learners: Learners = Learners()
    train: Train = Train(batch_size=128, max_steps=1500)
    schedule: ScheduleConfig = ScheduleConfig()
    cadence: Cadence = Cadence()

    def conflicts(self) -> list[tuple[str, str]]:
        """Return every broken rule between fields, ours and those of every run."""
        found = super().conflicts()
        names = self.learners.active
        if len(set(names)) < len(names):
            found.append(("learners.active", "a learner is named twice"))
        if self.learners.match_params:
            fixed = [n for n in names if "model.d_ff" in own(self, n)]
            found += [(f"learners.{n}", "match_params chooses its d_ff") for n in fixed]
        return found


def build(config: MultiplyConfig, world: World) -> Job:
    """Set up the problems and the learners."""
    from surefoot.engine import Job

    split, form = parts(config)
    source = problems(config, split, form)
    held = pairs(config, split, form, VALIDATE, config.data.val_problems)
    tested = pairs(config, split, form, TEST, config.data.test_problems)
    ask = partial(ask_all, config=config, to=world.to)
    return Job(
        source=source,
        learners={name: learner(config, name, form, world) for name in config.learners.active},
        evals={"held out": partial(ask, pairs=held)},
        exams={"test": partial(ask, pairs=tested)} if config.data.test_ratio else {},
        samplers={f"{a} x {b} = ": partial(say, a=a, b=b, form=form) for a, b in held.first(2)},
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
    """Return the training problems; noise comes with them where teachers fall silent."""
    from surefoot.data.arithmetic import Problems

    data = config.data
    noise = any(forced(alone(config, n).curriculum) for n in config.learners.active)
    return Problems(
        split, form, data.num_problems, data.replacement, data.operand_order, noise=noise
    )


def pairs(config: MultiplyConfig, split: Split, form: Form, part: int, most: int) -> Pairs:
    """Return problems of a part that is held out."""
    from surefoot.data.arithmetic import Pairs

    return Pairs(split, form, part, most, config.data.operand_order)


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
    parts = {"digits": found.hits, "exact": (found.right * count).sum()}
    if "noise" in fields:
        parts["teacher_forcing"] = found.hits.new_tensor(level * batch.weight)
    return Loss(found.loss, parts)


def ask_all(
    model: Any, *, pairs: Pairs, config: MultiplyConfig, to: Callable[[Batch], Batch]
) -> dict[str, float]:
    """Ask every problem of `pairs`; the model answers by itself, each token from its own before.

    `val_loss` is that of the right answer, in nats a token; `digits` the share of right tokens,
    `exact` of right answers; of the test set also its interval of 95 %, and how many were asked.
    """
    import numpy as np
    import torch

    from surefoot.engine import wilson
    from surefoot.nn.sequence_loss import SequenceAccuracyLoss

    criterion, nats, tokens, hits = SequenceAccuracyLoss(), 0.0, 0, 0
    numbers = []
    a, b = pairs.numbers
    for batch in map(to, pairs.batches(config.data.val_batch)):
        question, targets = batch.fields["question"], batch.fields["targets"]
        nats += float(criterion(model(question, batch.fields["inputs"]), targets).loss)
        said, _ = _answers(model, question, pairs.form)
        tokens += batch.weight
        hits += int(torch.count_nonzero((said == targets) & (targets != -100)))
        numbers.append(pairs.form.read(said.cpu().numpy()))
    exact = int(np.count_nonzero(np.concatenate(numbers) == a * b))
    found = {"val_loss": nats / tokens, "digits": hits / tokens, "exact": exact / len(a)}
    if pairs.part == TEST:
        low, high = wilson(exact, len(a))
        found |= {"exact_low": low, "exact_high": high, "asked": float(len(a))}
    return found


def _answers(model: Any, question: Any, form: Form) -> Any:
    from surefoot.data.notation import END, START
    from surefoot.engine import free_running

    return free_running(model, question, form.answer_length, start=START, end=END)


def answer(model: Any, a: int, b: int, form: Form) -> tuple[int | None, str, float]:
    """Return what a model says a x b is, what it wrote for it, and how sure it was of all that."""
    import numpy as np
    import torch

    question = form.question(np.array([a]), np.array([b]))
    device = next(model.parameters()).device
    said, sure = _answers(model, torch.from_numpy(question).to(device), form)
    number = int(form.read(said.cpu().numpy())[0])
    return None if number < 0 else number, form.text(said[0].tolist()), float(sure[0])


def say(model: nn.Module, seed: int, *, a: int, b: int, form: Form) -> str:
    """Return the answer to one problem, and whether it is right."""
    number, wrote, sure = answer(model, a, b, form)
    verdict = "right" if number == a * b else f"wrong, it is {a * b}"
    return f"{wrote if number is None else number} ({verdict}; {sure:.0%} sure)"


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


_TINY = {"d_model": 32, "num_layers": 1, "num_heads": 2}

recipe = Recipe(
    name="multiply",
    summary="multiplication, by a simple and a latent transformer side by side",
    config=MultiplyConfig,
    build=build,
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
            "train": {"batch_size": 128, "max_steps": 1500},
        },
        "full": {
            "data": {
                "min_digits": 3,
                "max_digits": 3,
                "num_problems": 1_000_000,
                "replacement": True,
            },
            "train": {"batch_size": 128, "max_steps": 5000},
        },
    },
)
