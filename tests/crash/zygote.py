"""A process that has imported everything once and forks for each trial.

Reads one JSON request a line from standard input: `{"play": ..., "arguments": {...}, "arm":
[folder, k, fault] | null, "log": [path, path] | null, "answer": path, "limit": seconds}`. Forks;
the child arms the preloaded library, plays, and writes what happened to `answer`. Prints one line
for each: whether the child hung and had to be killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import Any


def main() -> None:
    library = ctypes.CDLL(os.environ["SUREFOOT_CRASHPOINT"])
    library.crash_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_long]
    library.crash_log.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    library.crash_count.restype = ctypes.c_long
    here = Path(__file__).parent
    sys.path[:0] = [str(here), str(here.parent)]
    import plays  # imports torch and surefoot

    home = Path(sys.argv[1])
    settle = plays.settle_down if sys.argv[2] == "alone" else plays.settle_together
    settle(home)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        plays.settle_for(request["arguments"].get("recipe"), home)
        child = os.fork()
        if child == 0:
            _child(library, plays, request)
        print(json.dumps(_wait(child, request["limit"])), flush=True)


def _child(library: Any, plays: Any, request: dict[str, Any]) -> None:
    """Play and leave, without running what the parent registered for its own end."""
    silence = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(silence, handle)
    if request["log"]:
        library.crash_log(*(os.fsencode(path) for path in request["log"]))
    if request["arm"]:
        folder, k, fault = request["arm"]
        library.crash_arm(os.fsencode(folder), k, fault)
    os.chdir(Path(request["answer"]).parent)  # outside of any repository, whose diff a run keeps
    code = 0
    try:
        answer = getattr(plays, request["play"])(**request["arguments"])
    except BaseException as error:
        code = getattr(error, "exit_code", 1)
        text = "".join(traceback.format_exception(error))
        answer = {"error": f"{type(error).__name__}: {error}", "traceback": text}
    answer["code"], answer["calls"] = code, library.crash_count()
    Path(request["answer"]).write_text(json.dumps(answer))
    os._exit(0)


def _wait(child: int, limit: float) -> dict[str, Any]:
    """Wait for the child; one that hangs is killed and said to have hung."""
    handle = os.pidfd_open(child)
    late = not select.select([handle], [], [], limit)[0]
    os.close(handle)
    if late:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return {"hung": late}


if __name__ == "__main__":
    main()
