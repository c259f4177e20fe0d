"""Starts workers, passes signals on to them, and starts another where one dies.

The parent holds no model. Workers have a group of their own, so a Ctrl-C reaches them once, through
the parent; should the parent be killed, they notice by their standard input, save and stop.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from surefoot.sweep.trials import Trials

__all__ = ["supervise"]

_STOPPED = 75
_GLANCE = 0.1  # seconds between looks at the workers
_LOST = 3  # workers that may die without a trial before all are ended


class _Workers:
    def __init__(self, command: Sequence[str], environment: Mapping[str, str], loud: bool) -> None:
        self.command, self.environment, self.loud = command, environment, loud
        self.alive: list[subprocess.Popen[bytes]] = []
        self.received: int | None = None
        self.ending = False  # by a signal, or because one met an error
        self.lost = 0  # in a row, without a trial

    def start(self) -> None:
        self.alive.append(
            subprocess.Popen(
                self.command, env=dict(self.environment), stdin=subprocess.PIPE,
                stdout=None if self.loud else sys.stderr, start_new_session=True,
            )
        )  # fmt: skip

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.received, self.ending = self.received or number, True
        self.tell(number)

    def tell(self, number: int) -> None:
        for worker in self.alive:
            worker.send_signal(number)


def supervise(
    words: Sequence[str],
    count: int,
    trials: Trials,
    environment: Mapping[str, str],
    loud: bool,
    tell: Callable[[str], None],
) -> int:
    """Run `surefoot WORDS` in `count` processes until all trials have ended; return an exit code.

    A worker that dies of a signal is replaced, and its trial tried again. One that ends with an
    error ends all. Their lines go to standard output where it is `loud`, else to standard error; `tell` hears
    of deaths.
    """
    command = [sys.executable, "-m", "surefoot", *words]
    workers, codes = _Workers(command, os.environ | environment, loud), list[int]()
    before = [(n, signal.signal(n, workers)) for n in (signal.SIGINT, signal.SIGTERM)]
    try:
        for _ in range(count):
            workers.start()
        while workers.alive:
            time.sleep(_GLANCE)
            for worker in [w for w in workers.alive if w.poll() is not None]:
                workers.alive.remove(worker)
                codes.append(_ended(workers, worker, trials, tell))
                if codes[-1] not in (0, _STOPPED) and not workers.ending:
                    workers.ending = True
                    workers.tell(signal.SIGTERM)
    finally:
        for worker in workers.alive:  # only after an error of our own
            worker.terminate()
        for number, handler in before:
            signal.signal(number, handler)
    wrong = [code for code in codes if code not in (0, _STOPPED)]
    return wrong[0] if wrong else max(codes, default=0)


def _ended(
    workers: _Workers,
    worker: subprocess.Popen[bytes],
    trials: Trials,
    tell: Callable[[str], None],
) -> int:
    """Return the exit code of a worker; one that died of a signal gets a successor, and 0.

    Where one after the other dies before it has a trial, its code is that of a shell.
    """
    code = int(worker.returncode)
    assert worker.stdin is not None
    worker.stdin.close()
    if code >= 0:
        return code
    text = trials.bury(worker.pid, signal.Signals(-code).name)
    workers.lost = 0 if text is not None else workers.lost + 1
    if text is not None:
        tell(text)
    if workers.ending:
        return _STOPPED
    if trials.finished():
        return 0
    if workers.lost > _LOST:
        tell(f"workers die of {signal.Signals(-code).name} before they have a trial")
        return 128 - code
    workers.start()
    return 0
