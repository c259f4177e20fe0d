"""Which runs may go, each with its reason, and which stay whatever was asked for.

Nothing is deleted here: runs move to `.trash/` beside them, and come back from there for seven
days. A run that is running, kept, the best of its recipe on its data, or the parent of one of
those is never moved.
"""

from __future__ import annotations

import calendar
import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from surefoot.errors import RunError, SurefootError
from surefoot.track.choose import Choice, age, best_value
from surefoot.track.folder import TRASH, RunFolder, list_runs
from surefoot.track.text import bytes_text

__all__ = [
    "DAYS",
    "Rules",
    "Verdict",
    "batches",
    "disk",
    "empty",
    "judge",
    "move",
    "shields",
    "undo",
]

DAYS = 7  # that a run stays in the trash
REASONS = "reasons.json"
STAMP = "%Y%m%dT%H%M%S"  # name of a batch: when it was moved, in UTC
PARTS = {"checkpoints": "checkpoints", "tb": "tb", "plots": "pictures", "report.html": "pictures"}


@dataclass(frozen=True)
class Rules:
    """What makes a run superfluous; any one of them is enough, among the runs of `choice`.

    `older` is in seconds, `newest` counts runs that stay of each recipe, `max_disk` is the bytes
    that all runs may take. Without any rule a choice alone, or names alone, are reason enough,
    and without those tests and failures go.
    """

    tests: bool = False
    failed: bool = False
    older: float | None = None
    newest: int | None = None
    max_disk: int | None = None
    choice: Choice = field(default_factory=Choice)
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What becomes of one run: it goes for `reason`, unless a `shield` says why it stays."""

    run: RunFolder
    size: int  # bytes
    reason: str
    shield: str = ""


def judge(runs: Path, rules: Rules) -> list[Verdict]:
    """Return a verdict for each run that a rule is met by, oldest first."""
    known = list_runs(runs)
    shielded, found = shields(known), {}
    sizes = {run.name: sum(disk(run.path).values()) for run in known}
    for run in known:
        meant = not rules.names or run.name in rules.names
        if meant and "damage" not in run.meta and rules.choice(run):
            reason = _reason(run, known, rules)
            if reason or rules.max_disk is not None:
                found[run.name] = (run, reason)
    left = sum(sizes.values()) - sum(
        sizes[name] for name, (_, reason) in found.items() if reason and name not in shielded
    )
    verdicts = []
    for name, (run, reason) in found.items():
        if not reason and rules.max_disk is not None and left > rules.max_disk:
            reason = f"over {bytes_text(rules.max_disk)} in all"
            left -= 0 if name in shielded else sizes[name]
        if reason:
            verdicts.append(Verdict(run, sizes[name], reason, shielded.get(name, "")))
    return verdicts


def _reason(run: RunFolder, known: list[RunFolder], rules: Rules) -> str:
    ruled = rules.older is not None or rules.newest is not None or rules.max_disk is not None
    bare = not (rules.tests or rules.failed or ruled)
    if bare and (rules.names or not rules.choice.open):
        return "named" if rules.names else str(rules.choice) or "chosen"
    if (rules.tests or bare) and run.test:
        return f"test ({run.test})"
    if (rules.failed or bare) and _fruitless(run):
        return f"{run.status} before its first checkpoint"
    if rules.older is not None and age(run.meta) > rules.older:
        return f"{age(run.meta) / 86400:.0f} days old"
    if rules.newest is not None:
        kin = [other for other in known if other.meta.get("recipe") == run.meta.get("recipe")]
        if run.name in [other.name for other in kin[: len(kin) - rules.newest]]:
            return f"not among the newest {rules.newest} of {run.meta.get('recipe')}"
    return ""


def _fruitless(run: RunFolder) -> bool:
    """Whether a run ended by a failure and saved nothing beyond the state that it began with."""
    if run.status not in ("failed", "lost"):
        return False
    parent = run.meta.get("parent")
    first = int(parent.get("step") or 0) if isinstance(parent, dict) else 0
    steps = [path.name.removeprefix("step-") for path in run.path.glob("checkpoints/step-*")]
    return not any(step.isdecimal() and int(step) > first for step in steps)


def shields(known: list[RunFolder]) -> dict[str, str]:
    """Return by name why a run is never moved: it runs, is kept, the best, or a parent of those."""
    found = {run.name: f"best of {run.meta.get('recipe')} on its data" for run in _best(known)}
    for run in known:
        holder = run.holder()
        if run.meta.get("kept"):
            found[run.name] = "kept by you"
        if holder is not None:
            found[run.name] = f"running, process {holder.pid}" if holder.pid else "running"
    by_id = {run.meta.get("id"): run for run in known if run.meta.get("id")}
    for run in [run for run in known if run.name in found]:
        for child, parent in _lineage(run, by_id):
            found.setdefault(parent.name, f"parent of {child.name}")
    return found


def _best(known: list[RunFolder]) -> list[RunFolder]:
    """Return the run with the lowest loss of each recipe on each data, tests aside."""
    found: dict[tuple[object, object], tuple[float, RunFolder]] = {}
    for run in known:
        value = None if run.test else best_value(run.meta)
        place = (run.meta.get("recipe"), run.meta.get("source"))
        if value is not None and (place not in found or value < found[place][0]):
            found[place] = (value, run)
    return [run for _, run in found.values()]


def _lineage(
    run: RunFolder, by_id: Mapping[object, RunFolder]
) -> Iterator[tuple[RunFolder, RunFolder]]:
    """Yield (child, parent) from `run` upwards, as far as the parents are there."""
    seen = {run.name}
    while isinstance(said := run.meta.get("parent"), dict):
        parent = by_id.get(said.get("id"))
        if parent is None or parent.name in seen:
            return
        yield run, parent
        seen.add(parent.name)
        run = parent


def disk(path: Path) -> dict[str, int]:
    """Return the bytes of a run by part; files that vanish meanwhile count as nothing."""
    found = dict.fromkeys(("checkpoints", "tb", "pictures", "record"), 0)
    for parent, _, names in os.walk(path):
        first = os.path.relpath(parent, path).partition(os.sep)[0]
        for name in names:
            part = PARTS.get(name if first == "." else first, "record")
            try:
                found[part] += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118  (speed)
            except OSError:
                continue
    return found


def move(runs: Path, verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Move runs to the trash, but for those with a shield; return what became of each.

    Each run is held while it moves, so that nobody begins to train it; one that cannot be held
    stays, and its shield says why. Raises RunError when the trash cannot be written; what was
    moved before that can be undone.
    """
    found = list(verdicts)
    going = [verdict for verdict in found if not verdict.shield]
    if not going:
        return found
    try:
        batch = _batch(runs)
        reasons = {verdict.run.name: verdict.reason for verdict in going}
        with contextlib.suppress(OSError):  # a full disk is when pruning is needed most
            (batch / REASONS).write_text(json.dumps(reasons, indent=2) + "\n", encoding="utf-8")
        found = [verdict if verdict.shield else _moved(verdict, batch) for verdict in found]
    except OSError as error:
        what = f"cannot move runs to the trash: {error.strerror}"
        raise RunError(what, where=str(runs / TRASH), fix="surefoot prune --undo") from error
    if all(verdict.shield for verdict in found):
        _close(batch)
    return found


