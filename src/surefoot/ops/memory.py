"""Keep memory that training frees and takes again at every step.

The C library's allocator gives large blocks back to the system as soon as they are free, and the
system hands out zeroed pages again at the next step: some thousand page faults a step, up to a
fifth of the time of a small model on a processor.
"""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

# Parameters of mallopt in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LIMIT = 2**30  # bytes: larger blocks still come from the system and go back to it


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory in the process; return whether it will.

    The peak of memory stays the same; what is freed after the peak stays with the process. Other
    C libraries (macOS, Windows, musl) are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LIMIT) and mallopt(_TRIM_THRESHOLD, _LIMIT))
