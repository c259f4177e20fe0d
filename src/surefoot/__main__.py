"""`python -m surefoot`."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from surefoot.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    code = main()
    if "RANK" in os.environ:
        # All is saved, and the group is left. Threads of torch that still end may abort a process
        # whose interpreter is taken down around them, and torchrun would see a rank that failed.
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)