def _moved(verdict: Verdict, batch: Path) -> Verdict:
    """Move one run and return its verdict, with a shield where it could not be held."""
    try:
        with verdict.run.lock():
            verdict.run.path.rename(batch / verdict.run.name)
    except SurefootError as error:  # somebody has begun to train it, or it is not ours to move
        return replace(verdict, shield=error.what)
    return verdict


def _batch(runs: Path) -> Path:
    stamp = time.strftime(STAMP, time.gmtime())
    for name in [stamp, *(f"{stamp}-{number}" for number in range(2, 100))]:
        path = runs / TRASH / name
        if not path.exists():
            path.mkdir(parents=True)
            return path
    raise OSError("too many prunes in one second")


def undo(runs: Path) -> Iterator[tuple[str, str]]:
    """Bring the newest batch back; yield (name, what hinders it, or "")."""
    known = batches(runs)
    if not known:
        raise RunError("the trash is empty", where=str(runs / TRASH), fix="surefoot runs")
    batch = known[-1]
    for run in list_runs(batch):
        home = runs / run.name
        if home.exists():
            yield (
                run.name,
                f"{home} is in the way; move it, then undo again; the run stays in {batch}",
            )
            continue
        try:
            run.path.rename(home)
        except OSError as error:
            yield run.name, f"{error.strerror}; it stays in {batch}"
            continue
        yield run.name, ""
    if not list_runs(batch):
        _close(batch)


def empty(runs: Path, days: float = DAYS) -> tuple[int, int]:
    """Delete what has been in the trash for longer than `days`; return (runs, bytes)."""
    count = size = 0
    for batch in batches(runs):
        moved = calendar.timegm(time.strptime(batch.name.partition("-")[0], STAMP))
        if time.time() - moved < days * 86400:
            continue
        for run in list_runs(batch):
            count, size = count + 1, size + sum(disk(run.path).values())
        shutil.rmtree(batch)
    return count, size


def batches(runs: Path) -> list[Path]:
    """Return the batches in the trash, oldest first; only what `move` made, no links."""
    trash = runs / TRASH
    if trash.is_symlink() or not trash.is_dir():
        return []
    found = [path for path in trash.iterdir() if re.fullmatch(r"\d{8}T\d{6}(-\d+)?", path.name)]
    return sorted(path for path in found if path.is_dir() and not path.is_symlink())


def _close(batch: Path) -> None:
    (batch / REASONS).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something else is in it: it stays
        batch.rmdir()
