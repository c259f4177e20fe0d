"""What the promise costs: saving, verifying, the journal, finding one's place, going on.

    python benchmarks/save.py [--rounds 5]

Where two things are compared their rounds alternate, and medians count; processor time of the
process with all its threads unless it says seconds on the wall. A save is written to a temporary
folder and fsynced. The stall of a save is how long training waits for it on the wall: in `save`,
and in the next update for a copy of what is not written by then. Writes benchmarks/results/save.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
import xxhash
from position_in_data import microseconds

from surefoot import Data, Learner, Loss, Store, TrainState, World, steps
from surefoot.config.model import GPTConfig
from surefoot.config.schema import Keep, Optim
from surefoot.data.text import TextSource
from surefoot.engine.checksum import checksum
from surefoot.engine.saver import Saver
from surefoot.engine.state import Payload, Snapshot
from surefoot.engine.tape import Tape
from surefoot.nn.gpt import GPT
from surefoot.nn.optim import build_optimisers

CPU = World(torch.device("cpu"))
SEED_GPT = GPTConfig(layout="gpt2", d_model=512, num_layers=9, num_heads=8, context=64)
LAPTOP = GPTConfig(d_model=128, num_layers=4, num_heads=4, context=64)
TEXT = np.random.default_rng(0).integers(0, 65, 1_000_000, dtype=np.uint8)


def trained(config: GPTConfig, words: int, batch_size: int, kind: str) -> tuple[TrainState, Any]:
    """Return a state after one step, with all its moments, and the loop that goes on with it."""
    model = GPT(config, words)
    loss = lambda m, batch: Loss(m(batch.fields["x"], batch.fields["y"]))
    learner = Learner(model, loss, build_optimisers(model, Optim(kind=kind)))
    state = TrainState({"main": learner})
    loop = steps(state, Data(TextSource(TEXT, config.context), 1, batch_size), 1, CPU)
    next(loop)
    return state, loop


def size_of(state: TrainState) -> int:
    """Return the bytes that a save writes, without headers."""
    groups = state.payload().tensors.values()
    return sum(t.nbytes for group in groups for t in group.values())


class Unhashed:
    """Takes the place of the hash of a save."""

    def update(self, data: Any) -> None:
        """Look at nothing."""

    def hexdigest(self) -> str:
        """Return no hash."""
        return ""


def alternate(
    rounds: int, clock: Callable[[], float], **sides: Callable[[], object]
) -> dict[str, float]:
    """Return the median of what each side takes by `clock`; the first round does not count."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, work in sides.items():
            begun = clock()
            work()
            found[name].append(clock() - begun)
    return {name: statistics.median(taken[1:]) for name, taken in found.items()}


def verifying(state: TrainState, folder: Path, rounds: int) -> list[str]:
    """Save the same bytes with and without their hashes."""
    payload, store = Snapshot().take(state.payload()), Store(folder, "bench")
    hasher = xxhash.xxh3_128

    def unhashed() -> None:
        xxhash.xxh3_128 = Unhashed
        try:
            store.save(1, payload)
        finally:
            xxhash.xxh3_128 = hasher

    def torch_save() -> None:
        with (folder / "plain.pt").open("wb") as file:
            torch.save(payload.tensors, file)
            os.fsync(file.fileno())

    sides: dict[str, Callable[[], object]] = {
        "hashed": partial(store.save, 2, payload), "unhashed": unhashed, "torch_save": torch_save,
    }  # fmt: skip
    found = alternate(rounds, time.perf_counter, **sides)
    newest = store.save(2, payload)
    spent = alternate(rounds, time.process_time, hashing=partial(_hash, payload), **sides)
    again = alternate(rounds, time.process_time, verify=newest.verify, read=newest.read)
    text = f"a save of {size_of(state) / 1e6:.0f} MB"
    return [
        "| | seconds on the wall | processor seconds |", "|---|---|---|",
        *(
            f"| {text}, {name.replace('_', '.')} | {value:.3f} | {spent[name]:.3f} |"
            for name, value in found.items()
        ),
        f"| its hashes alone | | {spent['hashing']:.3f} |",
        f"| verified again | | {again['verify']:.3f} |",
        f"| verified and read | | {again['read']:.3f} |", "",
        machine.goal(
            "verified over unverified save", found["hashed"] / found["unhashed"], 1.1, least=False
        ), "",
    ]  # fmt: skip


def _hash(payload: Payload) -> None:
    for group in payload.tensors.values():
        hasher = xxhash.xxh3_128()
        for tensor in group.values():
            hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)


