"""`surefoot top [RUN]` and `surefoot tail [RUN]`: look at a run while it trains, also over ssh."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import itemgetter
from pathlib import Path

from surefoot.cli.options import parser
from surefoot.errors import ConfigError, RunError
from surefoot.track.folder import RunFolder, find, list_runs, runs_dir
from surefoot.track.follow import Follower, rows_of
from surefoot.track.log import parse_entry
from surefoot.track.reading import Row, lines_back, read_back
from surefoot.track.text import clean, eval_parts, real, sample_lines, train_parts

__all__ = ["run"]

EVERY = 1.0  # seconds between looks
Line = tuple[float, str]  # seconds since 1970, what happened


def run(verb: str, argv: list[str]) -> int:
    """Run the verb and return its exit code."""
    return _top(argv) if verb == "top" else _tail(argv)


def _top(argv: list[str]) -> int:
    own = parser("top", "Watch a run: curves, pace, memory and the last sample.", json=False)
    own.add_argument("run", nargs="?", help="name, number, prefix; default: one that is running")
    own.add_argument("--once", action="store_true", help="print one frame and end")
    options = own.parse_args(argv)
    chosen = _chosen(runs_dir(options.runs), options.run)
    from rich.console import Console, Group
    from rich.live import Live

    from surefoot.track.watch import Watch, frame

    console = Console(highlight=False, markup=False, emoji=False)
    unicode = console.encoding.lower().startswith("utf")
    watch = Watch(chosen)

    def picture() -> Group:
        return Group(*frame(watch, console.width, console.height - 1, unicode))

    if console.is_terminal and not options.once:
        try:
            with Live(picture(), console=console, screen=True, auto_refresh=False) as live:
                while watch.run.status == "running":
                    live.update(picture(), refresh=True)
                    time.sleep(EVERY)
                    watch.refresh()
        except KeyboardInterrupt:
            pass  # the run goes on
    console.print(picture())
    return 0


def _chosen(runs: Path, name: str | None) -> RunFolder:
    """Return the run that is named, else the newest that is running, else the last."""
    if name is not None:
        return find(runs, name)
    running = [each for each in list_runs(runs) if each.status == "running"]
    return RunFolder.open(running[-1].path) if running else find(runs, "last")


def _tail(argv: list[str]) -> int:
    own = parser("tail", "Print the last rows, samples and notes of a run.")
    own.add_argument("run", nargs="?", help="name, number, prefix; default: one that is running")
    own.add_argument("-n", type=int, default=15, metavar="N", help="how many (15)")
    own.add_argument("-f", "--follow", action="store_true", help="go on until the run ends")
    options = own.parse_args(argv)
    if options.n < 0:
        raise ConfigError(f"-n {options.n}: expected 0 or more")
    if options.json and options.follow:
        raise ConfigError("--json prints one document, and --follow has no end")
    chosen = _chosen(runs_dir(options.runs), options.run)
    path, sources = chosen.path, ("metrics.jsonl", "samples.jsonl")
    followers = [Follower(path / name, late=True) for name in (*sources, "log.txt")]
    *rows_from, log = followers
    last = [list(islice(read_back(f.path, f.place), options.n)) for f in rows_from]
    if options.json:
        rows = [row for part in last for row in reversed(part)]
        rows.sort(key=lambda row: real(row.get("time")) or 0.0)
        print(json.dumps(rows[len(rows) - options.n :] if options.n else [], ensure_ascii=False))
        return 0
    found = [line for rows in last for line in _told(reversed(rows))]
    found += _logged(reversed(list(islice(lines_back(log.path, log.place), options.n))))
    for _, text in sorted(found, key=itemgetter(0))[-options.n :] if options.n else []:
        print(text)
    while options.follow:
        ended = chosen.holder() is None  # asked before looking, so that nothing is missed
        for _, text in sorted(_news(followers), key=itemgetter(0)):
            print(text, flush=True)
        if ended:
            break
        if not path.exists():
            raise RunError(f"{chosen.name} is gone", where=str(path), fix="surefoot runs")
        time.sleep(EVERY)
    return 0


def _news(followers: list[Follower]) -> Iterator[Line]:
    anew = False
    told: list[Line] = []
    for follower in followers:
        lines = follower.lines()
        if follower.path.suffix == ".txt":
            yield from _logged(lines)
        else:
            told += _told(rows_of(lines))
            anew |= follower.anew
    if anew:
        moment = min((at for at, _ in told), default=time.time())
        yield moment, f"{_clock(moment)}  steps are computed again"
    yield from told


def _told(rows: Iterable[Row]) -> Iterator[Line]:
    for row in rows:
        moment = real(row.get("time")) or 0.0
        who = row.get("learner", "main")
        place = [f"step {row.get('step')}", *([] if who == "main" else [str(who)])]
        if "prompt" in row:
            lines, more = sample_lines({"text": "", **row})
            parts = [*place, f"sample: {lines[0]}{' …' if more or len(lines) > 1 else ''}"]
        elif row.get("kind") == "train":
            parts = [*place, *train_parts(row)]
        elif row.get("kind") == "event":
            parts = [*place, f"{row.get('event')}: {row.get('why', '')}"]
        elif row.get("kind") == "eval":
            parts = [*place, *eval_parts(row)]
        else:
            continue
        yield moment, clean(f"{_clock(moment)}  {'  '.join(parts)}", sys.stdout.encoding).rstrip()


def _logged(lines: Iterable[bytes]) -> Iterator[Line]:
    """Yield the lines of log.txt; those without a time of their own belong to the one before."""
    for line in lines:
        entry = parse_entry(line.decode("utf-8", "replace"))
        if entry is None:
            continue
        moment = time.mktime(time.strptime(entry.time, "%Y-%m-%d %H:%M:%S"))
        said = entry.text if entry.level == "info" else f"{entry.level}: {entry.text}"
        yield moment + 0.999, clean(f"{_clock(moment)}  {said}", sys.stdout.encoding)


def _clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))
