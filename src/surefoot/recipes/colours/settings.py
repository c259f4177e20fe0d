"""Settings of `surefoot train colours`."""

from __future__ import annotations

from typing import Literal

from surefoot.config.schema import (
    Cadence,
    Machine,
    Optim,
    RunConfig,
    ScheduleConfig,
    Section,
    Train,
    circumstance,
    knob,
)

__all__ = ["ColoursConfig", "Weights"]


class Autoencoder(Section):
    """Which model, and how large it is."""

    reads: Literal["rgb", "names", "both", "vectors"] = knob(
        "both", "What goes in and comes out: colours, names, either and both, or names as vectors."
    )
    bottleneck: int = knob(8, "Numbers that everything must pass through.", ge=1)
    rgb_hidden: int = knob(64, "Width of the two hidden layers on the side of colours.", ge=1)
    name_hidden: int = knob(256, "Width of the hidden layers on the side of names.", ge=1)
    gram_kinds: int = knob(8192, "Pieces of names that can be told apart.", ge=2, le=1 << 20)
    gram_width: int = knob(64, "Numbers for each piece of a name.", ge=1)
    waves: int = knob(64, "Sines, and as many cosines, of the bottleneck that names are read from.", ge=1)  # fmt: skip
    wave_scale: float = knob(
        2.0, "How fast the waves are at first: more lets near points have names of their own.", gt=0
    )
    symbol_width: int = knob(16, "Numbers for each place of a name before its symbol.", ge=1)
    vector_width: int = knob(128, "vectors: numbers of a name.", ge=41)
    vector_hidden: int = knob(0, "vectors: width of a hidden layer on each side; 0 is none.", ge=0)


class NamesOfColours(Section):
    """Which list of names, and how much of it is held out."""

    list_name: Literal["wikipedia", "large"] = knob(
        "wikipedia", "wikipedia: 878 names; large: 31,881. Both come with the package."
    )
    val_ratio: float = knob(
        0.1, "Share of colours that are never trained on, with all their names.", gt=0, lt=0.9
    )
    most_names: int | None = knob(None, "Names that train, at most; default: all.", ge=1)
    val_batch: int = circumstance(1024, "Names looked at at once in an evaluation.", ge=1)
    train_names: int = circumstance(
        4000, "Training names that an evaluation asks for again, at most.", ge=1
    )


class Weights(Section):
    """What a way through the bottleneck counts in the loss; 0 leaves it out."""

    rgb_to_rgb: float = knob(300.0, "Squared error of a colour from itself.", ge=0)
    names_to_rgb: float = knob(10.0, "Squared error of the colour of a name.", ge=0)
    names_to_names: float = knob(1.0, "Nats a symbol of a name from itself.", ge=0)
    rgb_to_names: float = knob(1.0, "Nats a symbol of the name of a colour.", ge=0)


class ColoursConfig(RunConfig):
    """Settings of `surefoot train colours`."""

    model: Autoencoder = Autoencoder()
    data: NamesOfColours = NamesOfColours()
    loss: Weights = Weights()
    train: Train = Train(batch_size=256, max_steps=1000)
    optim: Optim = Optim(weight_decay=0.0)
    schedule: ScheduleConfig = ScheduleConfig(warmup_steps=50)
    # bf16 holds a channel to 1/256, which is more than the error that is asked for.
    machine: Machine = Machine(precision="fp32")
    cadence: Cadence = Cadence(validate_every=200, sample_every=400)

    def conflicts(self) -> list[tuple[str, str]]:
        """Return every broken rule between fields, ours and those of every run."""
        found = super().conflicts()
        every, reads = tuple(Weights.model_fields), self.model.reads
        used = {"both": every, "vectors": ()}.get(reads, (f"{reads}_to_{reads}",))
        if used and not any(getattr(self.loss, name) for name in used):
            found.append((f"loss.{used[0]}", "every weight that counts is 0; nothing is learned"))
        return found
