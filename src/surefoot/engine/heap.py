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
_LARGEST = 2**25  # bytes of a block that is kept; glibc before 2.35 takes no more
_KEPT = 2**30  # bytes at the end of the heap


@cache
def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory in the process; return whether it will.

    What is freed after the peak stays with the process, but for blocks above 32 MiB, as long rows
    have: gaps between such would add up to more than the tensors, and their page faults are little
    beside what is computed in them. Other C libraries (macOS, musl) are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _KEPT))


def give_back() -> None:
    """Let glibc give all that is free now back to the system; what is used again comes back.

    It costs page faults in what comes next, so it is for moments after which memory is used
    otherwise than before.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if keep_freed_memory() else None
    if trim is not None:
        trim(0)
