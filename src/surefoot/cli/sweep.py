"""`surefoot sweep RECIPE`, and `sweep show|resume|best|work|list`: many runs and what came of them."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot import recipes
from surefoot.cli.options import parser, print_json, settings_from
from surefoot.config import flags
from surefoot.config.fields import Given
from surefoot.config.suggest import nearest
from surefoot.errors import ConfigError, Problem, Stopped, SurefootError
from surefoot.track.folder import runs_dir
from surefoot.track.text import clean

if TYPE_CHECKING:
    from surefoot.recipes import Recipe
    from surefoot.sweep.folder import Sweep

__all__ = ["run"]

_USAGE = """usage: surefoot sweep RECIPE --grid NAME=A,B ...        every combination
       surefoot sweep RECIPE --random 50 [--space ...]     draws
       surefoot sweep RECIPE --search 40 [--space ...]     Optuna proposes, and prunes
       surefoot sweep show|resume|best|work [NAME]         NAME, a number, a prefix or `last`
       surefoot sweep list"""
_SPACES = """spaces
  lr=1e-3,3e-4          these values (in --grid and in --space)
  d_model=64..256/64    64, 128, 192 and 256 (in both)
  lr=1e-4..1e-2         drawn by its logarithm, as it spans more than a factor of ten
  num_layers=2..6       whole numbers from 2 to 6
  weight_decay=lin:0..1 drawn evenly; log: by its logarithm
