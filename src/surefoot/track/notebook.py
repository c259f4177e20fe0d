"""The console for a notebook: one HTML table that refreshes in place, in the notebook's colours."""

from __future__ import annotations

import importlib
import time
from collections import deque
from collections.abc import Mapping
from html import escape
from typing import Any

from surefoot.track.console import Progress
from surefoot.track.record import Level, Row, Sink
from surefoot.track.text import clean, clock, eval_parts, number, rate, real

__all__ = ["NotebookConsole"]

PAUSE = 1.0  # seconds between refreshes that only a training step asks for
EVALUATIONS, NOTES = 12, 6  # shown; all of them are in the run's folder
CELL = 'style="text-align:left;padding:1px 12px 1px 0"'


class NotebookConsole(Sink):
    """Shows one output cell and updates it; prints nothing else."""

    name = "the notebook table"

    def __init__(self, progress: Progress) -> None:
        display: Any = importlib.import_module("IPython.display")
        self._html = display.HTML
        self._progress = progress
        self._evals: deque[str] = deque(maxlen=EVALUATIONS)
        self._notes: deque[str] = deque(maxlen=NOTES)
        self._sample: Row | None = None
        self._next = 0.0  # monotonic seconds
        self._handle = display.display(self._html(self._page()), display_id=True)

    def at(self, step: int) -> None:
        """Move on, now and then."""
        self._progress.at(step)
        if time.monotonic() >= self._next:
            self._show()

    def row(self, row: Row) -> None:
        """Take a row in; evaluations show at once."""
        better = self._progress.row(row)
        if row["kind"] == "eval":
            self._evals.append(_eval_row(row, better))
            self._show()
        elif time.monotonic() >= self._next:
            self._show()

    def sample(self, sample: Row) -> None:
        """Replace the text that is shown."""
        self._sample = sample
        self._show()

    def note(self, text: str, level: Level) -> None:
        """Add a sentence under the table."""
        mark = "<b>warning:</b> " if level == "warning" else ""
        self._notes.append(f'<div style="white-space:pre-wrap">{mark}{_safe(text)}</div>')
        self._show()

    def rewind(self, step: int, learners: Mapping[str, int]) -> None:
        """Let progress go back to `step`."""
        self._progress.rewind(step)

    def close(self) -> None:
        """Show the final state."""
        self._show()

    def _show(self) -> None:
        self._next = time.monotonic() + PAUSE
        self._handle.update(self._html(self._page()))

    def _page(self) -> str:
        table = f"<table>{''.join(self._evals)}</table>" if self._evals else ""
        return f"<div>{self._head()}{table}{self._written()}{''.join(self._notes)}</div>"

    def _head(self) -> str:
        progress = self._progress
        parts = [f"step <b>{_safe(progress.place())}</b>"]
        for learner, row in progress.train.items():
            loss = real(row.get("loss"))
            label = "loss" if learner == "main" else _safe(learner)
            parts += [f"{label} <b>{number(loss)}</b>"] if loss is not None else []
            speed = rate(row)
            parts += [speed] if speed else []
        parts += [f"best {number(progress.best)}"] if progress.best is not None else []
        left = progress.left
        parts += [clock(progress.elapsed), *([f"left {clock(left)}"] if left is not None else [])]
        total = progress.total
        bar = f'<progress value="{progress.step}" max="{total}"></progress> ' if total else ""
        return f"<div>{bar}{' &nbsp; '.join(parts)}</div>"

    def _written(self) -> str:
        if self._sample is None:
            return ""
        prompt, text = _safe(self._sample["prompt"]), _safe(self._sample["text"])
        body = f'<pre style="white-space:pre-wrap;margin:2px 0"><b>{prompt}</b>{text}</pre>'
        return f"<div>sample at step {self._sample['step']}{body}</div>"


def _eval_row(row: Row, better: bool) -> str:
    who = [] if row["learner"] == "main" else [row["learner"]]
    cells = [f"step {row['step']}", *who, *eval_parts(row), "best" if better else ""]
    return "<tr>" + "".join(f"<td {CELL}>{_safe(cell)}</td>" for cell in cells) + "</tr>"


def _safe(text: str) -> str:
    return escape(clean(text))
