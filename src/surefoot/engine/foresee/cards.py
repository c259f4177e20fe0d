"""Where a run is planned for: this machine, a card by name, or just so much memory.

Figures of cards are their makers', from the documents named beside them; a card of 8 GB is counted
as 8.0e9 bytes, a little less than it has, which leaves what the driver takes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from surefoot.config.suggest import nearest
from surefoot.config.units import parse_bytes
from surefoot.engine.auto.ceilings import Ceilings, measured, of_card
from surefoot.engine.foresee.past import Overhead, overhead
from surefoot.engine.memory import available, resident
from surefoot.engine.world import open_world
from surefoot.errors import ConfigError, Unsupported
from surefoot.track.machine import describe_machine

__all__ = ["CARDS", "Card", "Place", "find_place", "here"]

_USUAL = 46  # multiprocessors of a card of which only the size is known
_BLOCK = 512  # torch's CUDA allocator rounds to it
_CONTEXT = 500_000_000  # CUDA itself: 148 MB on a T4, more on newer cards
_WORKSPACE = 33_554_432  # cuBLAS with CUBLAS_WORKSPACE_CONFIG=:4096:8, which exact resume sets
_ALIKE = 0.05  # share by which cards of one size may differ
_FRAGMENTS = 0.12  # reserved beyond allocated: 4 to 12 % in published T4 measurements


@dataclass(frozen=True)
class Card:
    """A GPU: memory in GB, TFLOP/s of fp32 and of fp16 products summed in fp32, bandwidth in GB/s,

    and how many multiprocessors it has.
    """

    memory: float
    fp32: float
    half: float | None
    bandwidth: float
    bf16: bool
    processors: int
    source: str


_TURING = "NVIDIA Turing GPU Architecture whitepaper; GeForce product pages"
_AMPERE = "NVIDIA Ampere GA102 GPU Architecture whitepaper; GeForce product pages"
_ADA = "NVIDIA Ada GPU Architecture whitepaper; GeForce product pages"

CARDS: dict[str, Card] = {
    "GTX 1650": Card(4, 2.98, None, 128, False, 14, _TURING),
    "RTX 2060": Card(6, 6.45, 25.8, 336, False, 30, _TURING),
    "RTX 2060 SUPER": Card(8, 7.18, 28.7, 448, False, 34, _TURING),
    "RTX 2080 Ti": Card(11, 13.4, 53.8, 616, False, 68, _TURING),
    "RTX 3060": Card(12, 12.7, 25.4, 360, True, 28, _AMPERE),
    "RTX 3070": Card(8, 20.3, 40.6, 448, True, 46, _AMPERE),
    "RTX 3080": Card(10, 29.8, 59.5, 760, True, 68, _AMPERE),
    "RTX 3090": Card(24, 35.6, 71.0, 936, True, 82, _AMPERE),
    "RTX 4060": Card(8, 15.1, 30.2, 272, True, 24, _ADA),
    "RTX 4090": Card(24, 82.6, 165.2, 1008, True, 128, _ADA),
    "RTX A6000": Card(48, 38.7, 154.8, 768, True, 84, "NVIDIA RTX A6000 datasheet"),
    "T4": Card(15.8, 8.1, 65.0, 320, False, 40, "NVIDIA T4 datasheet"),
    "V100": Card(16, 15.7, 125.0, 900, False, 80, "NVIDIA V100 datasheet (SXM2, 16 GB)"),
    "L4": Card(24, 30.3, 121.0, 300, True, 58, "NVIDIA L4 datasheet"),
    "A10": Card(24, 31.2, 125.0, 600, True, 72, "NVIDIA A10 datasheet"),
    "A100 40GB": Card(40, 19.5, 312.0, 1555, True, 108, "NVIDIA A100 datasheet"),
    "A100": Card(80, 19.5, 312.0, 2039, True, 108, "NVIDIA A100 datasheet (SXM, 80 GB)"),
    "L40S": Card(48, 91.6, 362.0, 864, True, 142, "NVIDIA L40S datasheet"),
    "H100": Card(80, 67.0, 989.0, 3350, True, 132, "NVIDIA H100 datasheet (SXM)"),
    "H200": Card(141, 67.0, 989.0, 4800, True, 132, "NVIDIA H200 datasheet (SXM)"),
}


@dataclass(frozen=True)
class Place:
    """What a run may use there. `extra` are bytes beside its tensors, by name.

    `ceilings` is None where nobody knows them. `measured` tells ceilings measured here from a
    maker's. `processors` are those of a card, on which the room of its attention depends; a card
    without flash attention has 0. `fragments` is the share of tensors that an allocator holds beyond them.
    """

    name: str
    room: int
    extra: dict[str, int]
    fragments: float
    block: int
    precision: str
    ceilings: Ceilings | None
    device: str | None = None
    overhead: Overhead | None = None
    processors: int | None = None
    note: str = ""


def find_place(asked: str | None, cache: Path | None, device: str = "auto") -> Place:
    """Return the place that `--gpu` names: `8GB`, a card, or `this` (also None).

    `device` is the one of this machine that is asked for. Raises ConfigError for a name that no card
    has, Unsupported for a device that is not here.
    """
    if asked is None or asked.strip().lower() == "this":
        return here(cache, device)
    try:
        return _of_size(parse_bytes(asked), asked)
    except ValueError:
        pass
    names = {_bare(name): name for name in CARDS}
    found = names.get(_bare(asked))
    if found is None:
        near = nearest(_bare(asked), names)
        fix = f"did you mean {names[near]!r}? " if near else f"known: {', '.join(CARDS)}. "
        raise ConfigError(f"--gpu {asked}: no such card is known", fix=f"{fix}Or --gpu 8GB")
    card = CARDS[found]
    ceilings = of_card(card.fp32, card.half, card.bandwidth)
    size, precision = round(card.memory * 1e9), "bf16" if card.bf16 else "fp16"
    return _card(found, size, precision, ceilings, card.processors if card.bf16 else 0)


def _of_size(size: int, asked: str) -> Place:
    if size < 10**9:
        raise ConfigError(f"--gpu {asked}: no card is that small", fix="--gpu 8GB")
    return _card(f"a card of {size / 1e9:g} GB", size, "bf16", None, _USUAL)


def _card(
    name: str, room: int, precision: str, ceilings: Ceilings | None, processors: int
) -> Place:
    extra = {"CUDA": _CONTEXT, "cuBLAS": _WORKSPACE}
    return Place(name, room, extra, _FRAGMENTS, _BLOCK, precision, ceilings, processors=processors)


def here(cache: Path | None, asked: str = "auto") -> Place:
    """Return this machine: the device asked for, else its first CUDA device, else its processor."""
    past = None if cache is None else cache.with_name("past.json")
    named = asked.startswith("cuda")
    if named or (asked == "auto" and torch.cuda.is_available()):
        return _this_card(_named(asked) if named else torch.device("cuda"), cache, past)
    program = resident()
    room = available() + program
    name = f"this machine, {describe_machine()['cpu']}"
    return Place(
        name, room, {"program": program}, _FRAGMENTS, 1, "fp32", measured(cache), "cpu",
        overhead=overhead(past, "cpu"),
    )  # fmt: skip


def _named(asked: str) -> torch.device:
    """Return the device. Raises Unsupported where it is not here."""
    try:
        return open_world(asked).device
    except Unsupported as error:
        error.fix = f"--gpu 8GB, or a card's name, plans for one that is not here; {error.fix}"
        raise


def _this_card(device: torch.device, cache: Path | None, past: Path | None) -> Place:
    """Return a card of this machine as it is now, with what earlier runs on it took."""
    free, about = int(torch.cuda.mem_get_info(device)[0]), torch.cuda.get_device_properties(device)
    precision = "bf16" if torch.cuda.is_bf16_supported(False) else "fp16"
    processors = about.multi_processor_count if about.major >= 8 else 0
    found = _card(about.name, free, precision, measured(cache, device=device), processors)
    known = overhead(past, str(device))
    share = _FRAGMENTS if known is None or known.fragments is None else known.fragments
    return replace(
        found, device=str(device), overhead=known, fragments=share, note=_beside(device.index or 0)
    )


def _beside(index: int) -> str:
    """Name the cards of another size than the one that is planned for."""
    sizes = [
        torch.cuda.get_device_properties(n).total_memory for n in range(torch.cuda.device_count())
    ]
    others = [
        f"cuda:{n} has {size / 1e9:.1f} GB"
        for n, size in enumerate(sizes) if abs(size - sizes[index]) > _ALIKE * sizes[index]
    ]  # fmt: skip
    if not others:
        return ""
    least = min(range(len(sizes)), key=lambda n: sizes[n])
    return f"{', '.join(others)} (--device plans for it); a run on all has room for what fits cuda:{least}"


def _bare(name: str) -> str:
    """Return what matters of a card's name.

    >>> _bare("NVIDIA GeForce RTX 2060 SUPER"), _bare("tesla-t4")
    ('rtx2060super', 't4')
    """
    text = "".join(c for c in name.lower() if c.isalnum())
    for word in ("nvidia", "geforce", "tesla", "quadro"):
        text = text.replace(word, "")
    return text
