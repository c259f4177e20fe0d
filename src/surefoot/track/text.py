"""How numbers, times and foreign text look wherever a record is shown to a person."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = [
    "RATES",
    "bytes_text",
    "clean",
    "clock",
    "count",
    "eval_parts",
    "legible",
    "machine_parts",
    "number",
    "percent",
    "rate",
    "real",
    "sample_lines",
    "short_exponent",
    "sparkline",
    "train_parts",
]

# Keys of a train row that tell its speed, the first that is there to a person.
RATES = {"examples_per_s": "ex/s", "tokens_per_s": "tok/s"}
SAMPLE_LINES = 12  # of a sample; the rest is in samples.jsonl
BARS = "▁▂▃▄▅▆▇█"
_NEAREST = dict(zip(f"{BARS}·×–—─━│├└…±→Δ²", [*"_.-=+*#@-x----|++", "...", "+-", "->", "d", "2"]))
_PLACE = frozenset(("kind", "step", "learner", "segment", "time"))
_CONTROL = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {
    0x7F: "␡",
    **dict.fromkeys(range(128, 160), "�"),
    **dict.fromkeys((8232, 8233, *range(8234, 8239), *range(8294, 8298)), "�"),
    **dict.fromkeys(range(55296, 57344), "�"),
}


def legible(error: UnicodeError) -> tuple[str, int]:
    """Write what an encoding lacks with letters and signs that it has, or as `?`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wanted = error.object[error.start : error.end]
    return "".join(_NEAREST.get(character, "?") for character in wanted), error.end


codecs.register_error("legible", legible)


def clean(text: str, encoding: str | None = "utf-8") -> str:
    """Return `text` safe to print: control characters made visible, and only what `encoding` has.

    A model may write anything, including sequences that would move a terminal's cursor.

    >>> clean("a\\x1b[2Jb\\rc")
    'a␛[2Jb␍c'
    >>> clean("naïve · ▁█", "ascii")
    'na?ve - _@'
    """
    text = text.translate(_CONTROL)
    return text.encode(encoding or "utf-8", "legible").decode(encoding or "utf-8")


def real(value: Any) -> float | None:
    """Return a number of a row as float ("nan" and "inf" are texts there), or None.

    >>> real(2), real("inf"), real("soon"), real(None)
    (2.0, inf, None, None)
    """
    if isinstance(value, str) and value not in ("nan", "inf", "-inf"):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def number(value: float) -> str:
    """Write a loss-like number with the digits that matter.

    >>> number(2.41234), number(0.00001234), number(12345.6), number(2.7e63), number(float("nan"))
    ('2.412', '1.23e-5', '12346', '2.70e63', 'nan')
    """
    size = abs(value)
    if not math.isfinite(value) or size == 0:
        return f"{value:g}"
    if size < 0.01 or size >= 1e7:
        return short_exponent(f"{value:.2e}")
    return f"{value:.3f}" if size < 1000 else f"{value:.0f}"


def short_exponent(text: str) -> str:
    """Write 3.0e-04 as 3.0e-4."""
    head, _, exponent = text.partition("e")
    return f"{head}e{int(exponent)}" if exponent else text


def count(value: float) -> str:
    """Write a number of things in at most four characters.

    >>> count(950), count(1234), count(182_345), count(10_800_000)
    ('950', '1.2k', '182k', '10.8M')
    """
    if not math.isfinite(value):
        return f"{value:g}"
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size * 0.9995:
            return (
                f"{value / size:.1f}{unit}"
                if abs(value) < 99.95 * size
                else f"{value / size:.0f}{unit}"
            )
    return f"{value:.0f}"


def bytes_text(size: float) -> str:
    """Write a size.

    >>> bytes_text(532), bytes_text(1_530_000), bytes_text(25e9)
    ('532 B', '1.5 MB', '25 GB')
    """
    for unit, power in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= power:
            return (
                f"{size / power:.1f} {unit}" if size < 10 * power else f"{size / power:.0f} {unit}"
            )
    return f"{size:.0f} B"


def percent(share: float) -> str:
    """Write a share.

    >>> percent(0.4178)
    '41.8 %'
    """
    return f"{100 * share:.1f} %"


def clock(seconds: float) -> str:
    """Write a duration.

    >>> clock(8), clock(97), clock(3725), clock(200_000)
    ('0:08', '1:37', '1:02:05', '2 d 7 h')
    """
    whole = int(seconds)
    if whole >= 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def rate(row: Mapping[str, Any]) -> str | None:
    """Return the speed that a train row tells, like `182k tok/s`."""
    for key, unit in RATES.items():
        value = real(row.get(key))
        if value is not None:
            return f"{count(value)} {unit}"
    return None


