"""One run as a screen: how far, curves, pace, memory, what it wrote last. For any width."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

import psutil
from rich.text import Text

from surefoot.track import ranks
from surefoot.track.braille import Series, plot
from surefoot.track.figures import best_of
from surefoot.track.folder import RunFolder
from surefoot.track.follow import Follower, rows_of
from surefoot.track.lock import Holder
from surefoot.track.reading import History, Row, column, read_history, read_last, squeeze
from surefoot.track.story import tell
from surefoot.track.text import (
    bytes_text,
    clean,
    clock,
    machine_parts,
    number,
    rate,
    real,
    sample_lines,
)

__all__ = ["Watch", "frame"]

HUES = ("cyan", "yellow", "green", "magenta", "blue", "red")
STATES = {"running": "cyan", "done": "green", "stopped": "yellow", "failed": "red", "lost": "red"}
NEW = 50_000  # rows since the last thinning, after which all are thinned again
PACE = 60.0  # seconds of rows that the remaining time is estimated from
GAP = "   "


class Watch:
    """What is on the screen, kept up to date by `refresh`."""

    def __init__(self, run: RunFolder) -> None:
        self.run, self.history = run, History()
        self.sample: Row | None = None
        self._machine = _Machine()
        self.machine: list[str] = []
        self.ranks: list[ranks.Rank] = []
        self._read()

    def refresh(self) -> None:
        """Read what is new. Raises RunError when the run is gone."""
        self.run.reload()
        rows = rows_of(self._follower.lines())
        self._new += len(rows)
        if self._follower.anew or self._new > NEW:
            self._read()
        else:
            for row in rows:
                self.history.add(row)
        self.sample = read_last(self.run.path / "samples.jsonl")
        self.machine = self._machine.say(self.run)
        self.ranks = ranks.read(self.run.path) if self.run.status == "running" else []

    def _read(self) -> None:
        path = self.run.path / "metrics.jsonl"
        self._follower = Follower(path, late=True)
        self.history, self._new = read_history(path, self._follower.place), 0
        self.sample = read_last(self.run.path / "samples.jsonl")
        self.machine = self._machine.say(self.run)
        self.ranks = ranks.read(self.run.path) if self.run.status == "running" else []

    def left(self) -> float | None:
        """Return the seconds until the last step at the pace of the last minute, or None."""
        total = self.run.meta.get("max_steps")
        rows = [row for rows in self.history.train.values() for row in rows[-200:]]
        known = [(real(row.get("time")), row["step"], row.get("segment")) for row in rows]
        timed = [(t, s) for t, s, part in known if t is not None and part == known[-1][2]]
        if not isinstance(total, int) or len(timed) < 2:
            return None
        end, step = max(timed)
        recent = [point for point in timed if point[0] >= end - PACE] or timed
        begun, first = min(recent)
        if step <= first or end <= begun:
            return None
        return max(0.0, (total - step) * (end - begun) / (step - first) - (time.time() - end))


class _Machine:
    """Memory and load of the process that trains, where it is on this machine."""

    def __init__(self) -> None:
        self._process: psutil.Process | None = None

    def say(self, run: RunFolder) -> list[str]:
        """Return short texts; of a process elsewhere only what the record says."""
        holder = run.holder()
        told = read_last(run.path / "system.jsonl") or {}
        if holder is None or holder.host != socket.gethostname():
            memory = [f"memory {bytes_text(v)}" for v in [real(told.get("memory_bytes"))] if v]
            gpu = [f"GPU memory {bytes_text(v)}" for v in [real(told.get("gpu_bytes"))] if v]
            return [*memory, *gpu, *machine_parts(told)]
        return [*self._processor(holder), *_gpu(holder, told), *machine_parts(told)]

    def _processor(self, holder: Holder) -> Iterator[str]:
        try:
            if self._process is None or self._process.pid != holder.pid:
                self._process = psutil.Process(holder.pid)
            memory = self._process.memory_info().rss
            load = self._process.cpu_percent()
        except psutil.Error:
            return
        whole = psutil.virtual_memory().total
        yield f"memory {bytes_text(memory)} of {bytes_text(whole)}"
        if load:  # the first look cannot know
            yield f"CPU {load:.0f} %"


def _gpu(holder: Holder, told: Row) -> Iterator[str]:
    """Yield load and memory of the GPU that the process is on, where NVIDIA's library is there."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # not installed, or no such GPU: the record may know the memory
        held = real(told.get("gpu_bytes"))
        if held:
            yield f"GPU memory {bytes_text(held)}"
        return
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(index)
            processes = pynvml.nvmlDeviceGetComputeRunningProcesses(device)
            if holder.pid in [process.pid for process in processes]:
                memory = pynvml.nvmlDeviceGetMemoryInfo(device)
                load = pynvml.nvmlDeviceGetUtilizationRates(device).gpu
                yield f"GPU {load} %, {bytes_text(memory.used)} of {bytes_text(memory.total)}"
    except pynvml.NVMLError:
        return
    finally:
        pynvml.nvmlShutdown()


