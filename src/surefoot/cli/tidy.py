"""`surefoot prune`, `keep`, `tag` and `du`: what may go, what stays, and what takes how much."""

from __future__ import annotations

import argparse
from pathlib import Path

from surefoot.cli.options import choice, filters, parser, print_json, read
from surefoot.errors import ConfigError
from surefoot.track import prune
from surefoot.track.folder import TRASH, find, list_runs, runs_dir
from surefoot.track.meta import check_tags
from surefoot.track.text import bytes_text, clean

__all__ = ["run"]


def run(verb: str, argv: list[str]) -> int:
    """Run the verb and return its exit code."""
    return {"prune": _prune, "keep": _keep, "tag": _tag, "du": _du}[verb](argv)


def _prune(argv: list[str]) -> int:
    own = parser("prune", "Move runs that nobody needs to a trash; a dry run unless --yes.")
    own.epilog = (
        "Without a rule: tests and failures. Running, kept and best runs, and parents of those, "
        "always stay."
    )
    own.add_argument("run", nargs="*", help="only these runs")
    rules = own.add_argument_group("rules, any of which is enough")
    rules.add_argument("--tests", action="store_true", help="made by pytest, in CI, or short")
    rules.add_argument("--failed", action="store_true", help="failed before a first checkpoint")
    rules.add_argument("--older-than", type=read("seconds"), metavar="AGE", help="like 30d")
    rules.add_argument("--newest", type=int, metavar="N", help="all but so many of each recipe")
    rules.add_argument(
        "--max-disk", type=read("bytes"), metavar="SIZE", help="the oldest, until all fit in SIZE"
    )
    filters(own, ages=False)
    own.add_argument("--yes", action="store_true", help="really do it")
    own.add_argument("--undo", action="store_true", help="bring back what the last prune moved")
    own.add_argument("--empty", action="store_true", help="delete what is in the trash, now")
    options = own.parse_args(argv)
    if options.newest is not None and options.newest < 0:
        raise ConfigError(f"--newest {options.newest}: expected 0 or more")
    runs = runs_dir(options.runs)
    if options.undo:
        return _undo(runs, options.json)
    if options.empty:
        return _empty(runs, options)
    return _tidy(runs, options)


def _tidy(runs: Path, options: argparse.Namespace) -> int:
    wanted = prune.Rules(
        options.tests, options.failed, options.older_than, options.newest, options.max_disk,
        choice(options, ages=False), tuple(find(runs, name).name for name in options.run),
    )  # fmt: skip
    verdicts, total = prune.judge(runs, wanted), len(list_runs(runs))
    if options.yes:
        prune.empty(runs)
        verdicts = prune.move(runs, verdicts)
    going = [verdict for verdict in verdicts if not verdict.shield]
    stays = [verdict for verdict in verdicts if verdict.shield]
    size = sum(verdict.size for verdict in going)
    if options.json:
        print_json({
            "moved": options.yes, "bytes": size, "trash": str(runs / TRASH),
            "runs": [{"name": v.run.name, "bytes": v.size, "reason": v.reason} for v in going],
            "stays": [{"name": v.run.name, "reason": v.shield} for v in stays],
        })  # fmt: skip
        return 0
    width = max((len(verdict.run.name) for verdict in verdicts), default=0)
    for verdict in going:
        print(f"  {verdict.run.name:<{width}}  {bytes_text(verdict.size):>7}  {verdict.reason}")
    for verdict in stays:
        print(f"  {verdict.run.name:<{width}}    stays  {verdict.shield} ({verdict.reason})")
    verb = "moved" if options.yes else "would move"
    print(f"{verb} {len(going)} of {total} runs to {runs / TRASH}, {bytes_text(size)}")
    if going and options.yes:
        print(f"undo for {prune.DAYS} days: surefoot prune --undo   free the disk now: --empty")
    elif going:
        print("nothing was moved; do it: add --yes")
    return 0


def _undo(runs: Path, as_json: bool) -> int:
    found = list(prune.undo(runs))
    if as_json:
        print_json([{"name": name, "problem": problem} for name, problem in found])
    else:
        for name, problem in found:
            print(f"  {name}: {problem}" if problem else f"  {name} is back")
    return 1 if any(problem for _, problem in found) else 0


def _empty(runs: Path, options: argparse.Namespace) -> int:
    held = [run.name for batch in prune.batches(runs) for run in list_runs(batch)]
    size = sum(prune.disk(runs / TRASH).values())
    if options.yes:
        prune.empty(runs, 0)
    if options.json:
        print_json({"deleted": options.yes, "runs": held, "bytes": size})
        return 0
    verb = "deleted" if options.yes else "would delete"
    print(f"{verb} {len(held)} runs for good, {bytes_text(size)}")
    if held and not options.yes:
        print("nothing was deleted; do it: add --yes")
    return 0


def _keep(argv: list[str]) -> int:
    own = parser("keep", "Keep runs: prune never moves them.")
    own.add_argument("run", nargs="+", help="name, number, prefix or `last`")
    own.add_argument("--no-longer", action="store_true", help="let prune decide again")
    options = own.parse_args(argv)
    found = [find(runs_dir(options.runs), name) for name in options.run]
    for each in found:
        each.amend(kept=not options.no_longer)
    if options.json:
        print_json([{"name": each.name, "kept": each.meta["kept"]} for each in found])
    else:
        print("\n".join(f"{r.name} {'is kept' if r.meta['kept'] else 'may go'}" for r in found))
    return 0


def _tag(argv: list[str]) -> int:
    own = parser("tag", "Give a run tags, or take them away.")
    own.add_argument("run", help="name, number, prefix or `last`")
    own.add_argument("words", nargs="*", metavar="TAG", help="letters, digits and . _ + - : /")
    own.add_argument("--remove", action="store_true", help="take these tags away")
    options = own.parse_args(argv)
    check_tags([] if options.remove else options.words)
    found = find(runs_dir(options.runs), options.run)
    before = [str(tag) for tag in found.meta.get("tags") or ()]
    if options.remove:
        tags = [tag for tag in before if tag not in options.words]
    else:
        tags = list(dict.fromkeys([*before, *options.words]))
    if tags != before:
        found.amend(tags=tags)
    if options.json:
        print_json({"name": found.name, "tags": tags})
    else:
        print(f"{found.name}: {clean(', '.join(tags)) or 'no tags'}")
    return 0


def _du(argv: list[str]) -> int:
    own = parser("du", "Say what runs, trash and cache take, largest last.")
    own.add_argument("run", nargs="*", help="only these runs")
    options = own.parse_args(argv)
    runs = runs_dir(options.runs)
    chosen = [find(runs, name) for name in options.run] or list_runs(runs)
    table = {each.name: prune.disk(each.path) for each in chosen}
    if not options.run:
        from surefoot.data.fetch import cache_dir

        for name, place in (("(trash)", runs / TRASH), ("(cache)", cache_dir())):
            table[name] = {"other": sum(prune.disk(place).values())}
    rows = {name: {**parts, "total": sum(parts.values())} for name, parts in table.items()}
    if options.json:
        print_json(rows)
        return 0
    order = sorted(rows, key=lambda name: (name.startswith("("), rows[name]["total"]))
    parts = ("checkpoints", "tb", "pictures", "record", "total")
    width = max([len(name) for name in rows], default=0)
    print("  ".join([" " * width, *(f"{part:>11}" for part in parts)]))
    for name in order:
        cells = (bytes_text(rows[name][p]) if p in rows[name] else "" for p in parts)
        print("  ".join([f"{name:<{width}}", *(f"{cell:>11}" for cell in cells)]))
    return 0
