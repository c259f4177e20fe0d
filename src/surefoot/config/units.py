"""Durations and sizes as people write them: `5min`, `30d`, `2GB`."""

from __future__ import annotations

import re

__all__ = ["parse_bytes", "parse_seconds", "parse_share"]


def parse_seconds(text: str) -> float:
    """Read a duration.

    >>> parse_seconds("90s"), parse_seconds("5min"), parse_seconds("1.5h")
    (90.0, 300.0, 5400.0)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|m|min|h|d)\s*", text)
    if not match:
        raise ValueError("expected a time like 90s, 5min or 2h")
    unit = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}[match[2]]
    return float(match[1]) * unit


def parse_bytes(text: str) -> int:
    """Read a size in powers of 1000.

    >>> parse_bytes("2GB"), parse_bytes("500 MB")
    (2000000000, 500000000)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?\s*", text, re.IGNORECASE)
    if not match:
        raise ValueError("expected a size like 500MB or 2GB")
    return (
        int(float(match[1]) * 1000 ** "KMGT".find(match[2].upper()) * 1000)
        if match[2]
        else int(float(match[1]))
    )


def parse_share(text: str) -> float:
    """Return a share; raises ValueError for what is none.

    >>> parse_share("5%"), parse_share("0.05")
    (0.05, 0.05)
    """
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise ValueError("expected a share like 5% or 0.05") from error
