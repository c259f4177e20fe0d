"""Trials in a file that several machines see: Optuna's journal, with heartbeats of our own.

The journal of Optuna knows no heartbeats. Here each worker writes a beat to its trial, and whoever
looks for abandoned ones measures with its own clock for how long none came: the clocks of two
machines need not agree.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

from surefoot.errors import Unsupported
from surefoot.sweep.library import load, quiet

__all__ = ["SCHEME", "open_journal"]

SCHEME = "journal"
BEAT = "beat"


def open_journal(path: str, grace: int) -> Any:
    """Return the storage in the file at `path`; `grace` in seconds, as for a database.

    Raises Unsupported where the file cannot be used.
    """
    journal = load().storages.journal
    try:
        with quiet():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            return _kind()(journal.JournalFileBackend(path), grace)
    except OSError as error:
        what = f"cannot use the journal {path}: {error.strerror or error}"
        raise Unsupported(what, fix="a file in a folder that all workers may write to") from error


@cache
def _kind() -> type:
    """Return the class, which cannot be named before Optuna is loaded."""
    storages = load().storages

    class Beating(storages.JournalStorage):  # type: ignore[name-defined]
        """A journal whose running trials have beats."""

        def __init__(self, backend: Any, grace: int) -> None:
            super().__init__(backend)
            self._grace = grace
            self._seen: dict[int, tuple[Any, float]] = {}  # trial -> last beat, when we saw it

        def record_heartbeat(self, trial_id: int) -> None:
            """Say that the worker of a trial is alive."""
            self.set_trial_user_attr(trial_id, BEAT, time.time())

        def get_heartbeat_interval(self) -> int:
            """Return seconds between two beats."""
            return max(1, self._grace // 4)

        def _get_stale_trial_ids(self, study_id: int) -> list[int]:
            """Return running trials that gave no beat for the whole time of grace."""
            running = (load().trial.TrialState.RUNNING,)
            trials = self.get_all_trials(study_id, deepcopy=False, states=running)
            now, before = time.monotonic(), self._seen
            self._seen = {}
            for trial in trials:
                beat = trial.user_attrs.get(BEAT)
                last = before.get(trial._trial_id)
                self._seen[trial._trial_id] = last if last and last[0] == beat else (beat, now)
            return [t for t, (_, since) in self._seen.items() if now - since > self._grace]

    return Beating
