"""`surefoot runs` lists runs and `surefoot show RUN` tells one; neither loads torch or numpy."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from surefoot.cli.options import choice, filters, parser, print_json
from surefoot.errors import RunError
from surefoot.track.choose import best_value
from surefoot.track.clock import Clock
from surefoot.track.figures import best_of, marks
from surefoot.track.folder import RunFolder, find, list_runs, reference, runs_dir
from surefoot.track.prune import disk
from surefoot.track.reading import History, column, read_history, read_last
from surefoot.track.story import Story, facts, tell
from surefoot.track.text import (
    bytes_text,
    clean,
    clock,
    eval_parts,
    number,
    sample_lines,
    sparkline,
)

__all__ = ["run"]

EVENTS = 5  # newest shown
_METRICS = 4  # of the best evaluation that are told
COLOURS = {"running": "36", "done": "32", "stopped": "33", "failed": "31", "lost": "31"}


def run(verb: str, argv: list[str]) -> int:
    """Run `runs` or `show` and return its exit code."""
    return _show(argv) if verb == "show" else _runs(argv)


def _runs(argv: list[str]) -> int:
    own = parser("runs", "List runs, oldest first.")
    filters(own)
    options = own.parse_args(argv)
    folder, wanted = runs_dir(options.runs), choice(options)
    known = list_runs(folder)
    found = [_entry(run) for run in known if wanted.open or wanted(run)]
    if options.json:
        print_json(found)
    elif not found and known:
        print(f"none of the {len(known)} runs in {folder} is like that")
    elif not found:
        print(f"no runs in {folder} yet; surefoot train charlm makes one")
    else:
        _print_table(found)
    return 0


def _show(argv: list[str]) -> int:
    own = parser("show", "Show one run on one screen.")
    own.add_argument("run", nargs="?", default="last", help="name, number, prefix or `last`")
    options = own.parse_args(argv)
    run = find(runs_dir(options.runs), options.run)
    try:
        history = read_history(run.path / "metrics.jsonl")
        sample = read_last(run.path / "samples.jsonl")
        size = sum(disk(run.path).values())
    except OSError as error:
        what = f"cannot read the run: {error.strerror}"
        raise RunError(what, where=str(run.path), fix="surefoot runs") from error
    if options.json:
        print_json(_summary(run, history, sample, size))
    else:
        for line in _screen(run, history, sample, size):
            print(line)
    return 0


def _entry(run: RunFolder) -> dict[str, Any]:
    """Return one run of the list, as plain values."""
    meta, status = run.meta, run.status
    step, best = meta.get("step"), meta.get("best")
    if status in ("running", "lost"):  # run.json says what was so when it was last written
        last = read_last(run.path / "metrics.jsonl") or {}
        step = last.get("step", step)
    return {
        "name": run.name,
        "number": meta.get("number"),
        "recipe": meta.get("recipe"),
        "preset": meta.get("preset"),
        "status": status,
        "step": step,
        "max_steps": meta.get("max_steps"),
        "best": best,
        "created": meta.get("created"),
        "ended": meta.get("ended"),
        "tags": meta.get("tags", []),
        "test": bool(run.test),
        "kept": bool(meta.get("kept")),
        "path": str(run.path),
        **({"damage": meta["damage"]} if "damage" in meta else {}),
    }


def _print_table(entries: list[dict[str, Any]]) -> None:
    head = ("run", "recipe", "status", "step", "best", "begun", "")
    rows = [head, *map(_cells, entries)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
    for row in rows:
        cells = [
            cell.rjust(width) if place in (3, 4) else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        cells[2] = _coloured(cells[2])
        print("  ".join(cells).rstrip())


def _cells(entry: Mapping[str, Any]) -> tuple[str, ...]:
    recipe = " ".join(str(entry[key]) for key in ("recipe", "preset") if entry[key])
    total = entry["max_steps"]
    place = f"{entry['step']}/{total}" if total else str(entry["step"] or "")
    best = best_value(dict(entry))
    marks_ = [word for word in ("test", "kept") if entry[word]]
    remarks = [*marks_, *map(str, entry["tags"] or [])]
    if "damage" in entry:
        remarks = [f"run.json: {entry['damage']}"]
    return (
        entry["name"],
        clean(recipe),
        entry["status"],
        place,
        "" if best is None else number(best),
        _ago(entry["created"]),
        clean(", ".join(remarks)),
    )


def _ago(moment: Any) -> str:
    try:
        seconds = time.time() - datetime.fromisoformat(str(moment)).timestamp()
    except ValueError:
        return ""
    for name, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {name} ago"
    return "now"


def _coloured(cell: str) -> str:
    colour = COLOURS.get(cell.strip())
    if colour is None or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return cell
    return f"\x1b[{colour}m{cell}\x1b[0m"


def _summary(
    run: RunFolder, history: History, sample: Mapping[str, Any] | None, size: int
) -> dict[str, Any]:
    """Return what `show` tells, as plain values."""
    best = best_of(history)
    return {
        **_entry(run),
        "best": None if best is None else asdict(best),
        "seconds": round(Clock(history, run.meta).total, 1),
        "last": {who: rows[-1] for who, rows in history.train.items()},
        "evaluations": {who: rows[-1] for who, rows in history.eval.items()},
        "events": [asdict(mark) for mark in marks(history, run.meta)],
        "sample": sample,
        "disk_bytes": size,
        "damaged_lines": history.damage.count,
        "meta": run.meta,
    }


def _screen(
    run: RunFolder, history: History, sample: Mapping[str, Any] | None, size: int
) -> Iterable[str]:
    story = tell(run, history)
    yield f"{run.name}   {_coloured(story.status)}   {story.subtitle}"
    if story.alert:
        yield story.alert
    yield ""
    told = [*_facts(run, history, story, size), *_curves(history)]
    noted = story.events(marks(history, run.meta))
    told += [(label, f"{step}: {text}") for step, label, text in noted[-EVENTS:]]
    if len(noted) > EVENTS:
        name = reference(run.path)
        told.append(("", f"{len(noted) - EVENTS} more before: surefoot show {name} --json"))
    width = max(len(label) for label, _ in told)
    yield from (f"  {label:<{width}}  {text}" for label, text in told)
    if sample is not None:
        yield ""
        yield from _last_sample(sample)
    yield ""
    yield from _next(run, story.status)


def _facts(run: RunFolder, history: History, story: Story, size: int) -> Iterable[tuple[str, str]]:
    processes = len(run.meta.get("segments") or [])
    over = f" over {processes} processes" if processes > 1 else ""
    yield "steps", f"{story.place} in {clock(story.seconds)}{over}"
    best = story.best
    if best is not None:
        row = next(row for row in history.eval[best.learner] if row.get("step") == best.step)
        who = "" if best.learner == "main" else f" ({clean(best.learner)})"
        parts = eval_parts(row)
        rest = len(parts) - _METRICS
        more = f", {rest} more in metrics.jsonl" if rest > 1 else ""
        told = parts[:_METRICS] if more else parts
        yield "best", f"{', '.join(told)}, at step {best.step}{who}{more}"
    if story.speed:
        yield "speed", story.speed
    data = dict(dict(facts(run)).get("Data", []))
    known = [data[key] for key in ("name", "licence", "origin") if key in data]
    if known:
        yield "data", "; ".join(known)
    yield "disk", bytes_text(size)


def _curves(history: History) -> Iterable[tuple[str, str]]:
    several = len(history.learners) > 1
    for kind, key in ((history.train, "loss"), (history.eval, "val_loss")):
        for learner, rows in kind.items():
            _, values = column(rows, key)
            finite = [value for value in values if math.isfinite(value)]
            if finite:
                name = key.replace("_", " ") + (f" {clean(learner)}" if several else "")
                ends = f"{number(finite[0])} to {number(finite[-1])}"
                yield name, f"{sparkline(values)}  {ends}"


def _last_sample(sample: Mapping[str, Any]) -> Iterable[str]:
    whole = {"prompt": "", "text": "", "step": "?", **sample}
    lines, more = sample_lines(whole)
    yield f"last sample, step {whole['step']}"
    for line in lines:
        yield f"  | {line}".rstrip()
    if more:
        yield f"  | ({more} more lines in samples.jsonl)"


def _next(run: RunFolder, status: str) -> Iterable[str]:
    report = run.path / "report.html"
    if report.is_file():
        yield f"look   {report}"
    name = reference(run.path)
    if run.meta.get("speaks", True):
        yield f"write  surefoot sample {name}"
    if status in ("stopped", "failed", "lost"):
        yield f"go on  surefoot resume {name}"
