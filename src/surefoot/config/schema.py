"""Every shared knob of a run: type, range, default, meaning, and whether it changes the numbers.

A field is *identity* (it changes the numbers: a resume must repeat it) or *circumstance* (how
often we look, where files go: a resume may change it). Values are frozen; unknown keys are
refused. This module builds nothing and imports no torch.
"""

from __future__ import annotations

import re
from math import inf, isqrt
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from surefoot.config.learners import broken
from surefoot.config.units import parse_bytes, parse_seconds

__all__ = [
    "Cadence",
    "Keep",
    "Machine",
    "Ops",
    "Optim",
    "RunConfig",
    "ScheduleConfig",
    "Section",
    "Track",
    "Train",
    "circumstance",
    "growing",
    "knob",
    "largest_divisor",
]

MOST_THREADS = 1024  # with very many, libraries take the stack and the process dies without a word


def knob(default: Any, doc: str, **rules: Any) -> Any:
    """Declare a field that changes the numbers (identity)."""
    return Field(default, description=doc, json_schema_extra={"identity": True}, **rules)


def circumstance(default: Any, doc: str, **rules: Any) -> Any:
    """Declare a field that does not change the numbers; a resume may change it."""
    return Field(default, description=doc, json_schema_extra={"identity": False}, **rules)


def growing(default: Any, doc: str, **rules: Any) -> Any:
    """Declare a field that changes the numbers, and to which a resume may add."""
    rules |= {"json_schema_extra": {"identity": True, "growing": True}}
    return Field(default, description=doc, **rules)


