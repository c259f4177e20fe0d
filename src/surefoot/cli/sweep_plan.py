"""From the command line of `surefoot sweep` to a plan, or to all of its mistakes at once."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surefoot import api, trust
from surefoot.config.fields import Given, leaves
from surefoot.config.learners import overlays
from surefoot.errors import ConfigError, Problem
from surefoot.recipes import Recipe
from surefoot.sweep.plan import SEED, Plan, points
from surefoot.sweep.space import Dimension, parse, size, usual
from surefoot.track.compare import better

__all__ = ["check_metric", "planned", "wrong_workers"]

SEEDS = 100  # of one trial, at most
WORKERS = 256
MOST = 100_000  # points that are drawn


def planned(
    recipe: Recipe, options: argparse.Namespace, given: dict[str, Given], problems: list[Problem]
) -> tuple[Plan, list[str]]:
    """Return the plan that a command line means, and notes. Raises ConfigError with all mistakes."""
    notes: list[str] = []
    name = recipe.location or recipe.name
    space, wrong = parse(options.grid or (), recipe.config, "--grid", name)
    drawn, also = parse(options.space or (), recipe.config, "--space", name)
    space += drawn
    wrong = [*problems, *wrong, *also, *_conflicts(options, space, given)]
    repeats = _seeds(options.repeat, wrong)
    if wrong:
        raise ConfigError(wrong)
    for dimension in space:
        trust.name_code(dimension.path, dimension.values)
    mode = "search" if options.search else "random" if options.random else "grid"
    space = space or _usual(recipe, options, given, notes)
    config = _settled(recipe, options, given)
    if (config.machine.devices or 1) > 1 or any(d.path == "machine.devices" for d in space):
        what = "a trial trains in one process, and machine.devices asks for several"
        raise ConfigError(what, fix="leave it out; --workers 2 takes two trials at a time")
    first = config.train.seed
    learner, _, metric = options.metric.rpartition("/")
    seeds = repeats if len(repeats) > 1 else range(first, first + (repeats or (1,))[0])
    plan = Plan(
        recipe=name, preset=options.preset, files=_texts(options.config),
        fixed={path: value.value for path, value in given.items()},
        mode=mode, space=space, count=_count(mode, options, space, notes),
        seeds=list(seeds), repeated=options.repeat is not None,
        metric=metric, learner=learner or "main",
        goal=options.goal or {-1: "min", 0: "", 1: "max"}[better(metric)],
        prune=options.prune or ("median" if mode == "search" else "off"), draws=options.draw_seed,
        length=config.limit() if config.train.epochs is None else None,
        storage=_storage(options.storage),
    )  # fmt: skip
    return plan, notes


def _count(
    mode: str, options: argparse.Namespace, space: Sequence[Dimension], notes: list[str]
) -> int:
    """Return the number of trials; a note says where there are fewer points than were asked for."""
    count: int = options.search or options.random or points(space)
    total = size(space)
    if mode == "random" and total is not None and total < count:
        notes.append(f"there are only {total} points, and each is drawn once")
        return total
    return count


def _storage(url: str | None) -> str | None:
    """Return the address of the database as it may be written down, without a password."""
    url = url or os.environ.get("SUREFOOT_STORAGE")
    if not url:
        return None
    from surefoot.sweep.search import public

    return public(url)


def _conflicts(
    options: argparse.Namespace, space: Sequence[Dimension], given: dict[str, Given]
) -> list[Problem]:
    """Return what does not go together."""
    wrong, at = [], "command line"
    paths = [d.path for d in space]
    for path in dict.fromkeys(p for p in paths if paths.count(p) > 1):
        wrong.append(Problem(f"{path} is swept over twice", at, "give all its values in one place"))
    for path in dict.fromkeys(p for p in paths if p in given):
        fix = "leave one of the two out"
        wrong.append(Problem(f"{path} is swept over, and fixed by {given[path].source}", at, fix))
    if options.random is not None and options.search is not None:
        wrong.append(Problem("--random and --search are two ways to draw", at, "choose one"))
    for flag in ("random", "search"):
        count = getattr(options, flag)
        if count is not None and not 1 <= count <= MOST:
            wrong.append(Problem(f"--{flag} {count}: expected 1 to {MOST}", at, f"--{flag} 20"))
    drawn = options.random is not None or options.search is not None
    if options.space and not drawn:
        wrong.append(
            Problem("--space says what to draw from, and not how often", at, "--random 20")
        )
    elif not space and not drawn and not options.grid:
        fix = "--grid lr=1e-3,3e-4, --random 20 or --search 20"
        wrong.append(Problem("what is to be tried?", at, fix))
    if options.repeat is not None and SEED in {*paths, *given}:
        wrong.append(Problem("--repeat gives the seeds", at, "leave the other seed out"))
    return [*wrong, *wrong_workers(options.workers)]


def wrong_workers(count: int) -> list[Problem]:
    """Return what is wrong with a number of processes."""
    if 0 <= count <= WORKERS:
        return []
    return [Problem(f"--workers {count}: expected 0 to {WORKERS}", "command line", "--workers 2")]


def _seeds(text: str | None, wrong: list[Problem]) -> tuple[int, ...]:
    """Read `1,2,3` as those seeds, and `3` as that many from the seed of the settings on."""
    if text is None:
        return ()
    words = [word.strip() for word in text.split(",") if word.strip()]
    seeds = tuple(map(int, words)) if all(word.isdecimal() for word in words) else ()
    alone = len(seeds) == 1
    fine = (1 <= seeds[0] <= SEEDS) if alone else 2 <= len(set(seeds)) == len(seeds) <= SEEDS
    if not fine or (alone and "," in text):
        what = f"--repeat {text}: expected a number of seeds, or different ones like 1,2,3"
        wrong.append(Problem(what, "command line", f"--repeat 3; {SEEDS} at most"))
        return ()
    return seeds


def _settled(recipe: Recipe, options: argparse.Namespace, given: dict[str, Given]) -> Any:
    return api.settle(recipe, options.preset, options.config, given).config


def _usual(
    recipe: Recipe, options: argparse.Namespace, given: dict[str, Given], notes: list[str]
) -> list[Dimension]:
    """Return the learning rates as a space, where nothing is said, and say so."""
    optim = _settled(recipe, options, given).optim
    names = ["optim.lr", "optim.muon_lr"] if optim.kind == "muon" else ["optim.lr"]
    known = leaves(recipe.config)
    rates = [(n, getattr(optim, n[6:])) for n in names if n in known and n not in given]
    space = usual(recipe.config, rates)
    if not space:
        raise ConfigError("what is to be drawn from?", fix="--space NAME=LOW..HIGH")
    notes.append(f"no --space is given, so it is {'; '.join(map(str, space))}")
    return space


def _texts(files: Sequence[str]) -> dict[str, str]:
    """Return the texts of files of settings; a sweep must not change when they do."""
    found = {}
    for place, name in enumerate(files):
        try:
            found[f"{place}-{Path(name).name}"] = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise ConfigError(f"cannot read {name}: {why}", fix="-c FILE") from error
    return found


def check_metric(plan: Plan) -> None:
    """Refuse a metric, or a learner, that the recipe does not report, before anything is trained."""
    if plan.metric == "val_loss" and plan.learner == "main" and not overlays(plan.found.config):
        return
    from surefoot.sweep.metrics import refuse

    refuse(plan)
    if not plan.goal:
        what = f"whether a high or a low {plan.metric} is good is not known"
        raise ConfigError(what, fix="--goal min or --goal max")
