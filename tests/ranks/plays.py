"""What the ranks of a group do in the tests. Every check gets its world and a shared folder."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
from collections.abc import Callable
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from conftest import Toy
from surefoot.config.devices import enough
from surefoot.config.schema import Keep, Optim, RunConfig
from surefoot.data.batch import Batch
from surefoot.engine import Job, Learner, NextTokens, Store, TrainState, World, steps
from surefoot.engine.codec import read_tensors, write_tensors
from surefoot.engine.look import measure
from surefoot.engine.ranks.begin import alike, spread, visible
from surefoot.engine.ranks.follow import TeamSaver, TeamStore
from surefoot.engine.ranks.sums import Order
from surefoot.engine.saver import Saver
from surefoot.engine.state import Payload
from surefoot.errors import SurefootError
from surefoot.nn.again import again
from surefoot.nn.dropout import Dropout
from surefoot.nn.optim import build_optimisers
from surefoot.schedule import Cosine

STEPS = 6
Check = Callable[[World, Path], Any]


class Deep(nn.Module):
    """Blocks with dropout, matrices for Muon, and vectors that cannot be split evenly."""

    checkpointing = False

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.inner = nn.Linear(20, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.Tanh(), Dropout(0.2)) for _ in range(2)
        )
        self.out = nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner(x)
        for block in self.blocks:
            x = x + (again(block, x) if self.checkpointing else block(x))
        return self.out(x)


def learner(kind: str = "muon", ema: float | None = 0.9, micro: int = 1) -> Learner:
    torch.manual_seed(0)
    model = Deep()
    found = Learner(
        model, Toy.loss, build_optimisers(model, Optim(kind=kind, lr=0.01)),
        schedule=Cosine(2, 20, 0.1), limit=STEPS, clip=1.0, micro=micro,
    )  # fmt: skip
    found.average_with(ema)
    return found


class Play:
    """A few steps of one learner or two in a world."""

    def __init__(
        self, world: World, how: str, reduce: str, learners: dict[str, Learner] | None = None
    ) -> None:
        self.world, self.toy = world, Toy()
        self.state = TrainState(learners or {"main": learner()})
        spread(Job(self.toy, self.state.learners), world, how, reduce)
        self.readings: list[tuple[Any, ...]] = []
        self.happenings: list[str] = []

    def go(self, until: int = STEPS) -> Play:
        for report in steps(self.state, self.toy.data(), 1, self.world):
            for name, r in report.readings.items():
                parts = tuple(float(v) for v in r.parts.values())
                self.readings.append((name, r.loss, r.grad_norm, r.state, r.applied, *parts))
            self.happenings += map(str, report.happenings)
            if report.step >= until:
                break
        return self

    def payload(self) -> Payload:
        return self.state.still(self.world.team)

    def __str__(self) -> str:
        """Return a hash of all bits that a checkpoint would hold, on rank 0."""
        sums, payload = hashlib.sha256(), self.payload()
        for file in sorted(payload.tensors):
            for key in sorted(payload.tensors[file]):
                sums.update(f"{file}{key}".encode())
                sums.update(payload.tensors[file][key].contiguous().numpy().tobytes())
        return sums.hexdigest()[:16] if self.world.leads else ""

    def record(self) -> str:
        """Return a hash of all that the steps reported, which all ranks must agree on."""
        return hashlib.sha256(repr(self.readings).encode()).hexdigest()[:16]


def trained(world: World, folder: Path, *, how: str, reduce: str) -> Any:
    play = Play(world, how, reduce).go()
    return [str(play), play.record()]


def repeated(world: World, folder: Path) -> Any:
    """Blocks that are computed again for their gradients, in replicas and in splits."""
    found = []
    for how in ("ddp", "fsdp2"):
        mine = learner()
        mine.model.checkpointing = True  # type: ignore[assignment]
        play = Play(world, how, "ordered", {"main": mine}).go()
        found.append([str(play), play.record()])
    return found


def beside(world: World, folder: Path) -> Any:
    """Two learners beside each other, and the first of them alone."""
    both = Play(world, "ddp", "ordered", {"a": learner(), "b": learner("adamw")}).go()
    alone = Play(world, "ddp", "ordered", {"a": learner()}).go()
    return [[r for r in both.readings if r[0] == "a"] == alone.readings, len(both.readings)]


def one_out_of_memory(world: World, folder: Path, *, when: str, times: int) -> Any:
    """Rank 1 runs out of memory at its fourth pass, before or within the backward pass."""
    play, count = Play(world, "ddp", "ordered", {"main": learner(micro=2)}), [0]
    mine = play.state.learners["main"]
    inner = mine.loss

    def short(model: nn.Module, batch: Any) -> Any:
        count[0] += 1
        hurts = world.rank == 1 and 0 <= count[0] - 4 < times
        if hurts and when == "forward":
            raise MemoryError("out of memory")
        found = inner(model, batch)
        if hurts:
            found.sum.register_hook(_fail)
        return found

    mine.loss = short
    play.go()
    return [str(play), play.record(), play.happenings, mine.micro]


def overlapped(world: World, folder: Path, *, reduce: str) -> Any:
    """What a step tells the others, and what of it is under way when the last gradient is computed."""
    with patch("surefoot.engine.ranks.exchange.BUCKET", 0.008):  # 8 KB: a bucket for some tensors
        play = Play(world, "ddp", reduce)
    play.go(2)  # DDP sorts its buckets after the first step
    exchange, under_way = play.state.learners["main"].exchange, []
    first = play.state.learners["main"].model.inner.weight  # whose gradient is computed last
    handle = first.register_hook(lambda _: under_way.append(exchange._begun))
    before = dict(exchange.traffic.calls)
    with torch.profiler.profile() as seen:
        play.go(3)
    handle.remove()
    sums = exchange.traffic.calls["gradients"] - before["gradients"]
    told = sorted(e.name for e in seen.events() if e.name.startswith("gloo:"))
    # When the call is made, not when gloo's own thread gets a core: that is for the scheduler to say.
    begun = [e.time_range.start for e in seen.events() if e.name.startswith("c10d::_allgather")]
    backward = [e.time_range.start for e in seen.events() if "Backward" in e.name]
    return [under_way, sums, told, min(begun) < max(backward)]


def _fail(gradient: torch.Tensor) -> torch.Tensor:
    raise MemoryError("out of memory")


def midway(world: World, folder: Path, *, step: int, where: str) -> Any:
    """Rank 1 runs out of memory in its last pass, when the others already add gradients.

    `where` it happens: before the last `gradient`, or as a sum should `begin`.
    """
    play, hurt = Play(world, "ddp", "ordered", {"main": learner(micro=2)}), [False]
    mine = play.state.learners["main"]
    begin = Order.begin

    def once(due: bool) -> None:
        if due and world.rank == 1 and mine.step == step and not hurt[0]:
            hurt[0] = True
            raise MemoryError("out of memory")

    def watched(gradient: torch.Tensor) -> torch.Tensor:
        once(where == "gradient" and mine.exchange._ddp.require_backward_grad_sync)
        return gradient

    def begun(order: Order, *given: Any) -> Any:
        once(where == "begin")
        return begin(order, *given)

    mine.model.inner.weight.register_hook(watched)
    with patch.object(Order, "begin", begun):
        play.go()
    return [str(play), play.record(), play.happenings, mine.micro]


def no_room_to_stand_in(world: World, folder: Path) -> Any:
    """Rank 1 has no memory left for what the others wait for: it must not go on by itself."""
    mine = learner(micro=2)
    play = Play(world, "ddp", "ordered", {"main": mine})
    if world.rank == 0:
        return ""

    def short(*_: Any) -> Any:
        raise MemoryError("out of memory")

    mine.loss = mine.exchange._take_part = short
    return _said(play.go)


def one_not_finite(world: World, folder: Path, *, how: str) -> Any:
    """The loss of rank 1 is NaN in the third step: nobody may apply it."""
    play = Play(world, how, "ordered")
    mine = play.state.learners["main"]
    inner = mine.loss

    def poisoned(model: nn.Module, batch: Any) -> Any:
        found = inner(model, batch)
        if world.rank == 1 and mine.step == 2:
            found.sum = found.sum * float("nan")
        return found

    mine.loss = poisoned
    play.go()
    return [[r[4] for r in play.readings], mine.updates, play.record()]


def tampered(world: World, folder: Path) -> Any:
    """One bit of a weight of rank 1 changes between two steps."""
    play = Play(world, "ddp", "ordered").go(2)
    if world.rank == 1:
        with torch.no_grad():
            weight = play.state.learners["main"].parameters[0]
            bits = struct.unpack("<i", struct.pack("<f", float(weight[0, 0])))[0] ^ 1
            weight[0, 0] = struct.unpack("<f", struct.pack("<i", bits))[0]
    return _said(play.go)


def refused(world: World, folder: Path) -> Any:
    """What a person is told when ranks do not agree."""
    team = world.team
    assert team is not None
    other = world.rank == world.size - 1
    elsewhere = folder / "elsewhere" if other else folder
    return {
        "version": _said(lambda: alike(team, {"torch": "9.9" if other else "2.0", "python": "3"})),
        "folder": _said(lambda: visible(team, elsewhere)),
        "same": _said(lambda: visible(team, folder)),
        "many": _said(lambda: enough(RunConfig(), 9, 16)),
        "first": _said(lambda: world.first(_broken)),
        "each": _said(lambda: world.each(_broken if other else _sound)),
    }


def _broken() -> None:
    raise SurefootError("it is broken", where="here", fix="mend it")


def _sound() -> None:
    return None


def _said(act: Callable[[], Any]) -> str:
    try:
        act()
    except SurefootError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def wishes(world: World, folder: Path) -> Any:
    """A signal that only one rank was sent is known to all after the same step."""
    team = world.team
    assert team is not None
    play, asked = Play(world, "ddp", "ordered"), world.rank == world.size - 1
    mine = play.state.learners["main"]
    team.wish = lambda: team.stop(15) if asked and mine.step >= 2 else 0
    heard = []
    for _ in steps(play.state, play.toy.data(), 1, world):
        heard.append(team.signal)
    team.wish, team.heard = int, 0
    return heard


def gathered(world: World, folder: Path) -> Any:
    """Whole weights while one rank looks, and the training goes on as if nobody had."""
    play = Play(world, "fsdp2", "ordered")
    mine, seen = play.state.learners["main"], 0.0
    for report in steps(play.state, play.toy.data(), 1, world):
        if report.step % 2:
            with mine.whole():
                if world.leads:
                    with mine.evaluating() as model:
                        seen += float(model(torch.ones(3, 20)).sum())
    return [str(play), seen if world.leads else 0.0]


class Letters(nn.Module):
    """The smallest language model."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.linspace(-1, 1, 7 * 7).view(7, 7).sin())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table[x]