def frame(watch: Watch, width: int, height: int, unicode: bool = True) -> list[Text]:
    """Return the screen as at most `height` lines of at most `width` columns."""
    width, height = max(width, 12), max(height, 4)
    lines = [*_head(watch, width, unicode), *_wrapped(_facts(watch), width)]
    told = ranks.lines(watch.ranks)
    lines += [Text(text, style="yellow" if odd else "dim") for text, odd in told]
    sample = _sample(watch, width)
    room = height - len(lines)
    shown = sample[: max(0, min(len(sample), room // 3))]
    lines += _curves(watch, width, room - len(shown) - 1, unicode)
    lines += shown
    for line in lines:
        line.truncate(width)
    return lines[:height]


def _head(watch: Watch, width: int, unicode: bool) -> Iterator[Text]:
    run, story = watch.run, tell(watch.run, watch.history)
    yield Text.assemble(
        (clean(run.name), "bold"), "  ", (story.status, STATES.get(story.status, "")),
        (f"  {clean(story.subtitle)}", "dim"),
    )  # fmt: skip
    left = watch.left() if story.status == "running" else None
    words = f"step {story.place}" + (f"{GAP}left {clock(left)}" if left is not None else "")
    room = min(60, width - len(words) - len(GAP))
    if story.share >= 0 and room >= 6:
        done = round(room * story.share)
        full, rest = ("━", "─") if unicode else ("#", "-")
        bar = ((full * done, "cyan"), (rest * (room - done), "dim"), GAP)
        yield Text.assemble(*bar, words)
    else:
        yield Text(words)
    if story.alert:
        yield from Text(story.alert, style="red").wrap(_console(width), width)


def _facts(watch: Watch) -> list[Text]:
    history, found = watch.history, []
    several = len(history.learners) > 1
    for place, (learner, rows) in enumerate(history.train.items()):
        row = rows[-1]
        name = clean(learner) if several else "loss"
        for key, label in (("loss", name), ("lr", "lr"), ("grad_norm", "gradient")):
            value = real(row.get(key))
            if value is not None and (key == "loss" or not several):
                style = HUES[place % len(HUES)] if key == "loss" else ""
                found.append(_pair(label, number(value), style))
    for learner, rows in history.eval.items():
        value = real(rows[-1].get("val_loss"))
        if value is not None:
            found.append(_pair(f"val {clean(learner)}" if several else "val", number(value)))
    best = best_of(history)
    if best is not None:
        found.append(_pair("best", f"{number(best.value)} at {best.step}", "green"))
    speeds = [text for rows in history.train.values() if (text := rate(rows[-1]))]
    found += [Text(text) for text in speeds[-1:]]
    seconds = tell(watch.run, history).seconds
    found += [_pair("trained", clock(seconds))] if seconds else []
    return [*found, *(Text(text) for text in watch.machine)]


def _pair(name: str, value: str, style: str = "") -> Text:
    return Text.assemble((f"{name} ", "dim"), (value, style))


def _wrapped(facts: Sequence[Text], width: int) -> Iterator[Text]:
    """Put short texts into lines."""
    line = Text()
    for fact in facts:
        if line and line.cell_len + len(GAP) + fact.cell_len > width:
            yield line
            line = Text()
        line = Text.assemble(line, GAP, fact) if line else fact
    if line:
        yield line


def _curves(watch: Watch, width: int, height: int, unicode: bool) -> Iterator[Text]:
    """Draw training and validation losses, with the values at the left and steps below."""
    curves: list[Series] = []
    hues, names = [], []
    for kind, key, style in (
        (watch.history.train, "loss", ""),
        (watch.history.eval, "val_loss", " bold"),
    ):
        for place, (learner, rows) in enumerate(kind.items()):
            steps, values = column(rows, key)
            places = squeeze(values, 4 * width)
            curves.append(([float(steps[i]) for i in places], [values[i] for i in places]))
            hues.append(("" if style and len(kind) == 1 else HUES[place % len(HUES)]) + style)
            names.append(f"{clean(learner)} {key.replace('_', ' ')}".removeprefix("main "))
    along = [step for at, _ in curves for step in at]
    label = 8
    if height < 4 or width < label + 10 or not along:
        return
    drawn, low, high = plot(curves, width - label, min(height - 2, 16), unicode)
    for row, cells in enumerate(drawn):
        value = number(high) if row == 0 else number(low) if row == len(drawn) - 1 else ""
        line = Text.assemble((f"{value:>{label - 2}} {'│' if unicode else '|'}", "dim"))
        for char, owner in cells:
            line.append(char, style=hues[owner] if owner >= 0 else "")
        yield line
    legend = Text(" " * label)
    legend.append(f"{min(along):.0f}", style="dim")
    for name, hue in zip(names, hues, strict=True):
        legend.append(f"{GAP}{name}", style=hue)
    end = f"{max(along):.0f}"
    legend.append(" " * max(1, width - legend.cell_len - len(end)) + end, style="dim")
    yield legend
    yield Text()


def _sample(watch: Watch, width: int) -> list[Text]:
    if watch.sample is None:
        return []
    whole = {"prompt": "", "text": "", "step": "?", **watch.sample}
    lines, _ = sample_lines(whole)
    body = Text("\n".join(lines)).wrap(_console(width), max(8, width - 2))
    head = Text(f"sample at step {whole['step']}", style="dim")
    return [head, *(Text.assemble(("  ", ""), line) for line in body)]


def _console(width: int) -> Any:
    from rich.console import Console

    return Console(width=width)
