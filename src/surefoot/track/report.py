"""`report.html` of a run: one file that needs nothing else, and moves while the run goes on.

`python -m surefoot.track.report FOLDER` writes it, and pictures, from the files of the record
alone; a training run has that done by a child process of low priority.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from surefoot.track.durable import write_atomic
from surefoot.track.effort import effort
from surefoot.track.figures import Figure, figures, marks
from surefoot.track.folder import RunFolder
from surefoot.track.gallery import gallery
from surefoot.track.log import read_log
from surefoot.track.meta import loss_unit
from surefoot.track.page import asset, figure_values, pack, render
from surefoot.track.reading import History, read_history, read_rows
from surefoot.track.record import Row, Sink
from surefoot.track.settings import read_settings, value_of
from surefoot.track.story import Story, facts, tell
from surefoot.track.text import clean
from surefoot.track.usage import planned, shares, usage

__all__ = ["ReportSink", "refresh"]

SAMPLES, SAMPLE_SIZE, ALL_SAMPLES = 40, 1500, 60_000  # of a prompt; characters of one, of all
EVENTS = 60  # newest shown
SAID, TEXT = 60, 200  # newest entries of the log, characters of one
REPORT_EVERY = 5.0  # seconds between reports while the run goes on
PICTURES_EVERY = 60.0  # seconds between pictures while the run goes on
PATIENCE = 120.0  # seconds that the last report may take


def _in_its_unit(figure: Figure, meta: Mapping[str, Any]) -> Figure:
    """Return a figure of losses in the unit that the recipe has said, if it has."""
    data = meta.get("data")
    unit = loss_unit(data if isinstance(data, Mapping) else {})
    return replace(figure, unit=str(unit)) if figure.unit == "nats" else figure


def refresh(folder: Path, pictures: bool = True) -> Path:
    """Write `report.html`, and `plots/*.png` if asked for, of the run in `folder`; return the path.

    Raises RunError when `folder` holds no run, OSError when it cannot be written.
    """
    run = RunFolder.open(folder)
    text = _read_text(folder / "config.yaml")
    settings = read_settings(text)
    history = read_history(folder / "metrics.jsonl")
    drawn = figures(history, _clip(value_of(settings, "optim.clip")))
    drawn = [planned(figure, run.meta) if figure.id == "lr" else figure for figure in drawn]
    drawn += effort(history, run.meta) + usage(history, run.meta)
    drawn = [_in_its_unit(figure, run.meta) for figure in drawn]
    story = tell(run, history)
    samples, shown = _samples(folder / "samples.jsonl"), gallery(folder / "pictures.jsonl")
    document = _document(run, history, drawn, story, samples, shown)
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    if pictures:
        from surefoot.track.plots import write_plots

        write_plots(plots, drawn, marks(history, run.meta), shown)
    packed = pack(document)
    write_atomic(plots / "data.js", f"surefoot({packed})\n", lasting=False)
    names = sorted(path.name for path in plots.glob("[!.]*.png"))
    page = _page(run, story, settings, text, packed, names)
    write_atomic(folder / "report.html", page, lasting=False)
    return folder / "report.html"


class ReportSink(Sink):
    """Has the report written anew while the run goes on, one child process at a time.

    The first one comes after some seconds, the next ones with evaluations, the last one at the
    end; pictures take longer and come less often.
    """

    name = "the report"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None
        self._first = True
        self._begun = self._pictures = time.monotonic()  # when either was last asked for

    def row(self, row: Row) -> None:
        """Start a child when it is time and none is at work."""
        moment = time.monotonic()
        if moment - self._begun < REPORT_EVERY or not (self._first or row["kind"] == "eval"):
            return
        if self._child is not None and self._child.poll() is None:
            return
        pictures = moment - self._pictures >= PICTURES_EVERY
        self._first, self._begun = False, moment
        self._pictures = moment if pictures else self._pictures
        self._start(["--nice", "--pictures"] if pictures else ["--nice"])

    def close(self) -> None:
        """Write the final report and wait for it."""
        if self._child is not None:
            self._wait(self._child)
        self._start(["--pictures"])
        assert self._child is not None
        if self._wait(self._child) != 0:
            raise OSError(f"could not be written to {self._folder}")

    def _start(self, options: list[str]) -> None:
        """Start a child that no signal of our terminal reaches; a `--nice` one yields to training."""
        module = ["-P", "-m", "surefoot.track.report", *options, str(self._folder)]
        self._child = subprocess.Popen(
            [sys.executable, *module],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _wait(self, child: subprocess.Popen[bytes]) -> int:
        try:
            return child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()


def _clip(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _document(
    run: RunFolder,
    history: History,
    drawn: list[Figure],
    story: Story,
    samples: list[dict[str, Any]],
    pictures: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return everything on the page that changes while the run goes on; plain JSON."""
    noted = marks(history, run.meta)
    return {
        "format": 1,
        "live": story.status == "running",
        "updated": round(time.time(), 1),
        "run": {
            "name": run.name,
            "status": story.status,
            "place": story.place,
            "share": story.share,
        },
        "alert": story.alert,
        "tiles": story.tiles,
        "figures": [figure_values(figure) for figure in drawn],
        "marks": [asdict(mark) for mark in noted],
        "samples": samples,
        "pictures": pictures,
        "time": shares(history),
        "events": story.events(noted)[-EVENTS:],
        "log": _log(run.path / "log.txt"),
    }


def _samples(path: Path) -> list[dict[str, Any]]:
    """Return samples by learner and prompt, at most so many, evenly over time."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in read_rows(path):
        key = (str(row.get("learner", "main")), str(row.get("prompt", "")))
        groups.setdefault(key, []).append(row)
    room = ALL_SAMPLES // max(1, len(groups))
    return [
        {"title": _title(learner, prompt), "prompt": clean(prompt), "items": _few(rows, room)}
        for (learner, prompt), rows in groups.items()
    ]


def _log(path: Path) -> list[tuple[str, str, str]]:
    """Return (time, level where it matters, text) of the newest entries."""
    newest = deque(read_log(path), maxlen=SAID)
    levels = {"info": ""}
    return [(e.time, levels.get(e.level, e.level), clean(e.text)[:TEXT]) for e in newest]


def _title(learner: str, prompt: str) -> str:
    name = clean(prompt.strip()).replace("\n", " ")[:40] or "(start of a line)"
    return name if learner == "main" else f"{learner}: {name}"


def _few(rows: list[dict[str, Any]], room: int) -> list[dict[str, Any]]:
    count = max(2, min(SAMPLES, room // SAMPLE_SIZE))
    if len(rows) > count:
        rows = [rows[place * (len(rows) - 1) // (count - 1)] for place in range(count)]
    size = min(SAMPLE_SIZE, room // len(rows))
    return [
        {"step": row.get("step", 0), "text": clean(str(row.get("text", "")))[:size]} for row in rows
    ]


def _page(
    run: RunFolder,
    story: Story,
    settings: list[Any],
    text: str,
    packed: str,
    pictures: list[str],
) -> str:
    return render(
        "report.html.j2",
        name=run.name,
        subtitle=story.subtitle,
        settings=settings,
        hidden_settings=sum(setting.quiet for setting in settings),
        config_text=text,
        facts=facts(run),
        pictures=pictures,
        data=packed,
        pictures_js=asset("pictures.js"),
        js=asset("report.js"),
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _main(words: list[str]) -> None:
    if "--nice" in words:
        os.nice(19)
    refresh(Path(words[-1]), pictures="--pictures" in words)


if __name__ == "__main__":
    _main(sys.argv[1:])