def shared(world: World, folder: Path) -> Any:
    """An evaluation that all share, one that rank 0 makes, and one that fails on the last rank."""
    team = world.team
    assert team is not None
    model, looks = Letters(), [0]
    mine = Learner(model, Toy.loss, [], limit=1)

    def batches() -> Any:
        for number in range(7):
            x = (torch.arange(4 * (number + 1)).view(-1, 4) * 5 + number) % 7
            yield Batch({"x": x, "y": (x * 3 + 1) % 7}, x.numel())

    def to(batch: Batch) -> Batch:
        looks[0] += 1
        if looks[0] == 1 and world.rank == 0 and team.size > 1:
            raise MemoryError("out of memory")  # passes, and it is tried again
        return batch

    exam = NextTokens(batches, to, vars)
    found = dict(measure(world, mine, 1, exam))
    seen = looks[0]
    with torch.no_grad():
        alone = dict(exam(model))
    by_one = measure(world, mine, 1, lambda _: {"rank": team.rank})
    broken = partial(_broken if world.rank == world.size - 1 else list)
    said = _said(lambda: team.dealt(broken, "evaluating")) if team.size > 1 else ""
    return [found == alone, sorted(found.items()), seen, by_one, said]


def apart(world: World, folder: Path) -> Any:
    """Every rank writes its own part of a checkpoint; it reads like one that rank 0 wrote."""
    team = world.team
    assert team is not None
    play = Play(world, "fsdp2", "ordered").go()
    store = Store(folder / f"apart-{world.size}", "run")
    own = Saver(store, Keep(), 0, lambda: None) if world.leads else None
    saver = TeamSaver(team, TeamStore(team, store), own, 0, True)
    saver.save(play.state, places={})
    saver.finish()
    checkpoint, payload, _ = saver.store.newest()
    whole = play.payload()
    same = world.leads and all(
        torch.equal(tensor, payload.tensors[file][name])
        for file, group in whole.tensors.items()
        for name, tensor in group.items()
    )
    again = Play(world, "fsdp2", "ordered")
    again.state.restore(payload)
    return [sorted(checkpoint.manifest["files"]), same, str(again) == str(play)]


