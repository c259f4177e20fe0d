"""Checkpoints that several processes wrote: the same tensors, in parts of some rows each.

`main.2of4.model.safetensors` holds the third part of every tensor of `main.model.safetensors`. What
is not split is in the first part alone. Whoever reads sees whole tensors, put together when asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["Joined", "holds_weights", "is_part", "joined", "part_of"]

_PART = re.compile(r"(.+)\.(\d+)of(\d+)\.(model|optim|ema)\.safetensors")


def part_of(file: str, number: int, count: int) -> str:
    """Return the name of one part of a file.

    >>> part_of("main.model.safetensors", 2, 4)
    'main.2of4.model.safetensors'
    """
    name, kind, ending = file.rsplit(".", 2)
    return f"{name}.{number}of{count}.{kind}.{ending}"


def is_part(file: str) -> bool:
    """Whether a file holds only some rows of its tensors."""
    return _PART.fullmatch(file) is not None


def holds_weights(file: str) -> bool:
    """Whether a file, or part of one, holds tensors of a model and not those of an optimiser."""
    return file.endswith((".model.safetensors", ".ema.safetensors"))


class Joined(dict[str, Tensor]):
    """Tensors by name, each put together from its parts when it is asked for, and not kept."""

    def __init__(self, parts: list[dict[str, Tensor]]) -> None:
        super().__init__(parts[0])
        self._parts = parts

    def __getitem__(self, name: str) -> Tensor:
        found = [part[name] for part in self._parts if name in part]
        return found[0] if len(found) == 1 else torch.cat(found)

    def items(self) -> Any:
        """Yield each name with its whole tensor, one at a time."""
        return ((name, self[name]) for name in self)

    def values(self) -> Any:
        """Yield the whole tensors, one at a time."""
        return (self[name] for name in self)

    def __or__(self, other: Any) -> Any:
        return {**dict(self.items()), **other}


def joined(files: Mapping[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Return tensors by file, where files that are parts count as the one that they make."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, parts in _gathered(files):
        found[name] = parts[0] if len(parts) == 1 else Joined(parts)
    return found


def _gathered(
    files: Mapping[str, dict[str, Tensor]],
) -> Iterator[tuple[str, list[dict[str, Tensor]]]]:
    split: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name, tensors in files.items():
        match = _PART.fullmatch(name)
        if match is None:
            yield name, [tensors]
        else:
            whole = f"{match[1]}.{match[4]}.safetensors"
            split.setdefault(whole, {})[int(match[2])] = tensors
    for whole, numbered in split.items():
        yield whole, [numbered[number] for number in sorted(numbered)]
