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

from surefoot.track.exits import FINAL
from surefoot.track.folder import RunFolder, now

__all__ = ["supervise"]

_STOPPED = 75
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds
_GLANCE = 0.1  # seconds between looks for a signal in a pause


def supervise(
    first: Sequence[str],
    again: Sequence[str],
    restarts: int,
    find_run: Callable[[], RunFolder | None],
) -> int:
    """Run `surefoot FIRST`, then AGAIN until it is done, at most `restarts` times more.

    Returns the exit code of the last try, 1 when giving up, 75 when told to stop. `find_run` returns
    the run that the child works on, once there is one. Restarts are recorded in its run.json.
    Signals are passed on to the child; whatever it ends with after one, it is not started again.
    """
    signals, pause, failed_at = _Signals(), _FIRST_PAUSE, None
    with signals:
        for tried in range(restarts + 1):
            code = signals.run(again if tried else first)
            if code == 0 or code in FINAL:
                return code
            if signals.received:
                return _stopped(signals.received, find_run())
            step = _note(find_run(), code)
            if tried == restarts:
                return _give_up(
                    f"failed {tried + 1} times, the last time with exit code {code}", find_run()
                )
            if step is not None and step == failed_at:
                return _give_up(
                    f"failed twice after step {step}, with exit code {code}", find_run()
                )
            failed_at = step
            print(
                f"exit code {code}; restart {tried + 1} of {restarts} in {pause:.0f} s",
                file=sys.stderr,
            )
            if signals.arrives_within(pause):
                return _stopped(signals.received, find_run())
            pause = min(_LONGEST_PAUSE, 2 * pause)
    return 1


def _stopped(name: str, run: RunFolder | None) -> int:
    again = f"surefoot resume {run.path.name}" if run else "the same command begins again"
    print(f"stopped by {name}\n  help:  {again}", file=sys.stderr)
    return _STOPPED


def _give_up(text: str, run: RunFolder | None) -> int:
    print(f"error: {text}; giving up", file=sys.stderr)
    if run is not None:
        name = run.path.name
        print(
            f"  help:  what happened: surefoot show {name}, {run.path / 'log.txt'}", file=sys.stderr
        )
    return 1


class _Signals:
    """Passes SIGINT and SIGTERM on to the child, and remembers the first, child or not."""

    def __init__(self) -> None:
        self.received = ""
        self._child: subprocess.Popen[bytes] | None = None

    def run(self, argv: Sequence[str]) -> int:
        """Return the exit code of `surefoot ARGV`."""
        self._child = subprocess.Popen([sys.executable, "-m", "surefoot", *argv])
        if self.received:  # while it was being started
            self._child.terminate()
        code = self._child.wait()
        self._child = None
        return code

    def arrives_within(self, seconds: float) -> bool:
        """Wait, and return whether there was a signal."""
        end = time.monotonic() + seconds
        while not self.received and time.monotonic() < end:
            time.sleep(_GLANCE)
        return bool(self.received)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name
        if self._child is not None:
            self._child.send_signal(number)

    def __enter__(self) -> None:
        self._before = [(n, signal.signal(n, self)) for n in (signal.SIGINT, signal.SIGTERM)]

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
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
