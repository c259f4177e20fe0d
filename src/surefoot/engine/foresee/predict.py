"""Predict the memory and the work of a step by playing two of them on tensors without contents.

The recipe is built and trained as ever, optimisers and all, but on fake tensors: shapes, types and
lifetimes are true and nothing is allocated or computed, so a model of any size takes seconds. The
same play on real tensors is what `--probe` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from surefoot.config.fields import changed, flatten
from surefoot.config.schema import RunConfig
from surefoot.data.batch import Batch, Data
from surefoot.engine.auto.fit import Pins
from surefoot.engine.auto.ledger import HOST, Entry, Ledger, Mark, Work
from surefoot.engine.foresee.on_card import as_on_card
from surefoot.engine.foresee.recalled import Recalling
from surefoot.engine.foresee.stretch import (
    PLAYED,
    TRIED,
    WORTH,
    depth_of,
    shallow,
    stretch,
)
from surefoot.engine.job import Job
from surefoot.engine.learner import Learner
from surefoot.engine.memory import set_aside
from surefoot.engine.place import apply
from surefoot.engine.plan import prepare
from surefoot.engine.random import example_keys, rekey
from surefoot.engine.rebuild import Buildable
from surefoot.engine.world import World
from surefoot.nn import lean
from surefoot.nn.dropout import set_keys
from surefoot.ops import cross_entropy, slots
from surefoot.ops.kept import forget

__all__ = ["KINDS", "Known", "Need", "predict"]

KINDS = ("weights", "gradients", "optimiser", "activations", "loss", "backward", "batch")
_MOMENTS = 400  # of the history
_PIECES = 2  # micro-batches of a step that are played: later ones repeat the second


@dataclass(frozen=True)
class Need:
    """What a step takes: bytes at its peak by kind, and the work of its operations.

    `state` is the bytes of weights and optimiser that a checkpoint holds, `steps` the run's
    length (None without end), `source` the fingerprint of its data. `passes` are the operations of
    one micro-batch, `updates` those of the optimisers, `largest` what takes most at the peak.
    `phases` are (peak, parts) of each stretch of the step, in order, `history` the bytes of each of
    KINDS at some moments of it, `host` the bytes that wait in the host's memory. `optimiser` names
    those of the job: muon (with AdamW for the rest), adamw, sgd.
    """

    peak: int
    parts: Mapping[str, int]
    state: int
    weights: int
    parameters: Mapping[str, int]
    steps: int | None
    source: str
    examples: int
    micro: int
    passes: list[Work] = field(repr=False)
    updates: list[Work] = field(repr=False)
    largest: list[tuple[int, str]] = field(repr=False)
    phases: list[tuple[int, Mapping[str, int]]] = field(default_factory=list, repr=False)
    history: list[tuple[int, ...]] = field(default_factory=list, repr=False)
    host: int = 0
    optimiser: str = ""

    @property
    def flops(self) -> int:
        """Floating-point operations of a whole step."""
        return sum(w.flops for w in self.passes) * self.examples // self.micro + sum(
            w.flops for w in self.updates
        )


class _Stage(World):
    """A world whose batches come without contents, or as they are where the play is real."""

    def __init__(self, fake: FakeTensorMode | None, layers: int | None) -> None:
        super().__init__(torch.device("cpu"))
        object.__setattr__(self, "fake", fake)
        object.__setattr__(self, "layers", layers)  # for recipes whose settings do not say

    def to(self, batch: Batch) -> Batch:
        fake: FakeTensorMode | None = vars(self)["fake"]
        moved = super().to(batch)
        if fake is None:
            return moved
        return Batch({k: fake.from_tensor(v) for k, v in moved.fields.items()}, batch.weight)


def predict(
    recipe: Buildable,
    config: RunConfig,
    pins: Pins,
    *,
    micro: int | None = None,
    block: int = 1,
    processors: int | None = None,
    real: bool = False,
    known: Known | None = None,
) -> Need:
    """Return what a step of `config` needs in pieces of `micro` examples (None: all at once).

    `pins` say precision and kernels; they are applied as for a processor, whose fused attention
    keeps the same tensors as that of a GPU; what it works in depends on the card's `processors`.
    `block` is what an allocator rounds to. With `real`,
    tensors have contents and the step is computed. Raises what building the recipe raises.

    Of many equal layers a few are played, and the rest is counted (`stretch`). `known` keeps what
    was played, for questions that lead to the same steps; they must be of one recipe.
    """
    config = changed(config, {"machine.precision": pins.precision})
    known = Known() if known is None else known
    micro = micro or config.train.batch_size
    books = partial(Ledger, block=block, processors=processors)

    def play(layers: int | None = None) -> Need:
        asked = shallow(config, layers)
        key = repr((flatten(asked), pins.ops, micro, block, processors, layers, real))
        if key not in known.plays:
            known.plays[key] = _replay(
                recipe, asked, pins, micro=micro, ledger=books, real=real, layers=layers
            )
        return known.plays[key]

    depth = None if real else depth_of(recipe, config)
    if depth is None or depth < WORTH:
        return play()
    for first in range(PLAYED[0], PLAYED[0] + TRIED):
        few = [play(first + more) for more in range(len(PLAYED))]
        found = stretch(few, first + len(few) - 1, depth)
        if found is not None:
            return found
    return play()


@dataclass
class Known:
    """What was played of a recipe."""

    plays: dict[str, Need] = field(default_factory=dict)


def _replay(
    recipe: Buildable,
    config: RunConfig,
    pins: Pins,
    *,
    micro: int,
    ledger: Callable[[], Ledger],
    real: bool,
    layers: int | None,
) -> Need:
    """Play the steps of `config`; `layers` tells recipes that say the depth otherwise."""
    fake = None if real else Recalling(allow_non_fake_inputs=True)
    books = ledger()
    threads = torch.get_num_threads()
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        stack.enter_context(set_aside())
        forget()
        stack.callback(forget)
        if fake is not None:
            stack.enter_context(fake)
            # A fake parameter cannot be exchanged in place, and is where it should be anyway.
            stack.enter_context(mock.patch.object(nn.Module, "to", lambda module, *_, **__: module))
            stack.enter_context(mock.patch.object(cross_entropy, "alike", books.rounds))
        room = _within(books, lean.host_room, HOST)
        stack.enter_context(mock.patch.object(lean, "host_room", room))
        stack.enter_context(mock.patch.object(lean, "frugal_kernels", partial(_frugal, books)))
        if books.processors is not None:
            stack.enter_context(as_on_card(books.processors))
        stack.enter_context(books)
        stage = _Stage(fake, layers)
        job = recipe.build(config, stage)
        prepare(job, config, {})
        for learner in job.learners.values():
            apply(learner, pins)
            books.name(learner.parameters, "weights")
        return _Play(job, config, stage, books, micro, short=not real).need()


class _Play:
    """Two steps of every learner, as the loop takes them; the second is the one that counts.

    A `short` play skips the passes that only leave gradients behind, and puts some there instead.
    """

    def __init__(
        self, job: Job, config: RunConfig, stage: World, ledger: Ledger, micro: int, short: bool
    ) -> None:
        self.job, self.config, self.stage, self.ledger = job, config, stage, ledger
        self.size, self.micro, self.short = config.train.batch_size, micro, short
        self.data = Data(job.source, config.train.seed, self.size)
        self.passes: list[Work] = []
        self.updates: list[Work] = []

    def need(self) -> Need:
        learners, self.cuts = self.job.learners, []
        for learner in learners.values():
            if self.short:
                self._grant(learner)
                self._remember(learner)
            else:
                self._turn(learner, 0)
        self.passes, self.updates = [], []
        begun = self.ledger.mark()
        self.cuts = [begun]
        for learner in learners.values():
            self._turn(learner, 1)
        peak, alive = self.ledger.peak(begun)
        parts = _parts(alive)
        alive.sort(key=lambda entry: -entry.nbytes)
        owned = [p for x in learners.values() for p in x.parameters]
        weights = sum(p.nbytes for p in owned)
        moments = sum(t.nbytes for x in learners.values() for t in _moments(x))
        return Need(
            peak, parts, weights + moments, weights,
            {name: sum(p.numel() for p in x.parameters) for name, x in learners.items()},
            self.config.limit(len(self.job.source)), self.job.source.fingerprint, self.size, self.micro,
            self.passes, self.updates,
            [(e.nbytes, f"{e.kind}: {e.source} {list(e.shape)}") for e in alive[:8]],
            self._phases(), self.ledger.history(begun, KINDS, _MOMENTS), self.ledger.host(begun),
            _optimiser(learners.values()),
        )  # fmt: skip

    def _phases(self) -> list[tuple[int, Mapping[str, int]]]:
        cuts = [*self.cuts, self.ledger.mark()]
        found = [self.ledger.peak(*pair) for pair in pairwise(cuts)]
        return [(peak, _parts(alive)) for peak, alive in found]

    def _turn(self, learner: Learner, step: int) -> None:
        ledger = self.ledger
        starts = list(range(0, self.size, self.micro))[:_PIECES]
        if self.short and len(starts) > 1:  # what the first leaves behind is gradients
            starts = starts[1:]
            self._grant(learner)
        batches = [self.data.batch(step, s, min(self.micro, self.size - s)) for s in starts]
        total = sum(batch.weight for batch in batches)
        for start, batch in zip(starts, batches):
            begun = len(ledger.works)
            self._pass(learner, step, start, batch, total)
        self.passes += ledger.works[begun:]
        begun = len(ledger.works)
        self._update(learner)
        self.updates += ledger.works[begun:]

    def _grant(self, learner: Learner) -> None:
        """Give every parameter a gradient without working for it."""
        with self.ledger.during("gradients"):
            for parameter in learner.parameters:
                parameter.grad = torch.zeros_like(parameter)

    def _remember(self, learner: Learner) -> None:
        """Let the optimisers make what they remember, in an update without the products of Muon's."""
        with ExitStack() as stack:
            for slot in slots(learner.optimisers):
                if slot.op.name == "orthogonalise":
                    stack.callback(slot.put, slot.call)
                    slot.put(_stacked)
            self._update(learner)

    def _update(self, learner: Learner) -> None:
        ledger = self.ledger
        with ledger.during("optimiser"):
            learner.gradient_norm()
            learner.update()
        ledger.name(_moments(learner), "optimiser")
        ledger.name(learner.average.values(), "optimiser")
        learner.zero()
        learner.step += 1

    def _pass(self, learner: Learner, step: int, start: int, batch: Batch, total: float) -> None:
        rekey(step, self.stage.device)
        with self.ledger.during("batch"):
            moved = self.stage.to(batch)
            self.ledger.see(moved.fields.values())
            if learner.dropouts:
                size = min(self.micro, self.size - start)
                set_keys(learner.model, example_keys(0, step, start, size))
        with _phases(self.ledger, learner) as marks:
            found = learner.accumulate(moved, total)
        if self.cuts:  # forward, backward in two halves, and what comes after
            begun, ended = marks
            self.cuts += [begun, self.ledger.between(begun, ended), ended]
        self.ledger.name((p.grad for p in learner.parameters if p.grad is not None), "gradients")
        del found