def stalling(batch_size: int, words: str, folder: Path, rounds: int) -> list[str]:
    """Save between real steps of `batch_size` examples, and measure for how long training waits."""
    state, loop = trained(SEED_GPT, 256, batch_size, "adamw")
    saver = Saver(Store(folder, "bench"), Keep(), 1, lambda: None)
    waits, beside, alone, copied = [], [], [], []

    def step() -> float:
        begun = time.perf_counter()
        saver.due(1)  # as a run asks after each step
        next(loop)
        return time.perf_counter() - begun

    for _ in range(rounds + 1):
        before, begun = saver.stall, time.perf_counter()
        saver.save(state, places={})
        next(loop)
        waits.append((saver.stall - before) * 1e3)
        beside.append(time.perf_counter() - begun)
        saver.wait()
        copied.append(sum(t.nbytes for t in saver._room.values()))
        alone.append(min(step() for _ in range(3)))
    snapshot = Snapshot()
    other = alternate(
        rounds, time.perf_counter,
        copy=lambda: snapshot.take(state.payload()), fork=lambda: os.waitpid(_fork(), 0),
    )  # fmt: skip
    first, *others = waits
    middle = statistics.median(others)
    return [
        f"| milliseconds on the wall, steps {words} than a save | |", "|---|---|",
        f"| training waits for a save of {size_of(state) / 1e6:.0f} MB | {middle:.2f} |",
        f"| the longest wait | {max(others):.2f} |",
        f"| the first, whose pace is not known | {first:.2f} |",
        f"| MB that were copied at a save | {statistics.median(copied[1:]) / 1e6:.0f} |",
        f"| a copy in the way of training instead | {other['copy'] * 1e3:.1f} |",
        f"| a fork that copies nothing yet | {other['fork'] * 1e3:.1f} |",
        f"| a step alone | {statistics.median(alone) * 1e3:.0f} |",
        f"| a step beside a save | {statistics.median(beside[1:]) * 1e3:.0f} |", "",
        machine.goal("wait for a save", middle, 25, least=False, unit="ms"), "",
    ]  # fmt: skip


def _fork() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    return child


def journal(folder: Path, rounds: int) -> list[str]:
    """Time what is added to a step for its proof: the checksum, the gate and the record."""
    state, loop = trained(LAPTOP, 65, 12, "muon")
    learner, tape = state.learners["main"], Tape(folder / "journal", "bench", ["main"], {})
    numbers = iter(range(1, 10**9))

    def record() -> None:
        step = next(numbers)
        checked = int(checksum(learner, step))
        finite = np.isfinite(1.5) and not learner.spikes(1.5)
        values = {"micro": 12, "digest": step, "seed": step, "loss": 1.5, "norm": float(finite)}
        tape.step("main", tape.record("main", step, state=checked, **values))

    def many(work: Callable[[], object], count: int) -> None:
        for _ in range(count):
            work()

    sides = {"step": partial(many, partial(next, loop), 10), "record": partial(many, record, 10)}
    found = alternate(rounds * 4, time.process_time, **sides)
    tape.close()
    share = 100 * found["record"] / found["step"]
    return [
        "| processor microseconds, charlm laptop | |", "|---|---|",
        f"| a step with its journal's checksum and gate | {found['step'] * 1e5:.0f} |",
        f"| checksum, gate and record | {found['record'] * 1e5:.0f} |", "",
        machine.goal("journal and gate of a step", share, 1, least=False, unit="%"), "",
    ]  # fmt: skip


def position() -> list[str]:
    """Time finding the examples of a step, early and late."""
    data = Data(TextSource(TEXT, 64), 1, 12)
    early, late = (microseconds(partial(data.address, step)) for step in (10**3, 10**9))
    return [
        "| microseconds to find the examples of a step | |", "|---|---|",
        f"| step 1,000 | {early:.1f} |", f"| step 1,000,000,000 | {late:.1f} |", "",
        machine.goal("position in the data", max(early, late) / 1e3, 1, least=False, unit="ms"),
        machine.goal("late over early", late / early, 1.5, least=False), "",
    ]  # fmt: skip


TO_FIRST_STEP = """
import os, sys, time
from surefoot import cli
from surefoot.engine.learner import Learner
update, last = Learner.update, int(sys.argv[1])
def told(learner):
    rate = update(learner)
    if learner.step >= last or last == 0:
        print("AT", time.time(), time.process_time(), flush=True)
        os._exit(0)
    return rate
Learner.update = told
cli.main(sys.argv[2:])
"""


def going_on(folder: Path, rounds: int) -> list[str]:
    """Time from Enter to the first step, of a fresh start and of a resume at the same size."""

    def start(last: int, *words: str) -> tuple[float, float]:
        begun = time.time()
        command = [sys.executable, "-c", TO_FIRST_STEP, str(last), *words, "--runs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        line = next((x for x in done.stdout.splitlines() if x.startswith("AT ")), None)
        assert line is not None, done.stderr
        return float(line.split()[1]) - begun, float(line.split()[2])

    train = ("train", "charlm", "--quiet", "--save-every", "20", "--new", "--name")
    start(45, *train, "kept")
    found: dict[str, list[tuple[float, float]]] = {"fresh": [], "resume": []}
    for number in range(rounds):
        found["fresh"].append(start(0, *train, f"fresh{number}"))
        shutil.copytree(folder / "kept", folder / f"again{number}")
        found["resume"].append(start(0, "resume", str(folder / f"again{number}"), "--quiet"))
    rows = {
        name: [statistics.median(column) for column in zip(*pairs, strict=True)]
        for name, pairs in found.items()
    }
    more = rows["resume"][1] - rows["fresh"][1]
    return [
        "| to the first step, charlm laptop | seconds on the wall | processor seconds |",
        "|---|---|---|",
        *(f"| {name} | {wall:.2f} | {spent:.2f} |" for name, (wall, spent) in rows.items()), "",
        machine.goal("resume over fresh start, processor time", more, 1, least=False, unit="s"),
    ]  # fmt: skip


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    page = machine.heading("What the promise costs", "benchmarks/save.py", __doc__)
    state, _ = trained(SEED_GPT, 256, 2, "adamw")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("a", "b", "c", "d"):
            (folder / part).mkdir()
        page += verifying(state, folder / "a", rounds)
        page += stalling(2, "shorter", folder / "b", rounds)
        page += stalling(24, "longer", folder / "d", rounds)
        page += journal(folder, rounds) + position() + going_on(folder / "c", rounds)
    machine.write("save", page)


if __name__ == "__main__":
    main()
