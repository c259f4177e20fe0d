"""The only thing that a checkpoint holds: the learners, and how far each has come.

If it changes the numbers it is in; if it is in it is saved. Randomness, data position, epoch and
learning rate are not in, because they are functions of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surefoot.engine import named
from surefoot.engine.learner import Learner
from surefoot.engine.ranks.team import Team
from surefoot.errors import CheckpointError

__all__ = ["Payload", "Snapshot", "TrainState"]

# Small fields of a learner that are saved as JSON; `memory` must be JSON-able.
SMALL = ("step", "updates", "micro", "lr_factor", "loss_scale", "memory")


@dataclass
class Payload:
    """A checkpoint's contents: tensors by file name, and the small state.

    `copied`: the tensors are on the host already, and nobody changes them until the next save.
    `pieces` gives the bytes of a tensor, by file and name, where they must not be read otherwise.
    """

    tensors: dict[str, dict[str, Tensor]]
    small: dict[str, Any]
    copied: bool = False
    pieces: Callable[[str, str], Iterator[memoryview]] | None = None

    @property
    def on_host(self) -> bool:
        """Whether all tensors are in the memory of the processor."""
        return all(t.device.type == "cpu" for g in self.tensors.values() for t in g.values())


@dataclass
class TrainState:
    """Learners by name. `step` is that of the learner furthest behind that still has to go."""

    learners: dict[str, Learner]

    @property
    def step(self) -> int:
        waiting = [x.step for x in self.learners.values() if not x.finished]
        return min(waiting) if waiting else max(x.step for x in self.learners.values())

    @property
    def finished(self) -> bool:
        return all(x.finished for x in self.learners.values())

    def due(self) -> list[str]:
        """Return the names of the learners that take the next batch.

        A learner at step k sees batch k and no other, so whoever is ahead waits.
        """
        step = self.step
        return [n for n, x in self.learners.items() if not x.finished and x.step == step]

    def payload(self) -> Payload:
        """Return references (no copies) to everything that is saved."""
        tensors: dict[str, dict[str, Tensor]] = {}
        small: dict[str, Any] = {"learners": {}}
        for name, learner in self.learners.items():
            tensors[f"{name}.model.safetensors"] = named.of(learner)
            tensors[f"{name}.optim.safetensors"] = named.moments(learner)
            if learner.average:
                tensors[f"{name}.ema.safetensors"] = dict(learner.average)
            small["learners"][name] = {field: getattr(learner, field) for field in SMALL}
        return Payload(tensors, small)

    def still(self, team: Team | None = None) -> Payload:
        """Return a payload that nothing but the next update changes (see `Learner.before_change`).

        What else changes is copied: small state, and buffers, which a forward pass may write. Where
        learners are split over the ranks of a `team`, all take part, and rank 0 gets whole copies.
        """
        payload = self.payload()
        if any(learner.split for learner in self.learners.values()):
            files = {f: self._gathered(f, group) for f, group in payload.tensors.items()}
            return Payload(files, _plain(payload.small), copied=True)
        for name, learner in self.learners.items():
            kept = payload.tensors[f"{name}.model.safetensors"]
            kept |= {n: b.clone() for n, b in learner.model.named_buffers() if n in kept}
        return Payload(payload.tensors, _plain(payload.small))

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """Return host copies of what this process holds of learners that are split, by file."""
        found: dict[str, dict[str, Tensor]] = {}
        for file, group in self.payload().tensors.items():
            learner: Any = self.learners[file.split(".", 1)[0]]
            found |= learner.exchange.own_part(file, group) if learner.split else {}
        return found

    def _gathered(self, file: str, group: dict[str, Tensor]) -> dict[str, Tensor]:
        learner: Any = self.learners[file.split(".", 1)[0]]
        found: dict[str, Tensor] = learner.exchange.collect(file, group)
        return found

    def restore(self, payload: Payload) -> None:
        """Write a checkpoint's contents into the learners, in place.

        A learner that the checkpoint does not know starts at step 0 and catches up. Raises
        CheckpointError for a learner of the checkpoint that is not here, and for a part of one
        that is not in the checkpoint.
        """
        for name, small in payload.small["learners"].items():
            if name not in self.learners:
                what = f"the checkpoint holds a learner that is not in this run: {name}"
                raise CheckpointError(what, fix="resume with the recipe that the run began with")
            self._restore(name, self.learners[name], payload, small)

    @staticmethod
    def _restore(name: str, learner: Learner, payload: Payload, small: Mapping[str, Any]) -> None:
        absent = [f for f in SMALL if f not in small]
        absent += [f for f in _files(name, learner) if f not in payload.tensors]
        if absent:
            raise CheckpointError(f"the checkpoint lacks {', '.join(absent)} of learner {name}")
        named.restore_own(learner, payload.tensors[f"{name}.model.safetensors"])
        named.restore_moments(learner, payload.tensors[f"{name}.optim.safetensors"])
        if learner.average:
            named.restore_average(learner, payload.tensors[f"{name}.ema.safetensors"])
        for field in SMALL:
            setattr(learner, field, small[field])
        learner.zero()


def _files(name: str, learner: Learner) -> list[str]:
    parts = ("model", "optim", "ema") if learner.average else ("model", "optim")
    return [f"{name}.{part}.safetensors" for part in parts]


class Snapshot:
    """Host copies of a payload in buffers that are reused from save to save.

    The next update, and nothing before it, waits for the copy.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], Tensor] = {}

    def take(self, payload: Payload) -> Payload:
        """Copy `payload` to the host and return the copy; valid until the next call."""
        if payload.copied:
            return payload
        tensors = {
            file: {name: self._copy(file, name, value) for name, value in group.items()}
            for file, group in payload.tensors.items()
        }
        _wait({value.device for group in payload.tensors.values() for value in group.values()})
        return Payload(tensors, _plain(payload.small))

    def _copy(self, file: str, name: str, value: Tensor) -> Tensor:
        buffer = self._buffers.get((file, name))
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            pin = value.device.type == "cuda"
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=pin)
            self._buffers[file, name] = buffer
        buffer.copy_(value, non_blocking=True)
        return buffer


def _wait(devices: Iterable[torch.device]) -> None:
    """Wait until copies from these are there: each by name, for a thread begins with the first."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()


def _plain(small: Any) -> Any:
    """A deep copy of JSON-able state, so that training may go on changing its own."""
    if isinstance(small, dict):
        return {k: _plain(v) for k, v in small.items()}
    if isinstance(small, list):
        return [_plain(v) for v in small]
    return small
