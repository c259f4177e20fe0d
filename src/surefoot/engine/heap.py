"""Keep memory that training frees and takes again at every step.

The C library's allocator gives large blocks back to the system as soon as they are free, and the
system hands out zeroed pages again at the next step: some thousand page faults a step, up to a
fifth of the time of a small model on a processor. What lies free between what was made before the first
step, or in it, is another matter: the blocks of later steps do not fit there, so once it is given back.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

__all__ = ["give_back", "keep_freed_memory"]

# Parameters of mallopt in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LIMITS = (2**30, 2**25)  # bytes, larger blocks go back; glibc before 2.35 takes 32 MiB at most


@cache
def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory in the process; return whether it will.

    What is freed after the peak stays with the process. The peak stays the same where blocks come
    again in the sizes of the step before; with rows so long that blocks take hundreds of MB, gaps
    between them can add up to more than the tensors. Other C libraries (macOS, Windows, musl) are
    left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    for limit in _LIMITS:
        if mallopt(_MMAP_THRESHOLD, limit):
            return bool(mallopt(_TRIM_THRESHOLD, limit))
    return False


def give_back() -> None:
    """Let glibc give all that is free now back to the system; what is used again comes back.

    It costs page faults in what comes next, so it is for moments after which memory is used
    otherwise than before.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if keep_freed_memory() else None
    if trim is not None:
        trim(0)
