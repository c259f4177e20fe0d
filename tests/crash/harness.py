"""Plays runs in forked processes that die where they are told, and compares what they leave."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surefoot.engine.codec import read_tensors
from surefoot.engine.store import Checkpoint, Store
from surefoot.errors import CheckpointError
from surefoot.track.lock import scratch

__all__ = [
    "IN_MEMORY",
    "KILL",
    "Outcome",
    "Stage",
    "Zygote",
    "checkpoints",
    "compiled",
    "leftovers",
    "save_in_step",
    "traces",
    "unsound",
]

HERE = Path(__file__).parent
_SHM = Path("/dev/shm")  # a folder in memory, where fsync costs nothing
IN_MEMORY = _SHM if os.access(_SHM, os.W_OK) else None
KILL = -1
# What is allowed to differ between two records of the same run.
CIRCUMSTANCE = {
    "time", "segment", "tokens_per_s", "tokens_per_s_each", "examples_per_s"
}  # fmt: skip


def compiled(folder: Path) -> Path | None:
    """Compile the preload library into `folder`; None where that is impossible."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux") or compiler is None:
        return None
    target = folder / "crashpoint.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(target), str(HERE / "crashpoint.c")]
    subprocess.run([*command, "-ldl"], check=True, capture_output=True)
    return target


@dataclass(frozen=True)
class Outcome:
    """How one process ended. `code` is None when it was killed; `calls` counts what it changed."""

    code: int | None
    calls: int = 0
    answer: dict[str, Any] = field(default_factory=dict)

    @property
    def killed(self) -> bool:
        return self.code is None

    @property
    def error(self) -> str:
        return str(self.answer.get("traceback", ""))