def machine_parts(row: Mapping[str, Any]) -> list[str]:
    """Return what a system row tells of the machine in a few words each.

    >>> machine_parts({"busy": 0.934, "mfu": 0.41, "gpu_celsius": 71.0, "other_cores": 0.2})
    ['busy 93 %', 'MFU 41 %', '71 °C']
    """
    known = {key: value for key in row if (value := real(row[key])) is not None}
    found = [
        f"{word} {known[key]:.0%}".replace("%", " %")
        for key, word in (("busy", "busy"), ("mfu", "MFU"))
        if key in known
    ]
    heat = known.get("gpu_celsius", known.get("cpu_celsius"))
    found += [f"{heat:.0f} °C"] if heat is not None else []
    others = known.get("gpu_other_bytes", 0.0)
    return found + ([f"others hold {bytes_text(others)}"] if others > 1e8 else [])


def train_parts(row: Mapping[str, Any]) -> list[str]:
    """Return what a train row says as short texts: loss, learning rate, speed."""
    parts = []
    loss, lr = real(row.get("loss")), real(row.get("lr"))
    if loss is not None:
        parts.append(f"loss {number(loss)}")
    if lr is not None:
        parts.append(f"lr {short_exponent(f'{lr:.1e}') if lr else 0}")
    speed = rate(row)
    return [*parts, speed] if speed else parts


def eval_parts(row: Mapping[str, Any]) -> list[str]:
    """Return what an eval row says as short texts, the well-known ones first and in plain words.

    An interval, KEY_low and KEY_high, what a model was before, base_KEY, and how the two differ,
    KEY_change, stand beside KEY.

    >>> eval_parts({"cut": 0.5, "cut_low": 0.4, "cut_high": 0.6, "base_cut": 0.25, "cut_change": 0.25})
    ['cut 0.500 (0.4 to 0.6, base 0.25, change 0.25)']
    """
    amounts = {
        key: amount
        for key, value in row.items()
        if key not in _PLACE and not isinstance(value, bool) and (amount := real(value)) is not None
    }
    beside = {f"{key}_{end}" for key in amounts for end in ("low", "high")}
    beside |= {f"base_{key}" for key in amounts} | {f"{key}_change" for key in amounts}
    return [_metric(k, v) + _beside(k, amounts) for k, v in amounts.items() if k not in beside]


def _beside(key: str, amounts: Mapping[str, float]) -> str:
    said = [_interval(key, amounts)]
    if (base := amounts.get(f"base_{key}")) is not None:
        said.append(f"base {_rough(base)}")
    if (change := amounts.get(f"{key}_change")) is not None:
        interval = _interval(f"{key}_change", amounts)
        said.append(f"change {_rough(change)}{interval and ': '}{interval}")
    said = [part for part in said if part]
    return f" ({', '.join(said)})" if said else ""


def _interval(key: str, amounts: Mapping[str, float]) -> str:
    low, high = amounts.get(f"{key}_low"), amounts.get(f"{key}_high")
    return "" if low is None or high is None else f"{_rough(low)} to {_rough(high)}"


def _rough(value: float) -> str:
    return f"{value:.3g}"


def _metric(key: str, value: float) -> str:
    if key == "val_loss":
        return f"val loss {number(value)}"
    if key.startswith("val_bits_per_"):
        return f"{number(value)} bits/{key.removeprefix('val_bits_per_')}"
    if key in ("top1", "top5", "exact"):
        name = {"top1": "top-1", "top5": "top-5"}.get(key, key)
        return f"{name} {percent(value)}"
    return f"{key.replace('_', ' ')} {number(value)}"


def sample_lines(sample: Mapping[str, Any]) -> tuple[list[str], int]:
    """Return the lines of a sample to show, prompt first, and how many more there are."""
    lines = clean(f"{sample['prompt']}{sample['text']}").strip("\n").split("\n")
    if len(lines) <= SAMPLE_LINES:
        return lines, 0
    return lines[: SAMPLE_LINES - 1], len(lines) - SAMPLE_LINES + 1


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Draw a curve in one line: the mean of each of `width` pieces; × where nothing is finite.

    >>> sparkline([4, 3, 2, 2, 1, 1], 6)
    '█▆▃▃▁▁'
    """
    width = min(width, len(values))
    means = [
        _mean(values[place * len(values) // width : (place + 1) * len(values) // width])
        for place in range(width)
    ]
    finite = [mean for mean in means if mean is not None]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(BARS) - 1) / ((high - low) or 1.0)
    return "".join("×" if m is None else BARS[round((m - low) * scale)] for m in means)


def _mean(values: Iterable[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None
