"""`--restarts N`: train in a child process and start it again when it crashes.

The parent holds nothing but the command, so whatever kills the child leaves it alive. It gives up
when the same step fails twice, because then trying again will not help.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

from surefoot.track.folder import RunFolder, now

__all__ = ["supervise"]

_FINAL = {0, 2, 3, 5, 75, 130}  # done, or nothing that another try would mend
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds


def supervise(
    first: Sequence[str],
    again: Sequence[str],
    restarts: int,
    find_run: Callable[[], RunFolder | None],
) -> int:
    """Run `surefoot FIRST`, then AGAIN until it is done, at most `restarts` times more.

    Returns the exit code of the last try, 1 when giving up. `find_run` returns the run that the child works on, once there is one. Restarts are recorded
    in its run.json. Signals are passed on to the child.
    """
    pause, failed_at = _FIRST_PAUSE, None
    for tried in range(restarts + 1):
        code = _child(again if tried else first)
        if code in _FINAL:
            return code
        step = _note(find_run(), code)
        if tried == restarts:
            return _give_up(f"failed {tried + 1} times, the last time with exit code {code}")
        if step is not None and step == failed_at:
            return _give_up(f"failed twice after step {step}, with exit code {code}")
        failed_at = step
        print(
            f"exit code {code}; restart {tried + 1} of {restarts} in {pause:.0f} s", file=sys.stderr
        )
        time.sleep(pause)
        pause = min(_LONGEST_PAUSE, 2 * pause)
    return 1


def _give_up(text: str) -> int:
    print(f"error: {text}; giving up", file=sys.stderr)
    return 1


def _child(argv: Sequence[str]) -> int:
    child = subprocess.Popen([sys.executable, "-m", "surefoot", *argv])

    def pass_on(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    before = [(n, signal.signal(n, pass_on)) for n in (signal.SIGINT, signal.SIGTERM)]
    try:
        return child.wait()
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _note(run: RunFolder | None, code: int) -> int | None:
    """Record the failure in the run and return the last step in its journal."""
    if run is None:
        return None
    from surefoot.engine.verify import last_step

    step = last_step(run.path / "journal")
    entry = {"time": now(), "step": step, "exit": code}
    run.update(restarts=[*run.meta.get("restarts", []), entry])
    return step
