"""What there is to say about a run in words: status, numbers, facts; for `show` and report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from surefoot.track.clock import Clock
from surefoot.track.figures import Best, Mark, best_of
from surefoot.track.folder import RunFolder
from surefoot.track.reading import History, Row, column
from surefoot.track.text import RATES, bytes_text, clean, clock, number, rate, real

__all__ = ["Story", "facts", "tell"]

_PERCENT = {"top1": "top-1 accuracy", "top5": "top-5 accuracy", "exact": "exact answers"}
_LABELS = {"val": "held out", "vocab_size": "vocabulary size", "train": "trained on"}


@dataclass(frozen=True)
class Story:
    """A run in words. `share` is how much of it is done, from 0 to 1; -1: not known."""

    status: str
    place: str
    share: float
    subtitle: str
    alert: str
    tiles: list[tuple[str, str]]  # (value, label)
    best: Best | None
    seconds: float  # of training, over all processes
    speed: str | None
    errors: list[tuple[str, str, str]]  # (step, label, text)

    def events(self, marks: Iterable[Mark]) -> list[tuple[str, str, str]]:
        """Return (step, label, text) of errors and marks in order of steps."""
        found = [(f"step {mark.step}", mark.label, clean(mark.text)) for mark in marks]
        return sorted([*found, *self.errors], key=lambda event: int(event[0].split()[-1]))


def tell(run: RunFolder, history: History) -> Story:
    """Return the story of a run from its `run.json` and rows."""
    meta, status, best = run.meta, run.status, best_of(history)
    step = max(map(_step, [*history.train.values(), *history.eval.values()]), default=0)
    if status != "running":  # else run.json may know of steps that are being trained again
        step = max(step, int(real(meta.get("step")) or 0))
    total = meta.get("max_steps")
    seconds = Clock(history, meta).total
    return Story(
        status=status,
        place=f"{step}/{total}" if total else str(step),
        share=min(1.0, step / total) if total else -1.0,
        subtitle=_subtitle(meta),
        alert=_alert(status, meta, history),
        tiles=_tiles(history, best, step, total, seconds),
        best=best,
        seconds=seconds,
        speed=_speed(history),
        errors=_errors(meta),
    )


def facts(run: RunFolder) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return what `run.json` knows beyond the numbers, as titled tables."""
    meta = run.meta
    origin = {
        "created": meta.get("created"),
        "ended": meta.get("ended"),
        "seed": meta.get("seed"),
        "parent": meta.get("parent"),
        "tags": ", ".join(map(str, _list(meta.get("tags")))),
        "code": _git(meta.get("git")),
        "identity": meta.get("identity"),
    }
    machine = _mapping(meta.get("machine"))
    for name in {"memory", "gpu_memory"} & machine.keys():
        machine[name] = bytes_text(real(machine[name]) or 0.0)
    tables = [
        ("Data", _mapping(meta.get("data"))),
        ("Machine", machine),
        ("Versions", _mapping(meta.get("versions"))),
        ("Chosen for this machine", _mapping(meta.get("pinned"))),
        ("Run", origin),
    ]
    rows = [(title, [*_rows(table)]) for title, table in tables]
    return [(title, table) for title, table in rows if table]


def _rows(table: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for key, value in table.items():
        text = _value(value)
        if text:
            yield clean(_LABELS.get(key, str(key).replace("_", " "))), clean(text)


def _value(value: Any) -> str:
    if value is None or value == [] or value == {}:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_value(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        if len(value) == 2 and all(isinstance(inner, int) for inner in value):
            return f"{value[0]:,} to {value[1]:,}"
        return "; ".join(_value(inner) for inner in value)
    return str(value)


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _git(state: Any) -> str | None:
    if not isinstance(state, Mapping):
        return None
    changes = " with uncommitted changes" if state.get("dirty") else ""
    return f"{str(state.get('commit'))[:12]}{changes}"


def _step(rows: list[Row]) -> int:
    return max((row["step"] for row in rows if isinstance(row.get("step"), int)), default=0)


def _subtitle(meta: Mapping[str, Any]) -> str:
    preset = f", preset {meta['preset']}" if meta.get("preset") else ""
    begun = str(meta.get("created", ""))
    try:
        begun = datetime.fromisoformat(begun).astimezone().strftime("%d %B %Y, %H:%M")
    except ValueError:
        begun = clean(begun)
    return f"{meta.get('recipe', '?')}{preset} · begun {begun}"


def _alert(status: str, meta: Mapping[str, Any], history: History) -> str:
    said = []
    errors = _list(meta.get("errors"))
    if status == "failed" and errors:
        last = errors[-1]
        said.append(clean(str(last.get("error") if isinstance(last, Mapping) else last)))
    if status == "lost":
        said.append(
            "The process that trained this run is gone: it was killed, or the machine stopped."
        )
        said.append(f"Go on with: surefoot resume {meta.get('name', '')}")
    if history.damage.count:
        said.append(f"metrics.jsonl has {history.damage}; they are left out.")
    return " ".join(said)


def _tiles(
    history: History, best: Best | None, step: int, total: int | None, seconds: float
) -> list[tuple[str, str]]:
    tiles = [(f"{step:,}", f"of {total:,} steps" if total else "steps")]
    if best is not None:
        tiles.append((number(best.value), f"best validation loss, step {best.step}"))
        tiles += _beside_best(history, best)
    if list(history.train) == ["main"]:
        loss = real(history.train["main"][-1].get("loss"))
        tiles += [(number(loss), "training loss")] if loss is not None else []
    speed = _speed(history)
    if speed:
        value, unit = speed.split(" ", 1)
        tiles.append((value, {"tok/s": "tokens per second", "ex/s": "examples per second"}[unit]))
    if seconds:
        tiles.append((clock(seconds), "training time"))
    return tiles


def _speed(history: History) -> str | None:
    """Return the median speed as `182k tok/s`."""
    for key in RATES:
        speeds = sorted(v for rows in history.train.values() for v in column(rows, key)[1])
        if speeds:
            return rate({key: speeds[len(speeds) // 2]})
    return None


def _beside_best(history: History, best: Best) -> list[tuple[str, str]]:
    """Return what the best evaluation measured besides its loss."""
    found = []
    row = next(row for row in history.eval[best.learner] if row.get("step") == best.step)
    for key, value in row.items():
        amount = real(value)
        if amount is not None and key.startswith("val_bits_per_"):
            found.append((number(amount), f"bits per {key.removeprefix('val_bits_per_')}"))
        elif amount is not None and key in _PERCENT:
            found.append((f"{100 * amount:.1f} %", _PERCENT[key]))
    return found


def _errors(meta: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    found = []
    for error in _list(meta.get("errors")):
        if isinstance(error, Mapping):
            step, text = int(real(error.get("step")) or 0), str(error.get("error", ""))
        else:
            step, text = 0, str(error)
        found.append((f"step {step}", "error", clean(text)))
    return found
