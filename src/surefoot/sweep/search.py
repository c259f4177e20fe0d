"""Trials in a database, by Optuna: points that are searched for, pruning, several machines.

The database is a file in the sweep's folder, or whatever `--storage` names. A worker signs the
trial that it works on and gives it a heartbeat. Whose process is gone, or whose heart stood still,
loses the trial: it waits again, and whoever takes it goes on with its runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import psutil

from surefoot.errors import ConfigError, OutOfResources, RunError, Unsupported
from surefoot.seeds import derive
from surefoot.sweep.library import load, quiet
from surefoot.sweep.plan import Plan, same
from surefoot.sweep.shared_file import SCHEME, open_journal
from surefoot.sweep.space import Dimension, Point
from surefoot.sweep.trials import DEATHS, Claim, Trial
from surefoot.track.lock import alone

__all__ = ["Study", "plan_in", "public"]

GRACE = 60  # seconds without a heartbeat after which a trial is taken from its worker
WAIT = 60  # seconds that a file waits for other writers
TRIES, PAUSE = 6, 1.0  # of a write that a database refuses; the pause doubles
WARM, SHORTEST = 4, 27  # the median waits for a quarter of a run, hyperband for a 27th
HIDDEN = (":***@", "=%2A%2A%2A")  # where a password was
SECRET = re.compile(r"pass(word|wd|phrase)?$|pwd$|secret|token", re.IGNORECASE)  # in a query
STATES = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
T = TypeVar("T")


def _optuna() -> Any:
    try:
        return load()
    except ImportError as error:
        what = "searches, pruning and databases need Optuna, which is not installed"
        fix = 'pip install "surefoot[sweep]"; --grid and --random work without it'
        raise Unsupported(what, fix=fix) from error


def public(url: str) -> str:
    """Return a database's address without its passwords. Raises ConfigError for what is none."""
    _optuna()
    import sqlalchemy

    try:
        made = sqlalchemy.make_url(url)
        secrets = {name: "***" for name in made.query if SECRET.search(name)}
        return made.update_query_dict(secrets).render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # such as a port that is no number
        shown = re.sub(r":[^:@]*@", HIDDEN[0], url)
        what = f"--storage {shown!r} is no address of a database"
        fix = "for example postgresql+psycopg://me@host/name or journal:////shared/sweep.journal"
        raise ConfigError(what, fix=fix) from None


