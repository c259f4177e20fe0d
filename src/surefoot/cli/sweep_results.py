"""`surefoot sweep show`, `best` and `list`, and what a sweep says at its end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot.cli.folded import room
from surefoot.cli.options import parser, print_json
from surefoot.errors import RunError, SurefootError
from surefoot.sweep.space import text_of
from surefoot.track.durable import write_atomic
from surefoot.track.folder import runs_dir
from surefoot.track.text import clean

if TYPE_CHECKING:
    from surefoot.sweep.folder import Sweep
    from surefoot.sweep.results import Results
    from surefoot.sweep.trials import Trials

__all__ = ["best", "listing", "show", "tell"]

SHOWN = 20  # trials at the end of a sweep; `show` has all


def tell(sweep: Sweep, trials: Trials, as_json: bool, code: int, most: int = SHOWN) -> None:
    """Write the report; print the results, or one document."""
    from surefoot.sweep.page import document, write
    from surefoot.sweep.results import results

    made = results(sweep, trials.all())
    written: list[Path] = []
    try:
        written = [path for path in write(made) if path is not None]
    except OSError as error:
        print(f"note: no page was written to {sweep.path}: {error.strerror}", file=sys.stderr)
    if as_json:
        status = "stopped" if code == 75 else "done" if trials.finished() else "unfinished"
        page = {"page": str(written[0])} if written else {}
        print_json({**document(made), "status": status, **page})
        return
    for line in _screen(made, most):
        print(line)
    for place, path in enumerate(written):
        print(f"{'look' if place == 0 else '':<6} {path}")


def _screen(made: Results, most: int) -> Iterator[str]:
    plan = made.sweep.plan
    heads = ["", "trial", *(d.name for d in plan.space), plan.metric, "better than the next"]
    verdicts, rows = [*made.verdicts, ""], []
    for place, entry in enumerate([*made.ranked, *made.others]):
        ranked, trial = place < len(made.ranked), entry.trial
        cells = [text_of(trial.point[d.path]) if d.path in trial.point else "" for d in plan.space]
        value, said = (entry.text(), verdicts[place]) if ranked else (trial.state, trial.why)
        rank = str(place + 1) if ranked else ""
        rows.append([rank, str(trial.number + 1), *map(clean, cells), value, clean(said)])
    if rows:
        yield ""
        yield from _table(heads, rows[:most])
    if len(rows) > most:
        yield f"  and {len(rows) - most} more: surefoot sweep show {made.sweep.reference}"
    if made.notes():
        yield ""
        yield from map(clean, made.notes())


def _table(heads: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Yield a table; where the terminal is too narrow, two lines a trial."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    painted = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    if sum(widths[:-1]) + 2 * len(widths) + max(len(row[-1]) for row in rows) > room():
        for row in rows:
            yield f"{row[0]:>3}  trial {row[1]}   {heads[-2]} {row[-2]}"
            yield "     " + "  ".join(f"{h} {c}" for h, c in zip(heads[2:-2], row[2:-2]))
            if row[-1]:
                yield f"     {'next: ' if row[0] else ''}{row[-1]}"
        return
    last = len(heads) - 1
    for place, row in enumerate([heads, *rows]):
        cells = [
            cell if i == last else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ]
        if place == 1 and row[0] and painted:
            cells[-2] = f"\x1b[32m{cells[-2]}\x1b[0m"
        yield "  ".join(cells).rstrip()


def _found(own: Any, argv: list[str]) -> tuple[Any, Sweep, Trials]:
    from surefoot.sweep.folder import find

    own.add_argument("sweep", nargs="?", default="last", help="name, number, prefix or `last`")
    own.add_argument("--storage", metavar="URL", help="the database (or $SUREFOOT_STORAGE)")
    options = own.parse_args(argv)
    storage = options.storage or os.environ.get("SUREFOOT_STORAGE")
    sweep = find(runs_dir(options.runs), options.sweep, storage)
    return options, sweep, sweep.trials(storage)


def show(argv: list[str]) -> int:
    """Run `sweep show` and return its exit code."""
    options, sweep, trials = _found(
        parser("sweep show", "Show a sweep, and write its report anew."), argv
    )
    plan = sweep.plan
    if not options.json:
        preset = f" {plan.preset}" if plan.preset else ""
        print(f"{sweep.name}: {plan.mode} of {plan.count} trials of {plan.called}{preset}")
        for dimension in plan.space:
            print(f"  {dimension}")
    tell(sweep, trials, options.json, 0, most=1_000_000)
    return 0


def best(argv: list[str]) -> int:
    """Run `sweep best` and return its exit code."""
    from surefoot.sweep.best import settings_of
    from surefoot.sweep.results import results

    own = parser(
        "sweep best", "Show the best trial's settings, or write them as a file for `train -c`."
    )
    own.add_argument("--write", metavar="FILE", help="write them there")
    options, sweep, trials = _found(own, argv)
    made = results(sweep, trials.all())
    if not made.ranked:
        fix = f"surefoot sweep resume {sweep.reference}"
        raise RunError("no trial has come to its end yet", where=str(sweep.path), fix=fix)
    text, top = settings_of(made), made.ranked[0]
    if options.write:
        try:
            write_atomic(Path(options.write), text)
        except OSError as error:
            raise SurefootError(
                f"--write: cannot write {options.write}: {error.strerror}"
            ) from None
    if options.json:
        print_json({
            "sweep": sweep.name, "trial": top.trial.number + 1, "metric": sweep.plan.metric,
            "value": top.mean, "settings": dict(top.trial.point), "runs": [str(r) for r in top.runs],
            "file": options.write,
        })  # fmt: skip
    elif options.write:
        print(
            f"trial {top.trial.number + 1}, {sweep.plan.metric} {top.text()}, is in {options.write}"
        )
        print(f"next   surefoot train -c {options.write}")
    else:
        print(text, end="")
    return 0


def listing(argv: list[str]) -> int:
    """Run `sweep list` and return its exit code."""
    from surefoot.sweep.folder import known

    options = parser("sweep list", "List sweeps, oldest first.").parse_args(argv)
    runs, rows = runs_dir(options.runs), []
    for sweep in known(runs):
        plan = sweep.plan
        try:
            trials = sweep.trials().all()
            ended = sum(t.state in ("done", "pruned", "failed") for t in trials)
            busy = sum(t.state == "running" for t in trials)
        except SurefootError:  # a database out of reach
            ended, busy = -1, 0
        rows.append({
            "sweep": sweep.name, "recipe": plan.called, "preset": plan.preset, "mode": plan.mode,
            "ended": ended if ended >= 0 else None, "count": plan.count, "running": busy,
            "metric": plan.metric, "created": sweep.created, "path": str(sweep.path),
        })  # fmt: skip
    if options.json:
        print_json(rows)
    elif not rows:
        print(f"no sweeps in {runs / 'sweeps'} yet; surefoot sweep charlm --random 20 makes one")
    for row in rows if not options.json else ():
        so_far = "?" if row["ended"] is None else row["ended"]
        now = f", {row['running']} running" if row["running"] else ""
        what = " ".join(str(row[k]) for k in ("recipe", "preset") if row[k])
        print(f"{row['sweep']:<24} {what:<18} {row['mode']:<7} {so_far}/{row['count']} ended{now}")
    return 0
