"""Every exception that Surefoot raises on purpose.

    SurefootError            1   something failed, and the message says what to do
    ├── ConfigError          2   settings that do not exist, do not parse or do not fit together
    ├── DataError            2   text or tables that are missing, unreadable or too small
    ├── RunError             2   a run that is unknown, ambiguous, locked or not resumable as asked
    ├── CheckpointError      1   a checkpoint that is damaged, foreign, newer than us, or unsafe
    ├── Diverged             1   losses or gradients stopped being finite and policy says stop
    ├── Unsupported          3   this machine or installation cannot do what was asked
    ├── OutOfResources       4   memory or disk ran out; what could be saved is saved
    ├── DeviceLost           4   a device does not answer any more; what was saved is whole
    ├── CheckFailed          5   a proof, a verification or a comparison came out wrong
    └── Stopped             75   a signal asked us to stop; the run can go on

The number is the exit code of the command line. A message has three parts: what happened, where,
and what to do next. `assert` is for our own invariants and never for a user's mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "CheckFailed",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DeviceLost",
    "Diverged",
    "OutOfResources",
    "Problem",
    "RunError",
    "Stopped",
    "SurefootError",
    "Unsupported",
]


class SurefootError(Exception):
    """What happened, where, and what to do next.

    >>> print(SurefootError("no such run: calm", where="runs/", fix="surefoot runs"))
    no such run: calm
      where: runs/
      help:  surefoot runs
    """

    exit_code = 1
    final = False  # whether another try would meet the same, though the code does not say so

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  help:  {self.fix}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Problem:
    """One mistake in a configuration, with enough to point a finger at it.

    `where` is `run.yaml:3:5`, `command line` or `preset tiny`; `excerpt` holds the source line
    with a caret under the column, when there is a file.
    """

    what: str
    where: str
    fix: str | None = None
    excerpt: str | None = None

    def __str__(self) -> str:
        lines = [f"error: {self.what}", f"  --> {self.where}"]
        if self.excerpt:
            lines.append(self.excerpt)
        if self.fix:
            lines.append(f"  help: {self.fix}")
        return "\n".join(lines)


class ConfigError(SurefootError):
    """All mistakes of a configuration at once."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | str, *, fix: str | None = None) -> None:
        if isinstance(problems, str):
            problems = [Problem(problems, "command line", fix)]
        self.problems = tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))

    def __str__(self) -> str:
        count = len(self.problems)
        tail = f"\n{count} problems; nothing was started." if count > 1 else ""
        return "\n".join(str(p) for p in self.problems) + tail


class DataError(SurefootError):
    """Data that is missing, unreadable, binary, or too small for what was asked."""

    exit_code = 2


class RunError(SurefootError):
    """A run that is unknown, ambiguous, locked, read-only or not resumable as asked."""

    exit_code = 2


class CheckpointError(SurefootError):
    """A checkpoint that is incomplete, damaged, foreign or of an unknown format."""


class Diverged(SurefootError):
    """Non-finite losses or gradients, and the policy is to stop."""

    final = True  # a run is a function of its settings and data


class Unsupported(SurefootError):
    """This machine or this installation cannot do what was asked for by name.

    `verb` is the one whose flags `fix` names, where what failed is also called by others, which do
    not have them.
    """

    exit_code = 3

    def __init__(
        self, what: str, *, where: str | None = None, fix: str | None = None, verb: str | None = None
    ) -> None:  # fmt: skip
        super().__init__(what, where=where, fix=fix)
        self.verb = verb


class OutOfResources(SurefootError):
    """Memory or disk ran out, and nothing smaller would help."""

    exit_code = 4


class DeviceLost(SurefootError):
    """A device that computed does not answer any more. A new process may find it sound again."""

    exit_code = 4


class CheckFailed(SurefootError):
    """A proof, verification or comparison came out wrong."""

    exit_code = 5


class Stopped(SurefootError):
    """A signal asked the run to stop; it saved and can go on."""

    exit_code = 75