Any setting of the recipe may be swept over, or fixed with its usual flag (--max-steps 500)."""


def run(verb: str, argv: list[str]) -> int:
    """Run the verb and return its exit code."""
    parts = {"show": _show, "resume": _resume, "best": _best, "work": _work, "list": _list}
    if argv and argv[0] in parts:
        return parts[argv[0]](argv[1:])
    own = _options()
    if not argv or argv[0].startswith("-"):
        if argv and argv[0] in ("-h", "--help"):
            print(_help(own))
            return 0
        raise ConfigError(
            [Problem("which recipe?", "command line", "surefoot sweep charlm --random 20")]
        )
    if (
        not Path(argv[0]).exists()
        and (near := nearest(argv[0], parts))
        and argv[0] not in recipes.names()
    ):
        raise ConfigError(
            f"there is no recipe {argv[0]}", fix=f"did you mean surefoot sweep {near}?"
        )
    recipe = recipes.find(argv[0])
    options, given, problems = flags.parse(own, argv[1:], recipe.config)
    if options.help:
        print(_help(own))
        return 0
    return _begin(recipe, options, given, problems)


def _options() -> argparse.ArgumentParser:
    own = flags.parser("surefoot sweep RECIPE", "Many runs of one recipe, and what came of them.")
    settings_from(own)
    own.add_argument(
        "--grid", nargs="+", action="extend", metavar="NAME=A,B", help="Try every combination."
    )
    own.add_argument(
        "--space", nargs="+", action="extend", metavar="NAME=LOW..HIGH", help="Draw from these."
    )
    own.add_argument("--random", type=int, metavar="N", help="Draw N points.")
    own.add_argument("--search", type=int, metavar="N", help="Let Optuna (TPE) propose N points.")
    own.add_argument(
        "--metric",
        default="val_loss",
        metavar="NAME",
        help="What is judged (val_loss); LEARNER/NAME where there are several.",
    )
    own.add_argument(
        "--goal",
        choices=("min", "max"),
        help="Whether low or high is good, where the name does not say.",
    )
    own.add_argument(
        "--prune",
        choices=("off", "median", "hyperband"),
        help="Stop trials that fall behind (a search: median).",
    )
    own.add_argument(
        "--repeat", metavar="SEEDS", help="Seeds of each point: how many, or a list like 1,2,3."
    )
    own.add_argument("--draw-seed", type=int, default=0, metavar="N", help="Seed of the draws (0).")
    own.add_argument("--name", help="Name of the sweep.")
    own.add_argument("--new", action="store_true", help="Begin another one in any case.")
    _working(own)
    return own


def _working(own: argparse.ArgumentParser) -> None:
    own.add_argument(
        "--workers", type=int, default=1, metavar="N", help="Processes (1); 0: only make the plan."
    )
    own.add_argument(
        "--storage", metavar="URL", help="A database, for several machines (or $SUREFOOT_STORAGE)."
    )
    if not any(action.dest == "runs" for action in own._actions):
        own.add_argument("--runs", metavar="DIR", help="Folder of the runs (or $SUREFOOT_RUNS).")
        own.add_argument(
            "--json", action="store_true", help="Print one JSON document, and only that."
        )
    own.add_argument("--quiet", action="store_true", help="Show nothing while training.")


def _help(own: argparse.ArgumentParser) -> str:
    from surefoot.cli.help import options_page

    page = options_page(own, "").replace(f"usage: {own.prog} ", _USAGE)
    return f"{page}\n\n{_SPACES}"


def _begin(
    recipe: Recipe, options: argparse.Namespace, given: dict[str, Given], problems: list[Problem]
) -> int:
    from surefoot.cli.sweep_plan import check_metric, planned
    from surefoot.sweep.folder import create, resumable
    from surefoot.sweep.plan import check

    plan, notes = planned(recipe, options, given, problems)
    for note in notes:
        _say(options, f"note: {note}")
    runs, storage = runs_dir(options.runs), options.storage or os.environ.get("SUREFOOT_STORAGE")
    sweep = None if options.new else resumable(runs, plan, options.name, storage)
    fresh = sweep is None
    if sweep is None:
        with tempfile.TemporaryDirectory() as scratch:
            doubts = check(plan, Path(scratch))
        check_metric(plan)
        sweep = create(runs, plan, options.name)
        _claim_name(sweep, storage)
        for doubt in doubts:
            _say(options, f"note: this point cannot be: {doubt}")
    return _play(sweep, options, storage, fresh)


def _claim_name(sweep: Sweep, storage: str | None) -> None:
    """Write a new sweep into its database; leave nothing where that has another of its name."""
    try:
        sweep.trials(storage)
    except SurefootError:
        shutil.rmtree(sweep.path)
        raise


def _say(options: argparse.Namespace, text: str) -> None:
    if not options.quiet:
        print(text, file=sys.stderr if options.json else sys.stdout, flush=True)


def _play(sweep: Sweep, options: argparse.Namespace, storage: str | None, fresh: bool) -> int:
    """Let workers take the trials; then write the report and tell the results."""
    from surefoot.sweep.supervise import supervise

    trials, plan = sweep.trials(storage), sweep.plan
    done = sum(trial.state in ("done", "pruned", "failed") for trial in trials.all())
    what = f"{plan.count} trials of {plan.found.name}{f' {plan.preset}' if plan.preset else ''}"
    _say(
        options,
        f"sweep {sweep.name}: {what}, by {plan.metric}"
        + ("" if fresh else f"; {done} of them have ended"),
    )
    if options.workers == 0:
        if options.json:
            print_json({"sweep": sweep.name, "folder": str(sweep.path), "trials": plan.count})
        else:
            _say(
                options,
                f"next   surefoot sweep work {sweep.reference}    here, or anywhere with the storage",
            )
        return 0
    words = ["sweep", "work", str(sweep.path), "--leash", *(["--quiet"] if options.quiet else [])]
    words += ["--live"] if options.workers == 1 else []
    environment = {"SUREFOOT_STORAGE": storage} if storage else {}
    if options.workers > 1 and "OMP_NUM_THREADS" not in os.environ:
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        environment["OMP_NUM_THREADS"] = str(max(1, cores // options.workers))
    code = 0
    if not trials.finished():
        code = supervise(
            words, min(options.workers, plan.count), trials, environment, not options.json,
            lambda text: print(text, file=sys.stderr),
        )  # fmt: skip
    from surefoot.cli.sweep_results import tell

    tell(sweep, trials, options.json, code)
    if code == 75:
        print(
            f"stopped, saved\n  help:  surefoot sweep resume {sweep.reference}",
            file=sys.stderr,
        )
    elif code:
        print(
            f"error: a worker ended with exit code {code}\n  help:  surefoot sweep resume {sweep.reference}",
            file=sys.stderr,
        )
    elif not any(trial.state in ("done", "pruned") for trial in trials.all()):
        raise SurefootError(
            "no trial came to its end",
            where=str(sweep.path),
            fix=f"surefoot sweep show {sweep.reference}",
        )
    return code


def _named(verb: str, text: str, argv: list[str]) -> tuple[argparse.ArgumentParser, Any]:
    own = parser(f"sweep {verb}", text)
    own.add_argument("sweep", nargs="?", default="last", help="name, number, prefix or `last`")
    return own, argv


def _resume(argv: list[str]) -> int:
    from surefoot.cli.sweep_plan import wrong_workers
    from surefoot.sweep.folder import find

    own, _ = _named("resume", "Go on with a sweep, exactly.", argv)
    _working(own)
    own.add_argument("--retry", action="store_true", help="Try trials that failed once more.")
    options = own.parse_args(argv)
    if wrong := wrong_workers(options.workers):
        raise ConfigError(wrong)
    storage = options.storage or os.environ.get("SUREFOOT_STORAGE")
    sweep = find(runs_dir(options.runs), options.sweep, storage)
    if options.retry:
        count = sweep.trials(storage).retry()
        _say(options, f"{count} trial{'s' * (count != 1)} that failed will be tried again")
    return _play(sweep, options, storage, False)


def _work(argv: list[str]) -> int:
    from surefoot.sweep.folder import find
    from surefoot.sweep.work import leash, work

    own, _ = _named(
        "work", "Take trials of a sweep until none is left, beside others or alone.", argv
    )
    own.add_argument(
        "--storage", metavar="URL", help="the database, with its password (or $SUREFOOT_STORAGE)"
    )
    own.add_argument("--quiet", action="store_true", help="show nothing while training")
    own.add_argument("--leash", action="store_true", help="stop when standard input ends")
    own.add_argument("--live", action="store_true", help="on a terminal, show how far the run is")
    options = own.parse_args(argv)
    storage = options.storage or os.environ.get("SUREFOOT_STORAGE")
    sweep = find(runs_dir(options.runs), options.sweep, storage)
    if options.leash:
        leash()
    trials = sweep.trials(storage)

    stream = sys.stderr if options.json else sys.stdout
    live = options.live and stream.isatty() and not options.quiet

    def tell(text: str) -> None:
        if not options.quiet:
            print(f"\r\033[K{text}" if live else text, file=stream, flush=True)

    def glance(text: str) -> None:
        room = shutil.get_terminal_size((80, 24)).columns - 1
        print(f"\r\033[K{clean(text)[:room]}", end="", file=stream, flush=True)

    try:
        work(sweep, trials, tell, glance if live else None)
    except Stopped:
        if options.leash:  # the parent says it once for all
            return Stopped.exit_code
        raise
    finally:
        if live:
            print("\r\033[K", end="", file=stream, flush=True)
    if options.json:
        from surefoot.cli.sweep_results import tell as tell_results

        tell_results(sweep, trials, True, 0)
    return 0


def _show(argv: list[str]) -> int:
    from surefoot.cli.sweep_results import show

    return show(argv)


def _best(argv: list[str]) -> int:
    from surefoot.cli.sweep_results import best

    return best(argv)


def _list(argv: list[str]) -> int:
    from surefoot.cli.sweep_results import listing

    return listing(argv)
