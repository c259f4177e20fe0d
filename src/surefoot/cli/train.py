"""`surefoot train RECIPE` and `surefoot resume RUN`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from surefoot import recipes, trust
from surefoot.cli import launch
from surefoot.cli.options import settings_from
from surefoot.config import flags
from surefoot.config.documents import read
from surefoot.errors import ConfigError, Problem, Stopped

if TYPE_CHECKING:
    from surefoot.engine import Result
    from surefoot.track.folder import RunFolder

__all__ = ["run"]


def run(verb: str, argv: list[str]) -> int:
    """Run the verb and return its exit code."""
    return _train(argv) if verb == "train" else _resume(argv)


def _train(argv: list[str]) -> int:
    own = flags.parser("surefoot train RECIPE", "Train a recipe, or go on with the run you left.")
    settings_from(own)
    own.add_argument("--name", help="Name of the run.")
    own.add_argument("--new", action="store_true", help="Start another run in any case.")
    own.add_argument("--test", action="store_true", help="Mark the run as a test of something.")
    _shared(own)
    if not argv or argv[0].startswith("-"):
        named = _written(own, argv)
        if named is None:
            return _ask_for_recipe(argv)
        argv = [named, *argv]
    recipe = recipes.find(argv[0])
    options, given, problems = flags.parse(own, argv[1:], recipe.config)
    if options.help:
        from surefoot.cli.help import settings_page

        print(settings_page(own, recipe, options.preset))
        return 0
    from surefoot import api
    from surefoot.track.folder import runs_dir

    resolved = api.settle(recipe, options.preset, options.config, given, problems)
    if options.debug_step is not None:
        from surefoot.cli.debug import newest, show_step

        folder = newest(runs_dir(options.runs), recipe, resolved.config, options.name)
        return show_step(folder, options.debug_step, options.json)
    if options.restarts is not None:
        runs = runs_dir(options.runs)
        return _supervised(
            "train",
            argv,
            options,
            lambda: api.unfinished(runs, recipe, resolved.config, options.name),
        )
    if launch.wanted(resolved.config.machine, options):
        return launch.launch(["train", *argv], resolved.config, options)
    console = _console(options)
    return _report(
        lambda: api.start(
            recipe, resolved, runs_dir(options.runs), options.name, options.new, console,
            test=options.test,
        ),
        options,
    )  # fmt: skip


def _written(own: argparse.ArgumentParser, argv: list[str]) -> str | None:
    """Return the recipe that a file of settings (`-c FILE`) is for, where it says so."""
    files = flags.parse(own, argv).options.config
    headers = [read(file).data.get("surefoot") for file in files]
    named = [
        str(h.get("file") or h["recipe"])
        for h in headers
        if isinstance(h, dict) and h.get("recipe")
    ]
    if not files or (named and named[0] in recipes.names()):
        return named[0] if named else None
    if named and Path(named[0]).is_file():
        words = shlex.join(["surefoot", "train", named[0], *argv])
        trust.require(Path(named[0]), files[0], f"read it; if you want it to run: {words}")
        return named[0]
    what = f"{', '.join(files)} says nothing of a recipe"
    if named:
        what = f"the settings are for {named[0]}, which is not here, nor one of Surefoot's own"
    fix = f"surefoot train {'./FILE.py' if named else 'charlm'} -c {' -c '.join(files)}"
    raise ConfigError([Problem(f"which recipe? {what}", "command line", fix)])


def _ask_for_recipe(argv: list[str]) -> int:
    lines = ["usage: surefoot train RECIPE [--preset NAME] [-c FILE] [settings]", "", "recipes"]
    for name in recipes.names():
        lines.append(f"  {name:<10} {recipes.find(name).summary}")
    lines += ["  ./FILE.py  a recipe of your own", "", "settings: surefoot train charlm --help"]
    text = "\n".join(lines)
    if argv and argv[0] in ("-h", "--help"):
        print(text)
        return 0
    raise ConfigError([Problem("which recipe?", "command line", "surefoot train charlm")])


def _resume(argv: list[str]) -> int:
    own = flags.parser("surefoot resume RUN", "Go on with a run, exactly.")
    own.add_argument("run", nargs="?", default="last", help="Name, number, prefix or `last`.")
    own.add_argument("--strict", action="store_true", help="Refuse model sizes that differ.")
    own.add_argument("--fork", action="store_true", help="Go on as a new run, with other settings.")
    own.add_argument("--name", help="With --fork: name of the new run.")
    _shared(own)
    from surefoot.config.schema import RunConfig

    options, _, _ = flags.parse(own, argv, RunConfig)
    if options.help:
        print(own.format_help())
        return 0
    from surefoot import api
    from surefoot.track.folder import find, runs_dir

    kept = launch.every_rank(lambda: api.stored(find(runs_dir(options.runs), options.run)))
    options, given, problems = flags.parse(own, argv, kept.recipe.config)
    if options.restarts is not None:
        return _supervised("resume", argv, options, kept.folder.reload)
    wanted = launch.asked(kept.config, given)
    if options.debug_step is None and launch.wanted(wanted.machine, options):
        return launch.launch(["resume", *argv], wanted, options)
    console = _console(options)
    if options.debug_step is not None:
        from surefoot.cli.debug import show_step

        return show_step(kept.folder, options.debug_step, options.json)
    if options.fork:
        runs = runs_dir(options.runs)
        return _report(
            lambda: api.branch(kept, given, problems, console, runs, options.name), options
        )
    return _report(lambda: api.again(kept, given, problems, console, options.strict), options)


def _shared(own: argparse.ArgumentParser) -> None:
    own.add_argument("--runs", metavar="DIR", help="Folder of the runs (or $SUREFOOT_RUNS).")
    own.add_argument("--json", action="store_true", help="Print the result as JSON, and only that.")
    own.add_argument(
        "--restarts", type=int, metavar="N", help="Start again after a crash, N times."
    )
    own.add_argument(
        "--debug-step", type=int, metavar="N",
        help="Do not train: compute step N of the run again and look inside.",
    )  # fmt: skip
    own.add_argument("--quiet", action="store_true", help="Show nothing while training.")
    launch.flags(own)


def _supervised(
    verb: str,
    argv: list[str],
    options: argparse.Namespace,
    find_run: Callable[[], RunFolder | None],
) -> int:
    """Run the same words in a child process; `--new` counts for the first try only."""
    from surefoot.cli.supervise import supervise

    if options.restarts < 0:
        raise ConfigError(f"--restarts {options.restarts}: expected 0 or more")
    words = list(argv)
    place = next(i for i, word in enumerate(words) if word.startswith("--restarts"))
    del words[place : place + (1 if "=" in words[place] else 2)]
    again = [word for word in words if word not in ("--new", "--fork")]
    return supervise([verb, *words], [verb, *again], options.restarts, find_run)


def _console(options: argparse.Namespace) -> Any:
    from surefoot.api import Console

    stream: TextIO | None = sys.stderr if options.json else None
    return None if options.quiet or launch.follows() else Console(stream)


def _report(play: Any, options: argparse.Namespace) -> int:
    """Train; print the result as JSON when asked, also when a signal stopped it."""
    try:
        result: Result = play()
    except Stopped as stopped:
        if options.json and not launch.follows():
            print(json.dumps({"status": "stopped", "error": stopped.what, "help": stopped.fix}))
        raise
    if options.json and not launch.follows():
        document = {
            "run": result.folder.name, "folder": str(result.folder), "status": result.status,
            "step": result.step, "metrics": result.metrics, "best": result.best,
            "proven_steps": result.proven,
        }  # fmt: skip
        print(json.dumps(document))
    return 0
