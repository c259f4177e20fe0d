"""Settings of `surefoot train multiply`."""

from __future__ import annotations

from typing import Any, Literal

from surefoot.config.learners import own
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

__all__ = ["MultiplyConfig", "Name", "Teaching"]

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
        20_000, "Problems asked by `surefoot evaluate`, at most.", ge=1
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
        False, "Widen the feed-forward parts until all are as large as the larger of two."
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
