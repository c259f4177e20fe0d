"""A tuned model that writes, and how it is given to other programs."""

from __future__ import annotations

from dataclasses import dataclass

from surefoot.engine import TextSpeaker

__all__ = ["CodeSpeaker"]


@dataclass(frozen=True)
class CodeSpeaker(TextSpeaker):
    """A pretrained model with its adapters."""