def memory(world: World, folder: Path) -> Any:
    """Host memory that a checkpoint of a split model takes on rank 0, in copies of the model."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(16)))  # 64 MB
    big = Learner(model, Toy.loss, [], limit=1)
    spread(Job(Toy(), {"main": big}), world, "fsdp2", "ordered")
    state = TrainState({"main": big})
    whole = 16 * 1024 * 1024 * 4
    peak = _peak()
    payload = state.still(world.team)
    held = sum(t.nbytes for group in payload.tensors.values() for t in group.values())
    return [(_peak() - peak) / whole, held / whole]


def _peak() -> int:
    """Return the resident memory that this process had at most since the last call, in bytes."""
    text = Path("/proc/self/status").read_text()
    found = int(text.split("VmHWM:")[1].split()[0]) * 1024
    Path("/proc/self/clear_refs").write_text("5")
    return found


def resumed(world: World, folder: Path, *, reduce: str, order: tuple[int, ...], how: str) -> Any:
    """Train two steps from where the size before in `order` has left it, and leave it there."""
    place = order.index(world.size)
    play = Play(world, how if world.size > 1 else "none", reduce)
    name = "-".join(map(str, order))
    if place:
        before = folder / f"{reduce}-{how}-{name}-{place - 1}"
        files = {p.name: read_tensors(p) for p in before.glob("*.safetensors")}
        play.state.restore(Payload(files, json.loads((before / "state.json").read_text())))
    play.go(2 * (place + 1))
    payload = play.payload()
    if world.leads:
        after = folder / f"{reduce}-{how}-{name}-{place}"
        after.mkdir()
        for file, tensors in payload.tensors.items():
            write_tensors(after / file, tensors)
        (after / "state.json").write_text(json.dumps(payload.small))
    return [str(play), play.record()]


def quick(size: int) -> dict[str, Check]:
    """Checks of the quick suite."""
    modes = {1: ["none", "ddp", "fsdp2"], 3: ["ddp", "fsdp2"]}.get(size, ["ddp", "fsdp2", "hsdp"])
    found: dict[str, Check] = {
        f"{reduce} {how}": partial(trained, how=how, reduce=reduce)
        for reduce in ("ordered", "tree")
        for how in modes
    }
    found["shared"] = shared
    if size > 1:
        found |= {"refused": refused, "wishes": wishes}
    if size == 2:
        for when in ("forward", "backward"):
            for times in (1, 2):
                act = partial(one_out_of_memory, when=when, times=times)
                found[f"memory {when} {times}"] = act
        for step, where in ((0, "gradient"), (3, "gradient"), (3, "begin")):
            found[f"midway {step} {where}"] = partial(midway, step=step, where=where)
        found |= {f"nan {how}": partial(one_not_finite, how=how) for how in ("ddp", "fsdp2")}
        found |= {f"overlap {r}": partial(overlapped, reduce=r) for r in ("ordered", "tree")}
        found |= {"beside": beside, "gathered": gathered, "tampered": tampered, "host": memory}
        found |= {"again": repeated, "apart": apart, "no room": no_room_to_stand_in}
    return found


def chain(size: int) -> dict[str, Check]:
    """One link of each resume in every order of 1, 2 and 4, at the place of this size."""
    place = int(os.environ["PLACE"])
    return {
        f"{how} {'-'.join(map(str, order))}": partial(resumed, reduce="tree", order=order, how=how)
        for order in permutations((1, 2, 4))
        for how in ("ddp", "fsdp2")
        if order[place] == size
    }