class Zygote:
    """One process that forks a child for each trial, one at a time."""

    def __init__(self, library: Path, home: Path, ready: str = "alone") -> None:
        self._home = home
        environment = os.environ | {
            "LD_PRELOAD": str(library), "SUREFOOT_CRASHPOINT": str(library),
            "SUREFOOT_CACHE": str(home / "cache"), "SUREFOOT_OFFLINE": "1",
            "XDG_STATE_HOME": str(home / "state"),
            "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py"), tempfile.mkdtemp(dir=home), ready],
            env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError("the zygote died")
        return line

    def play(
        self,
        name: str,
        *,
        arm: tuple[Path, int, int] | None = None,
        log: tuple[Path, Path] | None = None,
        limit: float = 900.0,
        **arguments: Any,
    ) -> Outcome:
        """Play `name` of `plays.py` in a fork and return how it ended."""
        assert self._process.stdin is not None
        answer = self._home / f"answer-{self._process.pid}.json"
        answer.unlink(missing_ok=True)
        request = {
            "play": name, "arguments": arguments, "answer": str(answer), "limit": limit,
            "arm": arm and [str(arm[0]), arm[1], arm[2]], "log": log and [str(p) for p in log],
        }  # fmt: skip
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        ended = json.loads(self._read())
        if ended["hung"]:
            raise RuntimeError(f"{name} did not end in {limit} s")
        if not answer.exists():
            return Outcome(None)
        found = json.loads(answer.read_text())
        return Outcome(found["code"], found["calls"], found)

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class Stage:
    """Several zygotes, and a folder in memory where fsync costs nothing.

    They are `ready` to play runs of one process, or of several together.
    """

    def __init__(self, library: Path, count: int, every: int = 1, ready: str = "alone") -> None:
        self._lent = contextlib.ExitStack()
        self.home = self._lent.enter_context(scratch(IN_MEMORY))
        self._idle: queue.Queue[Zygote] = queue.Queue()
        with ThreadPoolExecutor(count) as pool:
            made = [pool.submit(Zygote, library, self.home, ready) for _ in range(count)]
            self._zygotes = [future.result() for future in made]
        for zygote in self._zygotes:
            self._idle.put(zygote)
        self.count, self.every = count, every

    @contextlib.contextmanager
    def zygote(self) -> Iterator[Zygote]:
        """A zygote of one's own. Who asks for a second meanwhile is told so, not made to wait for ever."""
        try:
            zygote = self._idle.get_nowait()
        except queue.Empty:
            raise RuntimeError(f"all {self.count} zygotes are taken") from None
        try:
            yield zygote
        finally:
            self._idle.put(zygote)

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """A fresh folder for runs, gone afterwards."""
        folder = Path(tempfile.mkdtemp(dir=self.home))
        try:
            yield folder
        finally:
            shutil.rmtree(folder)

    def each(
        self,
        trial: Callable[[Zygote, Path, Any], Any],
        cases: Iterable[Any],
        thin: bool = False,
    ) -> list[Any]:
        """Return `trial(zygote, fresh folder, case)` of every case, as many at once as zygotes.

        Of cases that are `thin`, a random one in `self.every`, always the same.
        """
        if thin and self.every > 1:
            cases = list(cases)
            cases = random.Random(0).sample(cases, max(1, len(cases) // self.every))

        def one(case: Any) -> Any:
            with self.zygote() as zygote, self.folder() as folder:
                return trial(zygote, folder, case)

        with ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(one, cases))

    def close(self) -> None:
        for zygote in self._zygotes:
            zygote.close()
        self._lent.close()


def traces(run: Path) -> dict[str, Any]:
    """Everything that must be equal between a run and its undisturbed twin, by name.

    The bits of the newest checkpoint, its small state, which checkpoints are kept, and the rows
    of the record without times and throughput.
    """
    kept = checkpoints(run)
    newest = kept[-1]
    newest.verify()
    found: dict[str, Any] = {"steps kept": [c.step for c in kept]}
    for path in sorted(newest.path.glob("*.safetensors")):
        for name, tensor in read_tensors(path).items():
            found[f"{path.name}: {name}"] = (str(tensor.dtype), tensor.numpy().tobytes())
    found["small"] = (newest.path / "state.json").read_bytes()
    found["metric"] = newest.metric
    for kind in ("metrics", "samples"):
        path = run / f"{kind}.jsonl"
        found[kind] = [_bare(json.loads(line)) for line in path.read_text().splitlines()]
    meta = json.loads((run / "run.json").read_text())
    found["status"] = (meta["status"], meta["step"], meta["best"])
    return found


def checkpoints(run: Path) -> list[Checkpoint]:
    identity = json.loads((run / "run.json").read_text())["id"]
    return Store(run / "checkpoints", identity).checkpoints()


def _bare(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in CIRCUMSTANCE}


def save_in_step() -> None:
    """Write checkpoints in step with training, so that the order of calls is the same each time."""
    from surefoot.engine.saver import Saver  # brings torch, which only the zygotes need

    save = Saver.save

    def save_and_wait(self: Saver, *arguments: Any, **facts: Any) -> None:
        save(self, *arguments, **facts)
        self.wait()

    Saver.save = save_and_wait  # type: ignore[method-assign]


def unsound(run: Path) -> str | None:
    """Return what is wrong with the checkpoints that a process left behind."""
    meta = run / "run.json"
    if not meta.exists():
        return None  # the run was not begun
    store = Store(run / "checkpoints", json.loads(meta.read_text())["id"])
    try:
        for checkpoint in store.checkpoints():
            checkpoint.read()
    except CheckpointError as error:
        return str(error)
    damaged = store.damaged()
    return f"{damaged[0][0].name}: {damaged[0][1]}" if damaged else None


def leftovers(run: Path) -> list[str]:
    """Names of what only a killed process leaves: staging, half files, things moved aside."""
    names = [str(p.relative_to(run)) for p in run.rglob("*")]
    marks = (".new", ".staging", ".replaced", ".removed", ".torn", "damaged")
    return sorted(n for n in names if any(mark in n for mark in marks))
