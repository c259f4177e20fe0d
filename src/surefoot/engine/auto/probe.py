"""The probe: half a second of real passes before step 0, on real examples, that touches no weight."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from surefoot.config.schema import RunConfig
from surefoot.data.batch import Data
from surefoot.engine.auto import size, tune
from surefoot.engine.auto.fit import Pins, usable_cores
from surefoot.engine.job import Job
from surefoot.engine.learner import Learner
from surefoot.engine.memory import available
from surefoot.engine.place import apply, matmul_path
from surefoot.engine.random import example_keys, rekey
from surefoot.engine.world import World
from surefoot.nn.again import hearing
from surefoot.nn.dropout import set_keys
from surefoot.track.text import bytes_text

__all__ = ["Probe"]

_BUDGET = 0.5  # seconds that all probes may take together, compilation of kernels aside
_PASSES = 8  # of one example, that all probes may take where those are slower
_SLOW = 3.0  # seconds of a pass beside which does not count what libraries make in the first one
_WORTH = 0.05  # share of the passes of a run that trying may take, where that is less than _PASSES
_PASS = 0.03  # seconds that one trial should take, long enough to be told from noise
_MARGIN = 0.93  # a choice must be at least 7 % faster than the default to replace it
_LEAN = 1.02  # one that needs less memory may be slower by what two measurements differ
_THREADED = (
    0.1  # seconds of a pass that may be repeated with all cores; less work gains less by them
)
_THREADS_MARGIN = 0.95  # more threads suffer more from other programs, so they must gain 5 %
_SIZING, _SHARE = 0.3, 0.005  # seconds, or share of the run, that finding the micro-batch may take
_LONG = 10**6  # steps of a run without an end


class Probe:
    """Tries the candidates on a few real examples and keeps the fastest."""

    def __init__(
        self, config: RunConfig, job: Job, world: World, tell: Callable[[str], None] | None = None
    ) -> None:
        self.config, self.job, self.world, self.tell = config, job, world, tell
        self.data = Data(job.source, config.train.seed, config.train.batch_size)
        self.why: dict[str, str] = {}
        self.size = self.least = 1
        # On a processor, CPU time: other programs must not decide.
        self.clock = time.process_time if world.device.type == "cpu" else time.perf_counter
        self.deadline = self.clock() + _BUDGET

    def answer(self) -> dict[str, Any]:
        """Return pins (all but compile), bytes of activations an example, seconds a step."""
        first = self._first_pins()
        seconds = self._warm_up(first)
        if self.world.device.type == "cuda":
            return self._on_card(first)
        seconds = self._size_up(first, seconds)
        activations = self._activations(first)
        pins, seconds = self._race(first, seconds)
        pins = self._tune(pins, seconds)
        each = seconds / self.size
        micro, each = self._micro(pins, activations, each)
        pins, each = self._thread(pins, micro, each)
        return self._answer(pins, micro, activations, each)

    def _on_card(self, pins: Pins) -> dict[str, Any]:
        """Fill the device first; what is fast is measured with as many examples as will run."""
        device = self.world.device
        sizes = self._asked() or size.divisors(self.config.train.batch_size, self.least)
        sizes, activations = size.largest(sizes, self._run, device, self._later(), self.least)
        found = size.fastest(sizes, self._timed, device)
        if found is None:  # the run itself will take smaller pieces
            self.size = self.least
            return self._answer(pins, sizes[-1], activations, self._seconds(pins))
        if not self._asked():
            self.why["micro_batch_size"] = found.why
        self.size = found.examples
        pins = self._tune(pins, found.each * self.size)
        return self._answer(pins, found.examples, activations, self._seconds(pins) / self.size)

    def _answer(self, pins: Pins, micro: int, activations: int, each: float) -> dict[str, Any]:
        pins = replace(pins, micro_batch_size=micro, prefetch_threads=self._prefetch())
        return {
            "pins": {**pins.as_dict(), "why": dict(self.why)},
            "activation_bytes": activations,
            "step_seconds": each * self.config.train.batch_size,
        }

    def _asked(self) -> list[int]:
        asked = self.config.machine.micro_batch_size
        return [asked] if isinstance(asked, int) else []

    def _run(self, count: int) -> None:
        self.size = count
        self._passes()

    def _timed(self, count: int) -> float:
        """Return seconds of a pass of `count` examples, the second of two."""
        self._run(count)
        return self._clocked()

    def _clocked(self) -> float:
        """Return seconds of one pass of all models."""
        begun = self.clock()
        self._passes()
        return self.clock() - begun

    def _later(self) -> int:
        """Return bytes that a step needs beside its passes: moments of the optimisers, an average."""
        moments = 3 if self.config.train.ema is not None else 2
        return moments * sum(p.nbytes for x in self.job.learners.values() for p in x.parameters)

    def _warm_up(self, pins: Pins) -> float:
        """Pass one example: the first pass of a process loads libraries. Return its seconds.

        From then on as many as work: `BatchNorm1d` takes no single one.
        """
        begun = self.clock()
        for learner in self.job.learners.values():
            apply(learner, pins)
            try:
                self._pass(learner)
            except ValueError:
                self.size = self.least = min(2, self.config.train.batch_size)
                self._pass(learner)
        seconds = self.clock() - begun
        if self.tell is not None and seconds >= _SLOW:
            told = f"the first pass of one example took {seconds:.0f} s"
            self.tell(f"{told}; some more show what is fastest, then training begins")
        return seconds

    def _first_pins(self) -> Pins:
        machine, device = self.config.machine, self.world.device
        threads = machine.threads if isinstance(machine.threads, int) else 1
        precision = machine.precision
        if precision == "auto":
            precision = "fp32"
            if device.type == "cuda":
                precision = "bf16" if torch.cuda.is_bf16_supported(False) else "fp16"
                self.why["precision"] = f"the {torch.cuda.get_device_name(device)} has {precision}"
        ways, unused = tune.begin(self.config, self.job, device)
        if unused:
            self.why["unused"] = f"no model of this run uses {', '.join(unused)}"
        return Pins(
            device=str(device), precision=precision, threads=threads,
            matmul="default" if machine.matmul == "auto" else machine.matmul,
            ops=ways,
        )  # fmt: skip

    def _size_up(self, pins: Pins, first: float) -> float:
        """Take as many examples as run in 30 ms; return the seconds that they take.

        Of a small model one example says little: its pass is mostly what a pass costs by itself.
        `first` are seconds of the first pass.
        """
        seconds = first if first >= _SLOW else self._seconds(pins)
        batch = self.config.train.batch_size
        steps = self.config.limit(len(self.job.source)) or _LONG
        passes = min(_PASSES, _WORTH * steps * batch)
        self.deadline = max(self.deadline, self.clock() + passes * seconds)
        while self.size < batch and seconds < _PASS / 2:
            self.size = min(batch, max(2, round(self.size * _PASS / seconds)))
            seconds = self._seconds(pins)
        return seconds

    def _race(self, pins: Pins, best: float) -> tuple[Pins, float]:
        """Try candidates one setting at a time, while the budget lasts."""
        if self.world.device.type != "cpu":
            return pins, best
        measured = {"fp32": best}
        for label, change, ways in self._candidates(pins.ops):
            if len(measured) > 1 and self.clock() > self.deadline:
                break
            trial = replace(pins, **change, ops={**pins.ops, **ways})
            measured[label] = seconds = self._seconds(trial)
            if seconds < best * (_LEAN if "cross_entropy" in ways else _MARGIN):
                pins, best = trial, seconds
        if len(measured) > 1:
            times = ", ".join(f"{k} {v * 1e3:.1f}" for k, v in measured.items())
            self.why["speed"] = f"ms for {self.size} examples on 1 thread: {times}"
        return pins, best

    def _thread(self, pins: Pins, micro: int, each: float) -> tuple[Pins, float]:
        """Take more threads where they are faster by the clock on the wall, at the run's own size.

        `each` is seconds of an example, and so is what comes back.
        """
        cores = usable_cores()
        if self.config.machine.threads != "auto" or cores == 1:
            return pins, each
        self.clock = time.perf_counter
        self.size = max(self.least, min(micro, int(_THREADED / each)))
        trials = {"1": pins, str(cores): replace(pins, threads=cores)}
        if pins.matmul == "default" and self._may_use_onednn(pins.precision):
            # How well a library shares its work out is another question than its speed alone.
            trials[f"{cores} by oneDNN"] = replace(pins, threads=cores, matmul="onednn")
        taken = {label: self._seconds(trial) for label, trial in trials.items()}
        times = ", ".join(f"{label}: {seconds * 1e3:.1f} ms" for label, seconds in taken.items())
        self.why["threads"] = f"{times} for {self.size} examples"
        best = min(taken, key=lambda label: taken[label])
        if taken[best] >= taken["1"] * _THREADS_MARGIN:
            return pins, each
        return trials[best], taken[best] / self.size

    def _may_use_onednn(self, precision: str) -> bool:
        free = self.config.machine.matmul == "auto" and precision == "fp32"
        return free and matmul_path("onednn").accurate()

    def _candidates(
        self, used: Mapping[str, str]
    ) -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
        """Yield a label, what to change, and the ways of operations in use to change with it."""
        machine, ops = self.config.machine, self.config.ops
        free = ops.attention == "auto" and "attention" in used
        if machine.precision == "auto":
            yield "bf16", {"precision": "bf16"}, {}
        if machine.precision in ("auto", "bf16") and free:
            bf16 = {"precision": "bf16"}
            yield "bf16 with attention in tiles", bf16, {"attention": "tiles"}
            yield "bf16 with fp32 attention", bf16, {"attention": "sdpa_fp32"}
        if machine.precision in ("auto", "fp32") and self._may_use_onednn("fp32"):
            onednn = {"precision": "fp32", "matmul": "onednn"}
            yield "fp32 by oneDNN", onednn, {"attention": "sdpa"} if free else {}
        if ops.cross_entropy == "auto" and "cross_entropy" in used:
            yield "the best with the loss in chunks", {}, {"cross_entropy": "chunked"}

    def _tune(self, pins: Pins, seconds: float) -> Pins:
        """Let the operations that no race decided be measured at the sizes of this model."""
        for learner in self.job.learners.values():
            apply(learner, pins)
        device = self.world.device
        free = tune.free(self.config, device)
        ways, why = tune.choose(self.job, free, self._passes, device, pins.ops, seconds)
        self.why |= why
        return replace(pins, ops={**pins.ops, **ways})

    def _passes(self) -> None:
        for learner in self.job.learners.values():
            self._pass(learner)

    def _seconds(self, pins: Pins) -> float:
        """Return seconds of forward and backward of `size` examples: the best of up to three.

        The first pass counts only where it is slow, for libraries make their kernels in it. Once a
        trial has taken 45 ms it is not repeated: slow models show the difference at once.
        """
        for learner in self.job.learners.values():
            apply(learner, pins)
        if (first := self._clocked()) >= _SLOW:
            return first
        best, spent = float("inf"), 0.0
        for _ in range(3):
            taken = self._clocked()
            best, spent = min(best, taken), spent + taken
            if spent > _PASS * 1.5:
                break
        return best

    def _pass(self, learner: Learner) -> None:
        batch = self.data.batch(0, 0, self.size)
        rekey(0, self.world.device)
        if learner.dropouts:
            set_keys(learner.model, example_keys(0, 0, 0, self.size).to(self.world.device))
        learner.accumulate(self.world.to(batch), batch.weight)
        learner.zero()
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)

    def _activations(self, pins: Pins) -> int:
        """Return bytes kept for backward by one example, at most at a time, summed over storages."""
        learners = self.job.learners.values()
        kept = _Kept({p.data_ptr() for x in learners for p in x.model.parameters()})
        for learner in learners:
            apply(learner, pins)
            hooks = torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor)
            with hooks, hearing(kept.pack):
                self._pass(learner)
        return max(1, kept.most // self.size)

    def _micro(self, pins: Pins, activations: int, each: float) -> tuple[int, float]:
        """Return how many examples at once, and the seconds that one of them takes."""
        if asked := self._asked():
            return asked[0], each
        room = _free_memory(self.world.device) // 2
        batch = self.config.train.batch_size
        sizes = size.divisors(batch, self.least)
        sizes = [d for d in sizes if d * activations <= room] or sizes[-1:]
        told = f"{sizes[0]} x {bytes_text(activations)} of activations in {bytes_text(room)}"
        steps = self.config.limit(len(self.job.source)) or _LONG
        worth = 6 * each * batch < max(_SIZING, _SHARE * steps * each * batch)
        if len(sizes) > 1 and worth:
            for learner in self.job.learners.values():
                apply(learner, pins)
            found = size.fastest(sizes, self._timed, self.world.device)
            if found is not None:
                self.why["micro_batch_size"] = f"{told}; {found.why}"
                return found.examples, found.each
        self.why["micro_batch_size"] = told
        return sizes[0], each

    def _prefetch(self) -> int:
        asked = self.config.machine.prefetch_threads
        if isinstance(asked, int):
            return asked
        begun = time.perf_counter()
        self.data.batch(1)
        taken = time.perf_counter() - begun
        self.why["prefetch_threads"] = f"a batch takes {taken * 1e3:.2f} ms to make"
        least = 1 if self.world.device.type == "cuda" else 0  # a GPU never waits for a batch
        return 2 if taken > 2e-3 else least


class _Kept:
    """Counts the bytes of storages handed to `pack` that are alive, now and at most, without `owned`."""

    def __init__(self, owned: set[int]) -> None:
        self.owned, self.size, self.most = owned, 0, 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        key = id(storage := tensor.untyped_storage())
        if key not in self._alive and storage.data_ptr() not in self.owned:
            self._alive[key] = weakref.ref(storage, partial(self._gone, key, storage.nbytes()))
            self.size += storage.nbytes()
            self.most = max(self.most, self.size)
        return tensor

    def _gone(self, key: int, nbytes: int, _: Any) -> None:
        self._alive.pop(key)
        self.size -= nbytes


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available()