class Section(BaseModel):
    """One named group of settings: frozen, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


class Train(Section):
    """How long and with what randomness."""

    seed: int = knob(1, "Seed of everything random: weights, data order, dropout.", ge=0)
    batch_size: int = knob(
        64, "Examples per update, over all devices and micro-batches.", ge=1, le=1_000_000
    )
    batch_warmup: int = knob(
        0, "Steps over which batches grow: an eighth, a quarter and half of batch_size first.", ge=0
    )
    max_steps: int | None = circumstance(
        1000, "Stop at exactly this step; `none` trains until stopped.", ge=1
    )
    epochs: float | None = circumstance(
        None, "Another way to say max_steps: passes over the training data.", gt=0
    )
    steps_per_epoch: int | None = circumstance(
        None, "Steps that count as one epoch; default: all training examples once.", ge=1
    )
    ema: float | None = knob(
        None, "Decay of an exponential moving average of the weights, used to evaluate.", gt=0, lt=1
    )
    patience: int = knob(
        0, "Stop after this many evaluations without improvement (0 = never).", ge=0
    )
    min_delta: float = knob(0.0, "Improvement in validation loss that counts, in nats.", ge=0)
    restore_best: bool = knob(
        True, "When stopped early, end with the best weights seen and not the last."
    )
    nonfinite: Literal["skip", "rollback", "stop"] = knob(
        "skip",
        "What to do when a loss or gradient is NaN, infinite, or a spike (see spike_factor); "
        "weights are never touched.",
    )
    nonfinite_limit: int = knob(10, "Stop after this many such steps in a row.", ge=1)
    spike_factor: float | None = knob(
        None, "A loss so many times the median of the last 64 is a spike; 2 to 4 is usual.", gt=1
    )
    rollback_every: int = knob(
        100, "With nonfinite=rollback: return to the newest multiple of this step.", ge=1
    )
    rollback_factor: float = knob(
        0.5, "With nonfinite=rollback: multiply the learning rate by this.", gt=0, le=1
    )


class Optim(Section):
    """The optimiser: AdamW for everything, or Muon for hidden matrices and AdamW for the rest."""

    kind: Literal["adamw", "muon"] = knob("muon", "adamw, or muon for hidden matrices.")
    lr: float = knob(3e-3, "Peak learning rate of AdamW. Seen to work: 3e-4 to 4e-3.", gt=0)
    muon_lr: float = knob(0.02, "Peak learning rate of Muon. Seen to work: 0.005 to 0.04.", gt=0)
    momentum: float = knob(0.95, "Momentum of Muon.", ge=0, lt=1)
    beta1: float = knob(0.9, "AdamW: decay of the first moment.", ge=0, lt=1)
    beta2: float = knob(0.99, "AdamW: decay of the second moment.", ge=0, lt=1)
    eps: float = knob(1e-8, "AdamW: added to the denominator.", gt=0)
    weight_decay: float = knob(0.1, "Decoupled weight decay of matrices (never of norms).", ge=0)
    clip: float = knob(1.0, "Largest norm of the whole gradient; 0 does not clip.", ge=0)


class ScheduleConfig(Section):
    """The learning rate over time, as a fraction of the peak."""

    kind: Literal["constant", "cosine", "wsd", "onecycle"] = knob(
        "cosine", "constant, cosine, wsd (warmup, plateau, decay) or onecycle."
    )
    warmup_steps: int = knob(100, "Steps of linear warmup.", ge=0)
    decay_steps: int | None = knob(
        None, "Steps after which the floor is reached, then held; default: the horizon.", ge=1
    )
    decay_fraction: float = knob(0.2, "wsd: share of the horizon spent decaying.", gt=0, le=1)
    min_lr: float = knob(0.0, "Floor, on the scale of optim.lr (other groups in proportion).", ge=0)
    horizon: int | None = knob(
        None, "Steps that the schedule is planned for; default: max_steps at the first start.", ge=1
    )


class Machine(Section):
    """Which device, and how its arithmetic is done. Every `auto` is resolved before step 0."""

    device: str = knob("auto", "auto, cpu, cuda, cuda:1 or mps.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = knob(
        "auto", "Arithmetic of the forward pass; weights and optimiser stay in fp32."
    )
    compile: Literal["auto", "on", "off"] = knob("auto", "torch.compile the model in place.")
    threads: int | Literal["auto"] = knob("auto", "CPU threads of one operation.")
    matmul: Literal["auto", "default", "onednn"] = knob(
        "auto", "CPU library for fp32 matrix products, chosen by speed at equal accuracy."
    )
    micro_batch_size: int | Literal["auto"] = knob(
        "auto", "Examples per forward pass; the batch is made of such pieces."
    )
    devices: int | None = circumstance(
        None, "Processes on this machine, one for each device, that share the batch.", ge=1
    )
    parallel: Literal["auto", "none", "ddp", "fsdp2", "hsdp"] = circumstance(
        "auto", "Whole replicas (ddp), or weights split over devices (fsdp2; hsdp within groups)."
    )
    reduce: Literal["ordered", "tree"] = knob(
        "ordered",
        "How gradients are added: in the order of the processes, or in a tree over micro-batches, "
        "which gives the same bits for any number of processes.",
    )
    hang_timeout: str = circumstance(
        "10min", "How long a process may lag behind the others before all are ended."
    )
    prefetch_threads: int | Literal["auto"] = circumstance(
        "auto", "Threads that compute batches ahead; never changes a batch."
    )

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
            raise ValueError("expected auto, cpu, mps, cuda or cuda:N")
        return value

    @field_validator("hang_timeout")
    @classmethod
    def _hang_timeout(cls, value: str) -> str:
        if parse_seconds(value) <= 0:
            raise ValueError("expected a time longer than 0")
        return value

    @field_validator("threads", "micro_batch_size", "prefetch_threads", mode="after")
    @classmethod
    def _count(cls, value: int | str, info: Any) -> int | str:
        least = 0 if info.field_name == "prefetch_threads" else 1
        most = inf if info.field_name == "micro_batch_size" else MOST_THREADS
        if isinstance(value, int) and not least <= value <= most:
            bound = f"at least {least}" if value < least else f"at most {most}"
            raise ValueError(f"expected auto or a number of {bound}")
        return value


class Ops(Section):
    """Which way an operation is computed, by name or from a file; see `surefoot ops`."""

    attention: str = knob(
        "auto", "Attention: auto, reference, sdpa, sdpa_fp32, matmul, tiles, compile."
    )
    cross_entropy: str = knob(
        "auto", "Head and loss at once: auto, reference, chunked, torch, compile, triton."
    )
    norm: str = knob("auto", "RMSNorm: auto, reference, fused, torch, compile, triton.")
    rotary: str = knob("auto", "Rotary positions, with QK-norm: auto, reference, fused, compile.")
    swiglu: str = knob("auto", "SwiGLU's gate: auto, reference, recomputed, compile, triton.")
    squared_relu: str = knob("auto", "Squared ReLU: auto, reference, fused, compile, triton.")
    keyed_dropout: str = knob("auto", "Dropout: auto, reference, table, compile, triton.")
    adamw: str = knob("auto", "A step of AdamW: auto, reference, foreach, fused.")
    within: str = knob("auto", "Attention within documents: auto, reference, sdpa, compile, flex.")
    orthogonalise: str = knob("auto", "A step of Muon: auto, reference, bf16, compile.")

    def ways(self) -> dict[str, str]:
        """Return the way that is asked for of each operation."""
        return {name: str(way) for name, way in self}


class Cadence(Section):
    """How often we look. In steps; 0 means never."""

    log_every: int = circumstance(10, "Steps between rows of training metrics.", ge=0)
    validate_every: int = circumstance(250, "Steps between evaluations.", ge=0)
    sample_every: int = circumstance(500, "Steps between samples.", ge=0)
    save_every: int | str = circumstance(
        "auto", "Steps between checkpoints, or a time like 5min, or auto (costs at most 1 %)."
    )

    @field_validator("save_every")
    @classmethod
    def _save_every(cls, value: int | str) -> int | str:
        if isinstance(value, str) and value != "auto":
            if value.isdigit():
                return int(value)
            parse_seconds(value)
        if isinstance(value, int) and value < 0:
            raise ValueError("expected steps (0 = only at the end), a time like 5min, or auto")
        return value


class Keep(Section):
    """Which checkpoints stay on the disk."""

    last: int = circumstance(2, "Newest checkpoints kept; never fewer than two.", ge=2)
    best: int = circumstance(1, "Best checkpoints by validation loss kept.", ge=0)
    milestones: int = circumstance(0, "Also keep checkpoints at multiples of this step.", ge=0)
    max_disk: str | None = circumstance(None, "Disk that checkpoints may take, like 2GB.")
    sharded: bool = circumstance(
        False,
        "Where weights are split over processes, let each write its own part of a checkpoint.",
    )
    mirror: Path | None = circumstance(
        None, "Folder on another disk or a mounted drive that receives a copy of the run."
    )

    @field_validator("max_disk")
    @classmethod
    def _max_disk(cls, value: str | None) -> str | None:
        if value is not None:
            parse_bytes(value)
        return value


class Track(Section):
    """What is recorded besides metrics.jsonl."""

    tensorboard: bool = circumstance(True, "Write TensorBoard events to tb/.")
    report: bool = circumstance(True, "Write report.html and plots/.")
    tags: tuple[str, ...] = circumstance((), "Words to find the run by.")
    profile: bool = circumstance(
        False, "Profile five of the first steps: where the time goes, and a trace for Perfetto."
    )
    update_ratio: bool = circumstance(
        False, "Also log how far updates move the weights, relative to their size, by layer."
    )
    life_check: bool = circumstance(
        True, "Look in the first steps whether the model learns, and name what does not."
    )
    compile_check: bool = circumstance(
        True, "Ask before training whether compiled code gives the model's gradient."
    )
    monitor: bool = circumstance(
        True, "Watch the machine: how busy, how full, how hot; warn, with advice."
    )
    sinks: tuple[str, ...] = circumstance(
        (), "Python files with `open_sink`, each told everything that is recorded."
    )


class RunConfig(Section):
    """A whole run. Recipes extend it with `model`, `data` and sections of their own."""

    train: Train = Train()
    optim: Optim = Optim()
    schedule: ScheduleConfig = ScheduleConfig()
    machine: Machine = Machine()
    ops: Ops = Ops()
    cadence: Cadence = Cadence()
    keep: Keep = Keep()
    track: Track = Track()

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        problems = self.conflicts()
        if problems:
            raise ValueError("\x1e".join(f"{field}\x1f{text}" for field, text in problems))
        return self

    def conflicts(self) -> list[tuple[str, str]]:
        """Return every broken rule between fields as (field path, explanation)."""
        found = list(self._batch_conflicts()) + list(self._schedule_conflicts())
        for section in self.__class__.model_fields:
            rules = getattr(getattr(self, section), "conflicts", None)
            if rules is not None:
                found += [(f"{section}.{field}", text) for field, text in rules()]
        return [*found, *broken(self)]

    def _batch_conflicts(self) -> list[tuple[str, str]]:
        micro, batch = self.machine.micro_batch_size, self.train.batch_size
        if isinstance(micro, int) and batch % micro:
            near = largest_divisor(batch, micro)
            text = f"{micro} does not divide train.batch_size {batch}; {near} would"
            return [("machine.micro_batch_size", text)]
        return []

    def _schedule_conflicts(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        plan, steps = self.schedule, self.limit()
        end = plan.decay_steps or plan.horizon or steps
        if plan.kind != "constant" and end is None and self.train.epochs is None:
            text = (
                f"{plan.kind} needs to know its length where neither max_steps nor epochs is given; "
                "choose a horizon, or constant"
            )
            found.append(("schedule.horizon", text))
        if end is not None and plan.kind != "onecycle" and plan.warmup_steps >= end:
            text = f"{plan.warmup_steps} steps of warmup do not fit into {end} steps"
            found.append(("schedule.warmup_steps", text))
        if plan.min_lr > self.optim.lr:
            text = f"{plan.min_lr} is above the peak, optim.lr {self.optim.lr}"
            found.append(("schedule.min_lr", text))
        return found

    def limit(self, examples: int | None = None) -> int | None:
        """Return the step to stop at, or None for never (or not known without `examples`).

        `examples` is the size of the training data, needed only for `epochs` without
        `steps_per_epoch`.
        """
        train = self.train
        if train.epochs is None:
            return train.max_steps
        per_epoch = train.steps_per_epoch
        if per_epoch is None:
            if examples is None:
                return None
            per_epoch = -(-examples // train.batch_size)
        return max(1, round(train.epochs * per_epoch))


def largest_divisor(number: int, most: int) -> int:
    """Return the largest divisor of `number` up to `most`, quickly also for absurd numbers.

    >>> largest_divisor(12, 5), largest_divisor(128, 3)
    (4, 2)
    """
    small = [d for d in range(1, min(isqrt(number), 100_000) + 1) if number % d == 0]
    return max(d for d in (*small, *(number // d for d in small)) if d <= most)
