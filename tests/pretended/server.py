"""A process on a pretended card that forks for each command: torch and others are loaded once.

Reads one line of JSON for each from standard input: `{"words": [...], "environment": {...}, "out": path,
"err": path}`, and prints how the command ended. The one word `peaks` is tests.pretended.peaks.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from typing import Any

from tests.pretended import __main__, card, peaks

__all__: list[str] = []


def play(asked: dict[str, Any]) -> None:
    """Be the command, in a fork of its own."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for handle, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), handle)
        os.environ.clear()
        os.environ.update(asked["environment"])
        if "WITHOUT_FP64" in os.environ:
            card.bar_fp64()
        words = asked["words"]
        code = (peaks.main() if words == ["peaks"] else __main__.main(words)) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    gc.collect()
    gc.freeze()  # or each collection in a fork would copy all that was imported
    count = gc.get_freeze_count()
    gc.get_freeze_count = lambda: count  # nor does each fork walk through it to count
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            play(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