@contextmanager
def _phases(ledger: Ledger, learner: Learner) -> Iterator[list[Mark]]:
    """Tell the ledger what is born for the forward pass, for the loss, and for the backward pass.

    Yields the moments at which the backward pass begins and ends.
    """
    changed, marks = [], [ledger.mark()] * 2
    for slot in slots((learner.model,)):
        if slot.op.name == "cross_entropy":
            changed.append((slot, slot.call))
            slot.put(_within(ledger, slot.call, "loss"))
    backward = Tensor.backward

    def back(tensor: Tensor, *args: Any, **more: Any) -> None:
        begun = ledger.mark()
        with ledger.during("backward"):
            backward(tensor, *args, **more)
        marks[:] = begun, ledger.mark()

    try:
        with ledger.during("activations"), mock.patch.object(Tensor, "backward", back):
            yield marks
    finally:
        for slot, call in changed:
            slot.put(call)


def _stacked(matrices: Sequence[Tensor], *_: Any) -> Tensor:
    return torch.stack(list(matrices))


def _frugal(ledger: Ledger) -> AbstractContextManager[None]:
    ledger.frugal = True
    return nullcontext()


def _within(ledger: Ledger, call: Callable[..., Any], kind: str) -> Callable[..., Any]:
    def called(*args: Any, **more: Any) -> Any:
        with ledger.during(kind):
            return call(*args, **more)

    return called


def _optimiser(learners: Iterable[Learner]) -> str:
    names = [type(o).__name__.lower() for x in learners for o in x.optimisers]
    return "muon" if "muon" in names else " and ".join(dict.fromkeys(names))


def _parts(alive: list[Entry]) -> dict[str, int]:
    parts = dict.fromkeys(KINDS, 0)
    for entry in alive:
        parts[entry.kind] += entry.nbytes
    return parts


def _moments(learner: Learner) -> Iterator[Tensor]:
    """Yield what optimisers remember between steps, and averaged weights."""
    for optimiser in learner.optimisers:
        for state in optimiser.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))
