"""Find what looks like a password or a key in code, to warn; what it says is never repeated."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

__all__ = ["looking_secret"]

_KNOWN = {
    "private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
    "AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_\w{40,}\b",
    "Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}\b",
    "Google API key": r"\bAIza[0-9A-Za-z_-]{35}\b",
    "API key": r"\bsk-[A-Za-z0-9_-]{32,}\b",
    "token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
}
_ONE = re.compile("|".join(f"(?P<k{i}>{p})" for i, p in enumerate(_KNOWN.values())))
_NAMES = list(_KNOWN)
_ASSIGNED = re.compile(
    r"(?i)\b[\w.-]*(?:secret|passwd|password|api_?key|auth_?token|access_?token)[\w.-]*"
    r"""["']?\s*[:=]\s*["']([^"'\s]{12,})["']"""
)
_BITS = 3.4  # of entropy by character; words of a language have less


def looking_secret(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line, kind) of strings that look secret: known forms, and assigned random strings.

    >>> list(looking_secret('x = 1\\napi_key = "' + 'q8Zr1Lw0Xe7Tj3Vb' + '"'))
    [(2, 'assigned secret')]
    >>> list(looking_secret('password = "changeme-changeme"'))
    []
    """
    for number, line in enumerate(text.split("\n"), 1):
        if known := _ONE.search(line):
            yield number, _NAMES[int(str(known.lastgroup)[1:])]
        elif (given := _ASSIGNED.search(line)) and _entropy(given[1]) >= _BITS:
            yield number, "assigned secret"


def _entropy(text: str) -> float:
    counts = Counter(text).values()
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts)
