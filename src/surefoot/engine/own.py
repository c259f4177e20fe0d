"""Ways from a file of one's own: a Python file with `ways`, a mapping from operation to `Way`.

A setting names it like `ops.norm=./kernel.py`; what is written into a run is the whole path and a
hash of the file, `/home/ada/kernel.py#5d1f…`, so that it never changes silently. A file runs only
if a person has named it on this machine.
"""

from __future__ import annotations

import hashlib
import runpy
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any

from surefoot.engine.faults import device_lost, out_of_memory
from surefoot.errors import ConfigError, Problem, RunError, SurefootError
from surefoot.ops import OPS, Op, Way
from surefoot.trust import require

__all__ = ["find", "is_file", "operations_of", "pinned"]


def is_file(way: str) -> bool:
    """Whether the name of a way is that of a file."""
    return way.partition("#")[0].endswith(".py")


def pinned(way: str) -> str:
    """Return how a way is written into a run. Raises ConfigError where its file is missing."""
    if not is_file(way) or "#" in way:
        return way
    path = Path(way).expanduser().resolve()
    return f"{path}#{_digest(path)}"


def find(op: Op, way: str) -> Op:
    """Return `op`, with `way` among its ways where that is a file.

    Raises ConfigError for a file without such a way, RunError for one that changed.
    """
    if not is_file(way):
        return op
    path, _, digest = pinned(way).partition("#")
    if _digest(Path(path)) != digest:
        raise RunError(
            "the kernel's file changed since this run began, so it cannot go on exactly",
            where=path, fix="bring the old file back, or start anew with --new",
        )  # fmt: skip
    made = _ways_of(Path(path), digest)
    if op.name not in made:
        what = f"it has no way of {op.name}, only of {', '.join(sorted(made)) or 'nothing'}"
        raise ConfigError([Problem(what, path, f'ways = {{"{op.name}": Way(...)}}')])
    return replace(op, ways={**op.ways, way: made[op.name]})


def operations_of(file: str) -> dict[str, Op]:
    """Return the operations of which a file has ways, with these among their ways.

    Raises ConfigError for a file without ways, or with one of an operation that does not exist.
    """
    path, _, digest = pinned(file).partition("#")
    made = _ways_of(Path(path), digest)
    if unknown := sorted(made.keys() - OPS.keys()):
        what = f"it has ways of what is no operation: {', '.join(unknown)}"
        raise ConfigError([Problem(what, path, f"there are {', '.join(OPS)}")])
    return {name: find(OPS[name], file) for name in made}


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        what = f"cannot read the kernel: {error.strerror}"
        raise ConfigError([Problem(what, str(path), "check the path")]) from error


@lru_cache(maxsize=16)
def _ways_of(path: Path, digest: str) -> dict[str, Way]:
    """Run the file and return its `ways`, by operation. Raises ConfigError for what is none.

    `digest` keeps a file that changed meanwhile from being taken for the old one.
    """
    require(path, "a setting in ops")
    try:
        ways: Any = runpy.run_path(str(path)).get("ways")
    except Exception as error:
        what = f"the kernel does not import: {type(error).__name__}: {error}"
        raise ConfigError([Problem(what, str(path), "run it with python to see more")]) from error
    if not isinstance(ways, dict) or not all(isinstance(w, Way) for w in ways.values()):
        fix = 'ways = {"norm": Way(call, tolerance=1e-5)}'
        raise ConfigError([Problem("it has no mapping `ways` of Way", str(path), fix)])
    return {name: replace(way, call=_told(way.call, str(path))) for name, way in ways.items()}


def _told(call: Callable[..., Any], path: str) -> Callable[..., Any]:
    """Return `call` with its errors told as those of the file, with the line; a machine's pass."""

    @wraps(call)
    def told(*given: Any, **named: Any) -> Any:
        try:
            return call(*given, **named)
        except Exception as error:
            if isinstance(error, SurefootError) or out_of_memory(error) or device_lost(error):
                raise
            frames = traceback.extract_tb(error.__traceback__)
            line = next((f":{f.lineno}" for f in reversed(frames) if f.filename == path), "")
            what = f"the kernel fails: {type(error).__name__}: {error}"
            fix = f"surefoot ops check {path} tries it alone"
            raise SurefootError(what, where=f"{path}{line}", fix=fix) from error

    return told
