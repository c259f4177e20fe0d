"""A run is a folder: made in one rename, described by `run.json`, locked while a process trains it.

Everything about a run is in its folder and nowhere else: no database, no index that goes stale.
A folder may be copied, moved or deleted with the tools of the operating system.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from surefoot.errors import RunError
from surefoot.track.durable import sync, sync_folder, write_atomic
from surefoot.track.lock import Holder, alone, hold, holder, unwritable
from surefoot.track.meta import FORMAT, newer, parse, read
from surefoot.track.meta import dump as meta_text

__all__ = [
    "FORMAT", "TRASH", "RunFolder", "check_name", "find", "list_runs", "now", "reference", "runs_dir",
]  # fmt: skip

TRASH = ".trash"  # beside the runs: what prune moved away, by when
OWNED = ("kept", "tags")  # a person's words in run.json, which training never overwrites
RESERVED = ("last", "compare", "sweeps")  # words with a meaning, and folders beside the runs
STAGING = ".new-"  # prefix of a folder that is not a run yet
STALE = 600.0  # seconds after which a staging folder was left by a crash
LONGEST = 100  # letters of a name
SHOWN = 8  # candidates in a message
TEST_STEPS = 20  # a run shorter than this is a test of something, not an experiment
SHORT = f"under {TEST_STEPS} steps"


def now() -> str:
    """Return the time as `2026-11-21T03:40:05+00:00`, the form used in `run.json`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def runs_dir(explicit: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder that holds the runs: `explicit`, else $SUREFOOT_RUNS, else ./runs."""
    return Path(explicit or os.environ.get("SUREFOOT_RUNS") or "runs").expanduser()


def reference(path: Path) -> str:
    """Return what to type to mean the run at `path`: its name where runs are looked for, or it."""
    return shlex.quote(path.name if path.parent == runs_dir() else str(path))


@dataclass
class RunFolder:
    """One run on disk. `meta` is `run.json`; change it through `update`.

    >>> import tempfile
    >>> runs = Path(tempfile.mkdtemp())
    >>> run = RunFolder.create(runs, "charlm", None, {"config.yaml": "train: {}"}, {"seed": 1})
    >>> run.name, run.meta["number"], run.meta["seed"]
    ('0001-charlm', 1, 1)
    """

    path: Path
    meta: dict[str, Any]

    @classmethod
    def create(
        cls,
        runs: Path,
        recipe: str,
        name: str | None = None,
        files: Mapping[str, str] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> RunFolder:
        """Make a new run with text `files` by relative path and `meta` for its `run.json`.

        The folder appears under its final name complete or not at all. It is called
        `0001-charlm`, or exactly `name`. Raises RunError: a bad or taken name, a place that
        cannot be written.
        """
        check_name(runs, name)
        try:
            runs.mkdir(parents=True, exist_ok=True)
            _sweep(runs)
            number, staging = _reserve(runs)
        except OSError as error:
            raise _cannot_write(runs, error) from error
        try:
            title = name or f"{number:04d}-{recipe}"
            values = _birth(title, number, recipe, dict(meta or {}))
            _fill(staging, files or {}, values)
            _rename(staging, runs / title)
        except OSError as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise _cannot_write(runs, error) from error
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        return cls(runs / title, values)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run. Raises RunError when `path` holds no readable `run.json`."""
        return cls(path, read(path))

    @property
    def name(self) -> str:
        """The folder's name, which is how people address the run."""
        return self.path.name

    @property
    def status(self) -> str:
        """`running`, `stopped`, `failed` or `done`; `lost`: it says running but nobody runs it."""
        status = str(self.meta.get("status", "lost"))
        return "lost" if status == "running" and self.holder() is None else status

    @property
    def recipe_at(self) -> str:
        """Where its recipe is found again: a name, or the path of a file."""
        return str(self.meta.get("location") or self.meta.get("recipe"))

    def update(self, **values: Any) -> bool:
        """Merge `values` into `run.json` atomically; False: the disk refused for now.

        A full disk must not end training, so the values stay in `meta` and the next update
        writes them too.
        """
        try:
            self._write(values)
        except OSError:
            return False
        return True

    def amend(self, **values: Any) -> None:
        """Merge `values` into `run.json`, as `update` does. Raises SurefootError: why not."""
        try:
            self._write(values)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def _write(self, values: Mapping[str, Any]) -> None:
        with alone(self.path):
            with contextlib.suppress(OSError, ValueError):
                now_on_disk = parse(self.path)
                self.meta |= {key: now_on_disk[key] for key in OWNED if key in now_on_disk}
            self.meta.update(values)
            write_atomic(self.path / "run.json", meta_text(self.meta))

    @property
    def test(self) -> str:
        """Why this run is only a test of something, or "": who began it said so at birth."""
        mark, steps = self.meta.get("test"), self.meta.get("max_steps")
        if mark == SHORT and not (isinstance(steps, int) and steps < TEST_STEPS):
            return ""  # it has been given more steps since
        return mark if isinstance(mark, str) else "marked as a test" if mark else ""

    def reload(self) -> RunFolder:
        """Read `run.json` again and return self: another process may have changed it."""
        self.meta = read(self.path)
        return self

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run while training it; RunError names the host and process that holds it."""
        with hold(self.path):
            yield

    def holder(self) -> Holder | None:
        """Return who trains this run now, or None. A lock left by a dead process does not count."""
        return holder(self.path)


def list_runs(runs: Path) -> list[RunFolder]:
    """Return every run in `runs`, oldest first; `meta["damage"]` says why one cannot be read.

    No run is opened beyond its `run.json`: 500 runs take some ten milliseconds.
    """
    found = []
    try:
        entries = list(os.scandir(runs))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"cannot read {runs}: {error.strerror}", fix="--runs DIR") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            meta = parse(Path(entry.path))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            meta = {"name": entry.name, "status": "damaged", "damage": str(error)}
        if (later := newer(meta)) is not None:
            number = meta.get("number")
            meta = {"name": entry.name, "number": number, "status": "newer", "damage": later}
        found.append(RunFolder(Path(entry.path), meta))
    return sorted(found, key=lambda run: (_number(run), run.name))


def find(runs: Path, ref: str) -> RunFolder:
    """Return the run that `ref` means: path, `last`, exact name, number, or unique prefix.

    `last` is the run created last. Raises RunError with near names, or with all that match.
    """
    if os.sep in ref or (Path(ref) / "run.json").is_file():
        return RunFolder.open(Path(ref))
    if (runs / ref).is_dir() and ref:
        return RunFolder.open(runs / ref)  # or says what is wrong with it
    known = list_runs(runs)
    if not known:
        raise RunError(f"there are no runs in {runs}", fix="surefoot train charlm, or --runs DIR")
    return RunFolder.open(_match(known, ref, runs).path)


def _match(known: list[RunFolder], ref: str, runs: Path) -> RunFolder:
    if ref == "last":
        return known[-1]
    exact = [run for run in known if run.name == ref]
    number = [run for run in known if ref.isdecimal() and run.meta.get("number") == int(ref)]
    prefix = [run for run in known if ref and run.name.startswith(ref)]
    for found in (exact, number, prefix):
        if len(found) == 1:
            return found[0]
        if found:
            raise _ambiguous(found, ref, runs)
    raise _unknown(known, ref, runs)


def _ambiguous(found: list[RunFolder], ref: str, runs: Path) -> RunError:
    names = [run.name for run in found]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    fix = f"one of: {', '.join(names[-SHOWN:])}{more}"
    return RunError(f"{len(names)} runs match {ref!r}", where=str(runs), fix=fix)


def _unknown(known: list[RunFolder], ref: str, runs: Path) -> RunError:
    names = [run.name for run in known]
    bare = {name.partition("-")[2]: name for name in names if "-" in name}
    near = difflib.get_close_matches(ref, [*names, *bare], n=1)
    fix = f"did you mean {bare.get(near[0], near[0])}?" if near else "surefoot runs lists them"
    return RunError(f"no such run: {ref}", where=str(runs), fix=fix)


def _number(run: RunFolder) -> int:
    number = run.meta.get("number")
    return number if isinstance(number, int) else _leading_number(run.name)


def _leading_number(name: str) -> int:
    match = re.match(r"(\d+)(?:-|$)", name)
    return int(match[1]) if match else 0


def check_name(runs: Path, name: str | None) -> None:
    """Raise RunError for what cannot be the name of a new run there, or is one already."""
    if name is None:
        return
    if len(name) > LONGEST:
        what = f"a name of {len(name)} letters cannot be the name of a run: too long"
        raise RunError(what, where="--name", fix=f"{LONGEST} at most")
    if not re.fullmatch(r"\w[\w.+-]*", name) or name.isdigit() or name in RESERVED:
        raise RunError(
            f"{name!r} cannot be the name of a run",
            where="--name",
            fix=f"letters, digits and . _ + -, not only digits, and not {', '.join(RESERVED[:-1])} or {RESERVED[-1]}",
        )
    if (runs / name).exists():
        raise RunError(
            f"there is already a run called {name}",
            where=str(runs / name),
            fix=f"surefoot resume {name}, or another --name",
        )


def _sweep(runs: Path) -> None:
    """Remove staging folders that a crash left behind."""
    for entry in list(os.scandir(runs)):
        if not entry.name.startswith(STAGING):
            continue
        with contextlib.suppress(FileNotFoundError):  # its maker has just renamed it
            if time.time() - entry.stat().st_mtime > STALE:
                shutil.rmtree(entry.path, ignore_errors=True)


def _reserve(runs: Path) -> tuple[int, Path]:
    """Take the next free number by making its staging folder; safe against other creators.

    Whoever made `.new-0003` owns 3 until it is renamed, and a rename makes 3 visible as a run in
    the same instant. So a number is free if making the folder worked and no run has it *now*.
    """
    while True:
        number = max(_taken(runs), default=0) + 1
        staging = runs / f"{STAGING}{number:04d}"
        try:
            staging.mkdir()
        except FileExistsError:
            continue
        if number not in {_number(run) for run in list_runs(runs)}:
            return number, staging
        staging.rmdir()


def _taken(runs: Path) -> set[int]:
    staging = {_leading_number(p.name.removeprefix(STAGING)) for p in runs.glob(f"{STAGING}*")}
    pruned = [run for batch in runs.glob(f"{TRASH}/*") for run in list_runs(batch)]
    return staging | {_number(run) for run in [*list_runs(runs), *pruned]}


def _birth(name: str, number: int, recipe: str, meta: dict[str, Any]) -> dict[str, Any]:
    """Return what a fresh `run.json` says, with `meta` on top."""
    values = {
        "format": FORMAT,
        "name": name,
        "number": number,
        "recipe": recipe,
        "status": "running",
        "created": now(),
        "step": 0,
        "best": None,
        "tags": [],
        "errors": [],
        "restarts": [],
        "segments": [],
        "test": _test_mark(meta.get("max_steps")),
    }
    return values | meta | {"name": name, "number": number, "recipe": recipe}


def _test_mark(steps: Any) -> str | bool:
    if "PYTEST_CURRENT_TEST" in os.environ:
        return "made by pytest"
    if os.environ.get("CI"):
        return "made in CI"
    return SHORT if isinstance(steps, int) and steps < TEST_STEPS else False


def _fill(staging: Path, files: Mapping[str, str], meta: dict[str, Any]) -> None:
    for relative, text in {**files, "run.json": meta_text(meta)}.items():
        path = staging / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(text)
            file.flush()
            sync(file.fileno())
    sync_folder(staging)


def _rename(staging: Path, final: Path) -> None:
    """Give the folder its name; RunError when somebody else took the name in the meantime."""
    try:
        staging.rename(final)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            fix = "give another --name, or run the command again"
            raise RunError(f"there is already a run called {final.name}", fix=fix) from error
        raise
    sync_folder(final.parent)


def _cannot_write(runs: Path, error: OSError) -> RunError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = "free some space (surefoot prune), or --runs DIR on another disk"
    else:
        fix = "--runs DIR, or set SUREFOOT_RUNS to a folder that you may write"
    return RunError(f"cannot make a run: {error.strerror or error}", where=str(runs), fix=fix)