def _open(url: str, grace: int) -> Any:
    """Return the storage at `url`. Raises Unsupported where it cannot be reached from here."""
    optuna = _optuna()
    import sqlalchemy

    options: dict[str, Any] = {"poolclass": sqlalchemy.NullPool}  # none that an idle hour breaks
    shown = public(url)
    if url.startswith(f"{SCHEME}:"):
        return open_journal(sqlalchemy.make_url(url).database or "", grace)
    if url.startswith("sqlite"):
        options["connect_args"] = {"timeout": WAIT}
    if any(mark in url for mark in HIDDEN):
        what = f"the password of {shown} is not kept with the sweep"
        raise RunError(what, fix="give --storage with it, or set $SUREFOOT_STORAGE")
    try:
        with quiet():
            return optuna.storages.RDBStorage(
                url, options, heartbeat_interval=max(1, grace // 4), grace_period=grace
            )
    except ImportError as error:
        driver = getattr(error.__cause__, "name", None)
        what = f"{shown} needs a driver that is not installed: {driver or error}"
        raise Unsupported(what, fix=f"pip install {driver or 'it'}") from error
    except (sqlalchemy.exc.SQLAlchemyError, RuntimeError) as error:
        why = str(error).strip().partition("\n")[0]
        what, fix = (
            f"cannot use the database {shown}: {why}",
            "is it running, and the address right?",
        )
        raise Unsupported(what, fix=fix) from error


def plan_in(url: str, name: str) -> Plan:
    """Return the plan of a sweep that is only known to a database. Raises RunError."""
    optuna = _optuna()
    storage = _open(url, GRACE)
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        names = ", ".join(s.study_name for s in optuna.get_all_study_summaries(storage)) or "none"
        raise RunError(f"no such sweep in the database: {name}", fix=f"there: {names}") from None
    return Plan.read(json.loads(study.user_attrs["plan"]))


def _file_in(folder: Path) -> str:
    """Return the address of the database in a folder, whatever characters its path has."""
    _optuna()
    import sqlalchemy

    path = str(folder.resolve() / "trials.sqlite")
    return str(sqlalchemy.URL.create("sqlite", database=path).render_as_string())


def _grace() -> int:
    """Return $SUREFOOT_GRACE, for databases whose workers should be missed sooner or later."""
    return max(2, int(os.environ.get("SUREFOOT_GRACE") or GRACE))


class Study:
    """All trials of a sweep, in a database. Opening it makes what is not there yet."""

    def __init__(self, folder: Path, plan: Plan, name: str, url: str | None) -> None:
        optuna = _optuna()
        self.folder, self.plan, self.shared = folder, plan, url is not None
        self.states = optuna.trial.TrialState
        self.storage = _open(url or _file_in(folder), _grace())
        with quiet():
            self.study = optuna.create_study(
                storage=self.storage, study_name=name, load_if_exists=True,
                direction="minimize" if plan.goal == "min" else "maximize", pruner=_pruner(plan),
            )  # fmt: skip
        known = self.study.user_attrs.get("plan")
        if known is None:
            self.study.set_user_attr("plan", json.dumps(plan.document()))
        elif not same(Plan.read(json.loads(known)), plan):
            what = f"the database has another sweep called {name}"
            raise RunError(what, where="--storage", fix="another --name")

    def _trials(self) -> list[Any]:
        with quiet():
            found = _stubborn(lambda: self.study.get_trials(deepcopy=False))
        return [trial for trial in found if "surplus" not in trial.user_attrs]

    def claim(self) -> Claim | None:
        """Take a trial that waits, or the next one; None where others have all that is left."""
        with alone(self.folder), quiet():
            trials = self._trials()
            for trial in self._abandoned(trials):
                self.storage.set_trial_state_values(trial._trial_id, self.states.WAITING)
                trials = self._trials()
            waiting = any(trial.state == self.states.WAITING for trial in trials)
            fresh = [trial for trial in trials if "again" not in trial.user_attrs]
            if not waiting and len(fresh) >= self.plan.count:
                return None
            self.study.sampler = _sampler(self.plan, len(trials))
            trial = self.study.ask()
            known = _stubborn(lambda: self.study.get_trials(deepcopy=False))
            number = next(n for n, t in _numbered(known) if t._trial_id == trial._trial_id)
            if number >= self.plan.count:  # another machine was as fast with the last one
                trial.set_user_attr("surplus", True)
                self.study.tell(trial, state=self.states.FAIL)
                return None
            return _StudyClaim(self, trial, number, self._point(trial, number))

    def _point(self, trial: Any, number: int) -> Point:
        if self.plan.mode != "search":
            return self.plan.point(number)
        return {dimension.path: _suggest(trial, dimension) for dimension in self.plan.space}

    def _abandoned(self, trials: list[Any]) -> list[Any]:
        """Return the trials whose worker is gone."""
        running = [trial for trial in trials if trial.state == self.states.RUNNING]
        stale = set(self.storage._get_stale_trial_ids(self.study._study_id)) if running else set()
        host = platform.node()
        found = []
        for trial in running:
            worker = trial.user_attrs.get("worker")
            if worker is None:  # its worker had not signed yet
                begun = trial.datetime_start or datetime.now()
                age = (datetime.now() - begun).total_seconds()
                dead = not self.shared or age > _grace()
            else:
                dead = worker["host"] == host and not _lives(worker["pid"], worker["born"])
            if dead or trial._trial_id in stale:
                found.append(trial)
        return found

    def all(self) -> list[Trial]:
        """Return every trial that was begun; one that was tried again as it ended at last."""
        found: dict[int, Trial] = {}
        for number, trial in _numbered(self._trials()):
            mine = trial.user_attrs
            point = self.plan.point(number) if self.plan.mode != "search" else dict(trial.params)
            found[number] = Trial(
                number, point, STATES.get(trial.state.name, "waiting"),
                mine.get("values", {}), mine.get("why", ""), mine.get("worker", {}),
            )  # fmt: skip
        return [found[number] for number in sorted(found)]

    def finished(self) -> bool:
        """Whether all have ended."""
        trials = self._trials()
        fresh = [trial for trial in trials if "again" not in trial.user_attrs]
        return len(fresh) >= self.plan.count and all(t.state.is_finished() for t in trials)

    def bury(self, pid: int, why: str) -> str | None:
        """Count the death of a process; after some, the trial has failed."""
        host = platform.node()
        for number, trial in _numbered(self._trials()):
            worker = trial.user_attrs.get("worker", {})
            if trial.state != self.states.RUNNING or (worker.get("host"), worker.get("pid")) != (
                host, pid,
            ):  # fmt: skip
                continue
            deaths = trial.user_attrs.get("deaths", 0) + 1
            self.storage.set_trial_user_attr(trial._trial_id, "deaths", deaths)
            if deaths < DEATHS:
                return f"trial {number + 1}: its process died of {why}; it is tried again"
            text = f"its process died of {why}, {DEATHS} times"
            self.storage.set_trial_user_attr(trial._trial_id, "why", text)
            self.storage.set_trial_state_values(trial._trial_id, self.states.FAIL)
            return f"trial {number + 1} failed: {text}"
        return None

    def retry(self) -> int:
        """Queue the trials that failed once more, with the same points."""
        failed = [trial for trial in self.all() if trial.state == "failed"]
        last = dict(_numbered(self._trials()))
        for number in (trial.number for trial in failed):
            with quiet():
                self.study.add_trial(
                    _optuna().trial.create_trial(
                        state=self.states.WAITING, params=last[number].params,
                        distributions=last[number].distributions, user_attrs={"again": number},
                    )
                )  # fmt: skip
        return len(failed)


class _StudyClaim:
    def __init__(self, study: Study, trial: Any, number: int, point: Point) -> None:
        self.number, self.point = number, point
        self._study, self._trial, self._id = study, trial, trial._trial_id
        self._told = set(study.storage.get_trial(self._id).intermediate_values)
        self._worker = {"host": platform.node(), "pid": os.getpid(), "born": _born(os.getpid())}
        trial.set_user_attr("worker", self._worker)
        study.storage.record_heartbeat(self._id)
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True)
        self._beats.start()

    def _beat(self) -> None:
        while not self._ended.wait(self._study.storage.get_heartbeat_interval()):
            with contextlib.suppress(Exception):  # the next one may come through
                self._study.storage.record_heartbeat(self._id)

    def report(self, step: int, value: float) -> bool:
        """Tell a value once, also when a resume computes it again."""
        with contextlib.suppress(*_database_errors()):
            if step not in self._told:
                self._trial.report(value, step)
                self._told.add(step)
            return bool(self._trial.should_prune())
        return False

    def end(self, state: str, values: Mapping[str, float], why: str = "") -> None:
        """Record how it ended; where another worker has, its word counts."""
        states, finished = self._study.states, _optuna().exceptions.UpdateFinishedTrialError
        mean = sum(values.values()) / len(values) if values else None
        wanted = {"done": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[state]

        def write() -> None:
            storage = self._study.storage
            storage.set_trial_user_attr(self._id, "values", dict(values))
            storage.set_trial_user_attr(self._id, "why", why)
            given = [mean] if state == "done" and mean is not None else None
            storage.set_trial_state_values(self._id, wanted, given)

        with contextlib.suppress(finished):
            _stubborn(write, finished)
        self._stop()

    def give_back(self) -> None:
        """Let it wait for whoever comes; not where another worker has taken it over."""
        if not self._ended.is_set():
            self._stop()
            storage = self._study.storage
            with contextlib.suppress(Exception):  # else it is found to be abandoned
                if storage.get_trial(self._id).user_attrs.get("worker") == self._worker:
                    storage.set_trial_state_values(self._id, self._study.states.WAITING)

    def _stop(self) -> None:
        self._ended.set()
        self._beats.join()


def _numbered(trials: Iterable[Any]) -> list[tuple[int, Any]]:
    """Return trials in the order of the database with their numbers in the plan.

    Those that are tried again have their old number, and count for none of their own.
    """
    found, repeats = [], 0
    for trial in trials:
        again = trial.user_attrs.get("again")
        found.append((trial.number - repeats if again is None else int(again), trial))
        repeats += again is not None
    return found


def _database_errors() -> tuple[type[Exception], ...]:
    import sqlalchemy

    optuna = _optuna()
    return (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, OSError)


def _stubborn(call: Callable[[], T], *final: type[Exception]) -> T:
    """Return what `call` does, trying again while a database cannot be reached."""
    pause = PAUSE
    for tried in range(TRIES):
        try:
            return call()
        except final:
            raise
        except _database_errors() as error:
            if tried + 1 == TRIES:
                why = str(error).strip().partition("\n")[0]
                what = f"the database does not answer: {why}"
                raise OutOfResources(what, fix="surefoot sweep resume, when it does") from error
        time.sleep(pause)
        pause *= 2
    raise AssertionError("unreachable")


def _born(pid: int) -> float:
    return round(psutil.Process(pid).create_time(), 1)


def _lives(pid: int, born: float) -> bool:
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - born) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _suggest(trial: Any, dimension: Dimension) -> Any:
    """Return the value of a setting; of a trial that was begun before, the one it had."""
    if dimension.values:
        return trial.suggest_categorical(dimension.path, dimension.values)
    if dimension.whole:
        low, high = int(dimension.low), int(dimension.high)
        return trial.suggest_int(dimension.path, low, high, log=dimension.log)
    return trial.suggest_float(dimension.path, dimension.low, dimension.high, log=dimension.log)


def _sampler(plan: Plan, number: int) -> Any:
    """Return what chooses trial `number`: a function of the draw's seed and what is known by then."""
    samplers = _optuna().samplers
    seed = derive(plan.draws, "search", number) % 2**32
    if plan.mode != "search":
        return samplers.RandomSampler(seed=seed)
    return samplers.TPESampler(seed=seed, constant_liar=True)


def _pruner(plan: Plan) -> Any:
    pruners = _optuna().pruners
    if plan.prune == "median":
        wait = (plan.length or 0) // WARM  # early differences say little
        return pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=wait)
    if plan.prune == "hyperband":
        least = max(1, (plan.length or 1) // SHORTEST)
        return pruners.HyperbandPruner(min_resource=least, max_resource=plan.length or "auto")
    return pruners.NopPruner()
