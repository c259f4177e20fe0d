"""A sweep on disk: `RUNS/sweeps/NAME/` with its plan, its trials, its runs and its report."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surefoot.config.suggest import nearest
from surefoot.errors import RunError, SurefootError
from surefoot.sweep.plan import Plan, same
from surefoot.sweep.trials import Files, Trials
from surefoot.track.durable import write_atomic
from surefoot.track.folder import now, runs_dir

__all__ = ["SWEEPS", "Sweep", "create", "find", "known", "resumable"]

SWEEPS = "sweeps"  # beside the runs


@dataclass(frozen=True)
class Sweep:
    """One sweep: where it is and what it is going to do."""

    path: Path
    plan: Plan
    created: str

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def reference(self) -> str:
        """What to type to mean it."""
        here = self.path.parent == runs_dir() / SWEEPS
        return shlex.quote(self.name if here else str(self.path))

    @property
    def runs(self) -> Path:
        """The folder of its runs."""
        return self.path / "runs"

    def run_name(self, number: int, seed: int) -> str:
        """Return the name of a run of a trial."""
        tail = f"-seed-{seed}" if self.plan.repeated else ""
        return f"trial-{number + 1:03d}{tail}"

    def trials(self, storage: str | None = None) -> Trials:
        """Open the trials; `storage` is a database's address with what was left out of the plan."""
        plan = self.plan
        if plan.mode != "search" and plan.prune == "off" and plan.storage is None:
            return Files(self.path, plan)
        from surefoot.sweep.search import Study

        url = storage or os.environ.get("SUREFOOT_STORAGE") or plan.storage
        return Study(self.path, plan, self.name, url)


def create(runs: Path, plan: Plan, name: str | None) -> Sweep:
    """Make the folder of a new sweep. Raises RunError: a taken name, a place that cannot be written."""
    home = runs / SWEEPS
    if name == "last" or (name and not re.fullmatch(r"[A-Za-z_][\w.+-]*", name)) or name == "":
        what, fix = f"{name!r} cannot be the name of a sweep", "letters, digits and . _ + -"
        raise RunError(what, where="--name", fix=f"{fix}, a letter first, and not `last`")
    try:
        home.mkdir(parents=True, exist_ok=True)
        if name is None:
            return _made(_reserve(home, plan), plan)
        (home / name).mkdir()
        return _made(home / name, plan)
    except FileExistsError:
        is_one = _there(
            home / str(name) / "sweep.json"
        )  # else a creator was killed, or it is yours
        rest = (
            f"surefoot sweep resume {name}" if is_one else "remove that folder: it holds no sweep"
        )
        fix = f"another --name, or {rest}"
        raise RunError(f"there is already a sweep called {name}", fix=fix) from None
    except OSError as error:
        what = f"cannot make a sweep: {error.strerror}"
        raise RunError(what, where=str(home), fix="--runs DIR, where you may write") from error


def _made(path: Path, plan: Plan) -> Sweep:
    created = now()
    (path / "runs").mkdir(
        parents=True, exist_ok=True
    )  # two workers may find the same in a database
    document = {"created": created, "plan": plan.document()}
    write_atomic(path / "sweep.json", json.dumps(document, indent=2) + "\n")
    return Sweep(path, plan, created)


def _reserve(home: Path, plan: Plan) -> Path:
    """Take the next number; safe against other creators, because making a folder is."""
    while True:
        taken = [int(m[1]) for p in home.iterdir() if (m := re.match(r"(\d+)-", p.name))]
        path = home / f"{max(taken, default=0) + 1:04d}-{plan.found.name}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path


def known(runs: Path) -> list[Sweep]:
    """Return every sweep beside `runs` that can be read, oldest first."""
    return sorted(_readable(runs / SWEEPS), key=lambda sweep: (sweep.created, sweep.name))


def _readable(home: Path) -> Iterator[Sweep]:
    for path in home.glob("*/sweep.json"):
        try:
            yield _read(path)
        except SurefootError:  # damaged, or of a later version; who names it is told
            continue


def _read(path: Path) -> Sweep:
    """Return the sweep that a `sweep.json` describes. Raises ConfigError or RunError."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Sweep(path.parent, Plan.read(found["plan"]), str(found["created"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"sweep.json cannot be read: {type(error).__name__}: {error}"
        raise RunError(
            what, where=str(path), fix="the same flags and --new begin it anew"
        ) from None


def _there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def find(runs: Path, ref: str, storage: str | None = None) -> Sweep:
    """Return the sweep that `ref` means: a path, `last`, a name, number or unique prefix.

    With a `storage`, one that is only known there gets a folder here. Raises RunError.
    """
    for path in (Path(ref), runs / SWEEPS / ref):
        if ref and _there(path / "sweep.json"):
            return _read(path / "sweep.json")
    sweeps = known(runs)
    fits = [s for s in sweeps if s.name == ref] or [s for s in sweeps if s.name.startswith(ref)]
    if not fits and ref.isdecimal():
        fits = [s for s in sweeps if re.match(rf"0*{int(ref)}-", s.name)]
    if ref == "last" and sweeps:
        return sweeps[-1]
    if len(fits) == 1:
        return fits[0]
    if fits:
        names = ", ".join(s.name for s in fits)
        raise RunError(f"{len(fits)} sweeps match {ref!r}", fix=f"one of {names}")
    if storage is not None:
        from surefoot.sweep.search import plan_in

        return _made(runs / SWEEPS / ref, plan_in(storage, ref))
    if not sweeps:
        raise RunError(f"there are no sweeps in {runs / SWEEPS}", fix="surefoot sweep --help")
    near = nearest(ref, [s.name for s in sweeps] + [s.name.partition("-")[2] for s in sweeps])
    fix = f"did you mean {near}?" if near else "surefoot sweep list"
    raise RunError(f"no such sweep: {ref}", where=str(runs / SWEEPS), fix=fix)


def resumable(runs: Path, plan: Plan, name: str | None, storage: str | None) -> Sweep | None:
    """Return the newest unfinished sweep of this plan, or the one called `name`.

    Raises RunError where that name is another plan's.
    """
    for sweep in reversed(known(runs)):
        if name is not None and sweep.name == name:
            if not same(sweep.plan, plan):
                what = f"sweep {name} has another plan"
                raise RunError(what, where=str(sweep.path), fix="another --name, or the same flags")
            return sweep
        if name is None and same(sweep.plan, plan) and not sweep.trials(storage).finished():
            return sweep
    return None
