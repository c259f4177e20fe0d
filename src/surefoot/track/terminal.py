"""The console for a terminal: one live line of progress, under everything else that scrolls by."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Mapping
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from surefoot.track.console import Progress
from surefoot.track.record import Level, Row, Sink
from surefoot.track.text import clean, clock, eval_parts, number, rate, real, sample_lines

__all__ = ["TerminalConsole"]

REFRESH = 4  # times a second, by rich's own thread; a row costs only a dictionary entry
GAP = "   "
SPARE = 4  # columns left free, so that the echo of Ctrl-C does not wrap the line
BAR = 24  # columns of the bar when there is room
_COLUMN = " " * 7  # of labels
_LABELLED = re.compile(r"[a-z ]{6} \S")


class TerminalConsole(Sink):
    """Draws with rich; NO_COLOR and the terminal's width and encoding are respected."""

    name = "the console"

    def __init__(self, progress: Progress, stream: TextIO) -> None:
        self._progress = progress
        self._console = Console(
            file=stream, force_terminal=True, highlight=False, markup=False, emoji=False
        )
        self._live: Live | None = None

    def at(self, step: int) -> None:
        """Begin the live line, or move it."""
        self._progress.at(step)
        self._start()

    def row(self, row: Row) -> None:
        """Print an evaluation above the live line; a training step only moves that line."""
        better = self._progress.row(row)
        if row["kind"] == "eval":
            self._print(self._evaluation(row, better))
        elif row["kind"] == "train":
            self._start()

    def sample(self, sample: Row) -> None:
        """Print what the model wrote beside a thin rule, the prompt in bold."""
        who = "" if sample["learner"] == "main" else f" of {sample['learner']}"
        rule = "│ " if self._unicode else "| "
        self._print(Text(f"sample{who} at step {sample['step']}", style="dim"))
        for line in self._wrapped(sample, self._console.width - len(rule)):
            self._print(Text.assemble((rule, "dim"), line))

    def note(self, text: str, level: Level) -> None:
        """Print a sentence."""
        body = Text(self._hanging(self._clean(text)))
        if level == "warning":
            body = Text.assemble(("warning: ", "bold yellow"), body)
        self._print(body)

    def rewind(self, step: int, learners: Mapping[str, int]) -> None:
        """Let the live line go back to `step`."""
        self._progress.rewind(step)

    def close(self) -> None:
        """Take the live line away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the live line in at most the width there is."""
        yield live_line(self._progress, options.max_width, self._unicode)

    @property
    def _unicode(self) -> bool:
        return self._console.encoding.lower().startswith("utf")

    def _start(self) -> None:
        if self._live is not None:
            return
        self._live = Live(
            self,
            console=self._console,
            refresh_per_second=REFRESH,
            transient=True,
            redirect_stdout=self._console.file is sys.stdout,
            redirect_stderr=sys.stderr.isatty(),
        )
        self._live.start(refresh=True)
        self._console.show_cursor(True)  # a killed process must not leave the terminal without one

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=False)

    def _clean(self, text: str) -> str:
        return clean(text, self._console.encoding)

    def _hanging(self, text: str) -> str:
        """Wrap what follows a label (`data   ...`) so that the label has its column for itself."""
        if not _LABELLED.match(text) or "\n" in text:
            return text
        return textwrap.fill(
            text, self._console.width, subsequent_indent=_COLUMN,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip

    def _evaluation(self, row: Row, better: bool) -> Text:
        """Return an evaluation in one line; what does not fit is in metrics.jsonl."""
        line = Text.assemble((f"step {self._progress.place_of(row['step'])}", "dim"))
        if row["learner"] != "main":
            line.append(f"{GAP}{self._clean(row['learner'])}", style="cyan")
        first, *rest = [self._clean(part) for part in eval_parts(row)] or [""]
        line.append(f"{GAP}{first}", style="bold")
        line.append(" best" if better else "     ", style="bold green")
        for part in rest:
            if line.cell_len + len(GAP) + len(part) > self._console.width:
                break
            line.append(f"{GAP}{part}")
        line.rstrip()
        return line

    def _wrapped(self, sample: Row, width: int) -> list[Text]:
        """Return the lines of a sample, wrapped to `width` columns."""
        lines, more = sample_lines(sample)
        body = Text(self._clean("\n".join(lines)))
        body.stylize("bold", 0, len(clean(sample["prompt"]).lstrip("\n")))
        if more:
            body.append(f"\n({more} more lines in samples.jsonl)", style="dim")
        return list(body.wrap(self._console, max(10, width)))


def live_line(progress: Progress, width: int, unicode: bool = True) -> Text:
    """Return the line of progress: the most telling parts that fit, and a bar in what is left."""
    parts = sorted(_parts(progress), key=lambda part: part[0])
    chosen: list[tuple[int, int, Text]] = []
    room = width - SPARE
    for place, (_, order, text) in enumerate(parts):
        cost = text.cell_len + (len(GAP) if place else 0)
        if cost <= room:
            chosen.append((order, place, text))
            room -= cost
    texts = [text for _, _, text in sorted(chosen, key=lambda part: part[:2])]
    bar = _bar(progress, min(BAR, room - len(GAP)), unicode)
    if bar is not None:
        texts.insert(1, bar)
    line = Text(GAP, no_wrap=True, overflow="crop").join(texts)
    line.no_wrap = True
    return line


def _parts(progress: Progress) -> list[tuple[int, int, Text]]:
    """Return (importance, place in the line, text) of everything there is to say."""
    found = [(0, 0, Text.assemble(("step ", "dim"), (progress.place(), "bold")))]
    several = len(progress.train) > 1
    for learner, row in tuple(progress.train.items()):
        loss = real(row.get("loss"))
        if loss is not None:
            name = clean(learner) if several else "loss"
            found.append((1, 2, _pair(name, number(loss), "bold" if loss == loss else "bold red")))
    left = progress.left
    if left is not None:
        found.append((2, 9, _pair("left", clock(left))))
    for row in tuple(progress.eval.values()):
        loss = real(row.get("val_loss"))
        if loss is not None and not several:
            found.append((3, 3, _pair("val", number(loss), "bold cyan")))
    speeds = [rate(row) for row in tuple(progress.train.values())]
    if speeds and speeds[-1]:
        found.append((4, 5, Text(speeds[-1])))
    if progress.best is not None and not several:
        found.append((5, 4, _pair("best", number(progress.best), "green")))
    found.append((6, 8, Text(clock(progress.elapsed), style="dim")))
    if progress.machine:
        found.append((7, 6, Text(GAP.join(progress.machine), style="dim")))
    return found


def _pair(name: str, value: str, style: str = "") -> Text:
    return Text.assemble((f"{name} ", "dim"), (value, style))


def _bar(progress: Progress, width: int, unicode: bool) -> Text | None:
    """Return a bar of `width` columns, or None when it would be too short to tell anything."""
    if width < 6 or not progress.total:
        return None
    full, rest = ("━", "─") if unicode else ("#", "-")
    done = min(width, round(width * progress.step / progress.total))
    return Text.assemble((full * done, "cyan"), (rest * (width - done), "dim"))
