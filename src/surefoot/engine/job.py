"""What a recipe hands over: parts, and no behaviour."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import nn

from surefoot.data.batch import Batch, Source
from surefoot.engine.learner import Learner
from surefoot.track.picture import Picture

__all__ = ["Drawing", "Evaluation", "Job", "Sampler", "Shared"]

Evaluation = Callable[[nn.Module], Mapping[str, float]]
Sampler = Callable[[nn.Module, int], str]
Drawing = Callable[[nn.Module], Picture | None]


@runtime_checkable
class Shared(Protocol):
    """An evaluation that several processes share; called, it does all of it in one.

    Its metrics must be a function of the rows in their order, and a row of the model alone.
    """

    def __call__(self, model: nn.Module) -> Mapping[str, float]: ...

    def rows(self, model: nn.Module, first: int, step: int) -> Sequence[Any]:
        """Return every `step`-th row from `first` on: what can be pickled."""
        ...

    def result(self, rows: Sequence[Any]) -> Mapping[str, float]:
        """Return the metrics, given all rows in order."""
        ...


@dataclass
class Job:
    """The parts of a run.

    `learners` by name; one, called `main`, is the usual case of several. Functions look at a
    model in eval mode: an evaluation returns metrics (`val_loss` is the one that "best" means; one
    that is `Shared` is computed by all processes of a run, another by the first alone),
    a sampler text (from a seed), a drawing a picture or None. `exams` are evaluations that training never
    makes and `surefoot evaluate` does: those on a test set. `data` says for the record what is
    learned from, and with `loss_unit` in what losses are (else nats; nothing, where there is no `data`);
    `notes` say it to a person. `files` are small texts kept with the run (a
    vocabulary), so that the model can be used without its data. `settings` (section.name ->
    value) are what was substituted while building, such as the text that took the place of one
    out of reach; a resume repeats them. `show` writes a batch of one example for a person.
    """

    source: Source
    learners: dict[str, Learner]
    evals: Mapping[str, Evaluation] = field(default_factory=dict)
    exams: Mapping[str, Evaluation] = field(default_factory=dict)
    samplers: dict[str, Sampler] = field(default_factory=dict)
    pictures: Mapping[str, Drawing] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    show: Callable[[Batch], str] | None = None

    def tell(self, batch: Batch) -> str:
        """Return a batch of one example as `show` writes it; else its fields, by shape and range."""
        if self.show is not None:
            return self.show(batch)
        parts = []
        for name, value in batch.fields.items():
            span = f" {value.min():.4g} to {value.max():.4g}" if value.size else ""
            parts.append(f"{name} {list(value.shape[1:])}{span}")
        return ", ".join(parts)
