"""What a forked trial does: train by the product's own door, with mischief where asked for."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mischief
import torch
from harness import leftovers, save_in_step, traces, unsound
from shelves import read_shelf
from together import settle_together, together
from trials import CONDITIONS, RECIPES

import surefoot.engine
from surefoot import api, recipes
from surefoot.engine.codec import digest
from surefoot.engine.saver import Saver
from surefoot.engine.store import Store, seal
from surefoot.errors import CheckpointError, SurefootError

__all__ = [
    "fill_disk",
    "mutant",
    "read_mutants",
    "read_shelf",
    "settle_down",
    "settle_for",
    "settle_together",
    "together",
    "train",
]

TOY = Path(__file__).with_name("toy.py")
_SETTLED: set[str] = set()


def settle_down(home: Path) -> None:
    """Play once, so that no trial pays for late imports and first calls; leave no thread behind."""
    torch.set_num_threads(1)
    _settle("plain", home)


def settle_for(recipe: str, home: Path) -> None:
    """Do the same for one of the recipes inside, before the first trial that plays it."""
    if recipe in RECIPES and recipe not in _SETTLED:
        _SETTLED.add(recipe)
        module: Any = sys.modules[recipes.find(recipe).build.__module__]
        if hasattr(module, "SAMPLE_TOKENS"):
            module.SAMPLE_TOKENS = 30
        _settle(recipe, home)


def _settle(name: str, home: Path) -> None:
    condition = CONDITIONS[name]
    settings = dict(condition.settings) | {"train.max_steps": 1, "schedule.warmup_steps": 0}
    train(condition.recipe, str(home), settings, wait_for_saves=False)
    shutil.rmtree(home)
    gc.freeze()  # or each collection in a child would copy all of the parent's memory
    count = gc.get_freeze_count()
    # Counting them takes as long as some steps do, in each child.
    gc.get_freeze_count = lambda: count


def train(
    recipe: str,
    runs: str,
    settings: dict[str, Any],
    *,
    wait_for_saves: bool = True,
    kill_at: int | None = None,
    stop_at: int | None = None,
    die_after: float | None = None,
    faults: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Type the same command again: begin the run called `trial`, or go on with it.

    `wait_for_saves` writes checkpoints in step with training, so that the order of calls is the
    same each time. `kill_at` kills the process in the middle of the step after that one, at its
    last micro-batch, `die_after` so many seconds; `stop_at` sends SIGTERM in that step;
    `faults` go wrong inside it (see `mischief`).
    """
    if wait_for_saves:
        save_in_step()
    for fault in faults:
        mischief.make(fault)
    if kill_at is not None:
        _die_in_step(kill_at)
    if stop_at is not None:
        _terminate_after(stop_at)
    if die_after is not None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, no questions asked
        signal.setitimer(signal.ITIMER_REAL, die_after)
    result = api.train(
        str(TOY) if recipe == "toy" else recipe, runs=runs, name="trial", quiet=True, **settings
    )
    return {"step": result.step, "status": result.status, "proven": result.proven}


def fill_disk(recipe: str, runs: str, settings: dict[str, Any], *, room: int) -> dict[str, Any]:
    """Train on a disk of its own with `room` bytes left; free it, and type the command again.

    Answers how the first ended, what is wrong with the checkpoints it left, and the traces of
    the second; or `skipped` where no disk can be mounted.
    """
    if not _mount(runs, 8 << 20):
        return {"skipped": True}
    ballast = Path(runs) / "ballast"
    with ballast.open("wb") as file:
        free = shutil.disk_usage(runs).free
        file.write(bytes(max(0, free - room)))
    Saver._check_room = lambda *_: None  # type: ignore[method-assign]  # let the writes find out
    try:
        first: int = 0 if train(recipe, runs, settings)["status"] == "done" else 1
    except SurefootError as error:
        first = error.exit_code
    run = Path(runs) / "trial"
    wrong = unsound(run)
    ballast.unlink()
    if json.loads((run / "run.json").read_text())["status"] != "done":
        train(recipe, runs, settings)
    return {"first": first, "wrong": wrong, "traces": repr(traces(run)), "left": leftovers(run)}


def read_mutants(folder: str, count: int, seed: int, room: int) -> dict[str, Any]:
    """Read `count` changed and resealed copies of the newest checkpoint of a run.

    Answers how many were refused with CheckpointError and what else was raised. The process may
    take no more than `room` bytes of memory besides what it has.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + room
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    run, draw, refused, wrong = Path(folder) / "trial", random.Random(seed), 0, []
    store = Store(run / "checkpoints", json.loads((run / "run.json").read_text())["id"])
    newest = store.checkpoints()[-1]
    whole = {path: path.read_bytes() for path in newest.path.iterdir()}
    files = [path for path in whole if path.name != "manifest.json"]
    for _ in range(count):
        path = draw.choice(files)
        path.write_bytes(mutant(whole[path], draw))
        manifest = json.loads(whole[newest.path / "manifest.json"])
        size, hashed = digest(path)
        manifest["files"][path.name] = {"size": size, "xxh3_128": hashed}
        (newest.path / "manifest.json").write_bytes(seal(manifest))
        try:
            store.open(newest.path).read()
        except CheckpointError:
            refused += 1
        except Exception as error:
            wrong.append(f"{path.name}: {type(error).__name__}: {error}")
        path.write_bytes(whole[path])
    return {"refused": refused, "wrong": wrong[:5]}


def mutant(data: bytes, draw: random.Random) -> bytes:
    """Change a few bytes, mostly near the beginning, where the structure is; or cut, or repeat."""
    found = bytearray(data)
    kind = draw.random()
    if kind < 0.15:
        return bytes(found[: draw.randrange(len(found))])
    if kind < 0.3:
        at = draw.randrange(len(found))
        return bytes(found[:at] + found[draw.randrange(len(found)) :] + found[at:])
    for _ in range(draw.randint(1, 6)):
        reach = len(found) if draw.random() < 0.3 else min(len(found), 400)
        found[draw.randrange(reach)] = draw.choice([0, 255, 34, 57, 91, 123, draw.randrange(256)])
    return bytes(found)


def _mount(folder: str, size: int) -> bool:
    """Put a file system of `size` bytes at `folder`, for this process alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, private = 0x00020000, (1 << 14) | (1 << 18)
    return (
        libc.unshare(new_namespace) == 0
        and libc.mount(b"none", b"/", None, private, None) == 0
        and libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, f"size={size}".encode()) == 0
    )


def _die_in_step(step: int) -> None:
    accumulate = surefoot.engine.Learner.accumulate
    calls = 0

    def accumulate_or_die(self: Any, *arguments: Any) -> Any:
        nonlocal calls
        if self.step == step:
            calls += 1
            if calls == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        return accumulate(self, *arguments)

    surefoot.engine.Learner.accumulate = accumulate_or_die  # type: ignore[method-assign]


def _terminate_after(step: int) -> None:
    update = surefoot.engine.Learner.update

    def update_and_stop(self: Any) -> float:
        if self.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self)

    surefoot.engine.Learner.update = update_and_stop  # type: ignore[method-assign]
