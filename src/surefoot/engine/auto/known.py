"""Earlier answers of the probe: by device, versions, cores and settings, in a file of the cache."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash

from surefoot.config.identity import fingerprint
from surefoot.config.schema import RunConfig
from surefoot.engine.own import is_file, pinned
from surefoot.track.machine import describe_machine

__all__ = ["device_name", "question", "recall", "remember"]


def question(
    config: RunConfig, source: str, learners: Iterable[str], device: torch.device, cores: int
) -> str:
    """Return what an answer depends on, as a hash: kernels from files by what is in them.

    `source` is the fingerprint of the data.
    """
    own = [pinned(way) for way in config.ops.ways().values() if is_file(way)]
    facts = [
        torch.__version__, device_name(device), os.cpu_count(), cores,
        fingerprint(config), source, sorted(learners), own, 9,
    ]  # fmt: skip
    return xxhash.xxh3_128_hexdigest(json.dumps(facts, default=str).encode())


def device_name(device: torch.device) -> str:
    """Return what the maker calls a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {describe_machine()['cpu']}"


def recall(cache: Path | None, asked: str) -> dict[str, Any] | None:
    """Return the earlier answer, or None where there is none that can be read."""
    try:
        found = json.loads(cache.read_text())[asked] if cache else None
        return found if isinstance(found, dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(cache: Path | None, asked: str, answer: Mapping[str, Any]) -> None:
    """Keep the answer; the cache is a convenience, so a disk that refuses is no failure."""
    if cache is None:
        return
    try:
        known = json.loads(cache.read_text()) if cache.exists() else {}
        kept = dict(list(known.items())[-99:]) if isinstance(known, dict) else {}
        cache.parent.mkdir(parents=True, exist_ok=True)
        fresh = cache.with_name(f"{cache.name}.{os.getpid()}")
        fresh.write_text(json.dumps({**kept, asked: answer}))
        fresh.replace(cache)
    except (OSError, ValueError):
        return
