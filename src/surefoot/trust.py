"""Whose code runs: Python files that a person has named on this machine.

A run, a sweep, a trace and a file of settings may say which Python file holds their code. They can
come from somebody else, so the file is run only if the person has named it here: in a command, in
a call, with `surefoot trust`, or in $SUREFOOT_TRUSTED.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surefoot.errors import ConfigError

__all__ = ["known", "ledger", "name", "name_code", "remember", "require", "trusted"]

_VARIABLE = "SUREFOOT_TRUSTED"  # files and folders, separated as in $PATH


def ledger() -> Path:
    """Return the file that remembers what was named, one path a line. Raises OSError."""
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        return Path(state).expanduser() / "surefoot" / "trusted"
    except RuntimeError as error:
        raise OSError("this user has no home folder; $XDG_STATE_HOME can name one") from error


def trusted() -> list[Path]:
    """Return the files whose code may run, and the folders in which all files may."""
    found = [word for word in os.environ.get(_VARIABLE, "").split(os.pathsep) if word]
    with contextlib.suppress(OSError, ValueError):  # there is none, or it is not text
        found += ledger().read_text(encoding="utf-8").splitlines()
    return [Path(word).expanduser().resolve() for word in dict.fromkeys(found) if word]


def known(path: Path) -> bool:
    """Whether a person has named this file here, or a folder that holds it."""
    whole = path.expanduser().resolve()
    return not {whole, *whole.parents}.isdisjoint(trusted())


def remember(path: Path) -> None:
    """Add a file or folder to the ledger. Raises OSError."""
    line = str(path.expanduser().resolve())
    if not line.isprintable():
        raise OSError(f"a path with such letters cannot be remembered: {line!r}")
    file = ledger()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(f"{line}\n")


def name(path: Path) -> None:
    """Note that a person named this file: from now on, a run that says it is its code may run it.

    Where nothing can be remembered, this holds for the process and those that it starts.
    """
    if known(path):
        return
    try:
        remember(path)
    except OSError:
        before = os.environ.get(_VARIABLE)
        os.environ[_VARIABLE] = os.pathsep.join(filter(None, (before, str(path.resolve()))))


def name_code(setting: str, value: Any) -> None:
    """Name what a person typed as `value` of a setting where that is code: kernels and sinks."""
    if isinstance(value, Mapping):  # settings of one learner
        for inner, each in value.items():
            name_code(inner, each)
    elif setting.startswith("ops.") or setting == "track.sinks":
        words = value.split(",") if isinstance(value, str) else value
        for file in (Path(str(word).partition("#")[0].strip()) for word in words):
            if file.suffix == ".py" and file.is_file():
                name(file)


def require(path: Path, by: str, fix: str | None = None) -> None:
    """Raise ConfigError unless a person has named `path` here; `by` is what says to run it."""
    if not known(path):
        raise ConfigError(
            f"{by} asks to run {path}, a file that you have not named on this machine",
            fix=fix or f"read it; if you want it to run: surefoot trust {shlex.quote(str(path))}",
        )
