"""Settings of `surefoot train code`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import field_validator

from surefoot.config import model
from surefoot.config.schema import (
    Machine,
    Ops,
    Optim,
    RunConfig,
    ScheduleConfig,
    Section,
    Train,
    circumstance,
    knob,
)

__all__ = ["TINY", "CodeConfig", "Judging"]

TINY = "tiny"  # a base with random weights


class BaseModel(Section):
    """The pretrained model that is tuned, and how much of a file it sees."""

    base: str = knob(
        "smollm2",
        "smollm2, tiny (random), a folder of transformers, a .gguf file, or a name on the hub.",
    )
    context: int | Literal["auto"] = knob(
        512, "Tokens of one row; auto: the most that fit here and that the base was trained for."
    )
    quant: Literal["auto", "none", "nf4"] = knob(
        "auto", "How the frozen base is held; auto: nf4 for qlora and qlora+, else none."
    )
    double_quant: bool = knob(True, "nf4: quantise the constants of the blocks, too.")
    base_digest: str | None = knob(
        None, "Refuse a base with other bits; a run fills it in when it begins."
    )

    @field_validator("context")
    @classmethod
    def _context(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 8:
            raise ValueError("expected auto or a number of at least 8")
        return value


class Adapter(Section):
    """What is trained on top of the base."""

    method: Literal["lora", "lora+", "qlora", "qlora+", "full"] = knob(
        "lora",
        "Adapters; + has a faster second factor; q holds the base in 4 bits; or all weights.",
    )
    rank: int = knob(16, "Rank of the adapters.", ge=1)
    alpha: float = knob(32.0, "Scale: alpha / rank, or alpha / sqrt(rank) with rslora.", gt=0)
    dropout: float = knob(0.0, "Dropout before the adapters.", ge=0, lt=1)
    targets: tuple[str, ...] = knob(
        ("all",), "Names of the linear layers that get one, like q_proj, v_proj.", min_length=1
    )
    rslora: bool = knob(False, "Scale by the square root of the rank.")
    dora: bool = knob(False, "Also learn the length of each row of weights.")
    freeze_a: bool = knob(False, "Train only the second factor; needs less memory.")
    ratio: float = knob(16.0, "lora+ and qlora+: rate of the second factor to the first.", ge=1)
    peak_factor: float = knob(
        1.0, "Peak rate as a multiple of optim.lr; 10 is what others call max_lr = 10 x base.", gt=0
    )


class Repo(Section):
    """Which code is read, and how it is cut."""

    repo: Path | None = knob(None, "Folder of the repository, with or without git.")
    languages: tuple[str, ...] = knob((), "Only these, like python, rust; default: all known.")
    val_ratio: float = knob(0.05, "Share of the files that validates.", gt=0, lt=0.5)
    test_ratio: float = knob(0.05, "Share that only `surefoot evaluate` reads.", gt=0, lt=0.5)
    similarity: float = knob(
        0.85, "Overlap from which a file counts as a copy; 1: only equal ones.", gt=0, le=1
    )
    drop_secrets: bool = knob(False, "Leave out files with what looks like a password or a key.")
    fim_rate: float = knob(0.0, "Share of rows rearranged to fill in the middle.", ge=0, le=1)
    snapshot: str | None = knob(
        None, "Digest of the files as they were; a run fills it in when it begins."
    )


class Judging(Section):
    """How a model is looked at; none of it changes training."""

    val_batch: int = circumstance(4, "Rows evaluated at once.", ge=1)
    val_tokens: int = circumstance(50_000, "Tokens of held-out files read, at most.", ge=1)
    outside_tokens: int = circumstance(
        8000, "Tokens of an outside text that show what is forgotten; 0: none.", ge=0
    )
    prompts: int = circumstance(
        16, "Functions of held-out files that the model completes, to compile them; 0: none.", ge=0
    )
    prompts_file: Path | None = circumstance(
        None, "Problems as in HumanEval or MBPP (JSON Lines) whose beginnings it completes, too."
    )
    prompt_tokens: int = circumstance(256, "Tokens that the model sees before each.", ge=8)
    new_tokens: int = circumstance(128, "Tokens that it may write.", ge=1)


class Memory(model.Memory):
    """How memory is saved; the numbers stay the same, but for rounding."""

    checkpointing: bool = knob(True, "Compute the inside of a layer again for its gradient.")
    offload: bool = knob(False, "Let the inputs of layers wait in the host's memory for it.")
    mlp_tile: int | None = knob(
        None, "Tokens that the feed-forward part of a layer computes at once; none: all.", ge=16
    )

    moments: Literal["fp32", "8bit"] = knob(
        "fp32", "What AdamW remembers; 8bit is computed on CUDA only, and takes a quarter."
    )

    def conflicts(self) -> list[tuple[str, str]]:
        """Return broken rules between these fields as (field, explanation)."""
        if self.offload and not self.checkpointing:
            return [("offload", "without checkpointing there are no inputs that wait")]
        return []


class CodeConfig(RunConfig):
    """Settings of `surefoot train code`."""

    model: BaseModel = BaseModel()
    adapter: Adapter = Adapter()
    data: Repo = Repo()
    evaluation: Judging = Judging()
    memory: Memory = Memory()
    train: Train = Train(batch_size=8, max_steps=200)
    optim: Optim = Optim(kind="adamw", lr=2e-4, beta2=0.999, weight_decay=0.0)
    schedule: ScheduleConfig = ScheduleConfig(kind="onecycle", warmup_steps=0)
    machine: Machine = Machine(compile="off")
    ops: Ops = Ops(cross_entropy="chunked")

    def conflicts(self) -> list[tuple[str, str]]:
        """Return every broken rule between fields as (field path, explanation)."""
        found = super().conflicts()
        four, full = self.four_bit, self.adapter.method == "full"
        if full and four:
            found.append(("model.quant", "weights of 4 bits cannot be trained; method lora can"))
        if self.adapter.method in ("qlora", "qlora+") and not four:
            text = f"{self.adapter.method} holds the base in 4 bits; without, it is lora"
            found.append(("model.quant", text))
        if self.memory.mlp_tile is not None and self.adapter.dropout:
            text = "every tile would drop the same places; take adapter.dropout 0 or no tiles"
            found.append(("memory.mlp_tile", text))
        if not full and self.optim.kind == "muon":
            found.append(("optim.kind", "adapters are trained with adamw"))
        return found

    @property
    def context(self) -> int:
        """Tokens of one row, once that is decided."""
        found = self.model.context
        assert isinstance(found, int), "model.context is decided before anything is built"
        return found

    @property
    def four_bit(self) -> bool:
        """Whether the base is held in 4 bits."""
        quant = self.model.quant
        return quant == "nf4" or (quant == "auto" and self.adapter.method.startswith("qlora"))

    @property
    def ratio(self) -> float:
        """Rate of the second factor to the first."""
        return self.adapter.ratio if self.adapter.method.endswith("+") else 1.0
