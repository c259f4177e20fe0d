"""Workers that die, and workers that meet errors: who is replaced, and what ends all."""

from __future__ import annotations

import io
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from surefoot.errors import DeviceLost
from surefoot.sweep import supervise
from surefoot.sweep.work import work


class Worker:
    """A process that ends with `code` at the first look, or when it gets a signal."""

    def __init__(self, code: int, waits: bool) -> None:
        self.returncode, self.waits, self.pid = code, waits, 1
        self.stdin, self.heard = io.BytesIO(), list[int]()

    def poll(self) -> int | None:
        return None if self.waits and not self.heard else self.returncode

    def send_signal(self, number: int) -> None:
        self.heard.append(number)

    terminate = kill = lambda self: None


class Trials:
    """Trials that never end; a worker that dies had one where `said` is given."""

    def __init__(self, said: str | None = None) -> None:
        self.said = said

    def bury(self, pid: int, why: str) -> str | None:
        return self.said

    def finished(self) -> bool:
        return False


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(supervise, "_GLANCE", 0.0)

    def run(trials: Trials, count: int, *workers: Worker) -> tuple[int, list[Worker], list[str]]:
        waiting, started, told = iter(workers), list[Worker](), list[str]()

        def start(*_: Any, **__: Any) -> Worker:
            started.append(next(waiting))
            return started[-1]

        monkeypatch.setattr(supervise.subprocess, "Popen", start)
        code = supervise.supervise([], count, trials, {}, True, told.append)  # type: ignore[arg-type]
        return code, started, told

    return run


def test_after_an_error_nobody_is_replaced(run: Any) -> None:
    workers = [Worker(3, waits=False), Worker(-signal.SIGTERM, waits=True), Worker(0, waits=False)]
    code, started, _ = run(Trials(), 2, *workers)
    assert code == 3 and started == workers[:2]
    assert workers[1].heard == [signal.SIGTERM]


def test_a_worker_that_dies_with_a_trial_is_replaced(run: Any) -> None:
    workers = [Worker(-signal.SIGKILL, waits=False) for _ in range(9)] + [Worker(0, waits=False)]
    code, started, told = run(Trials("tried again"), 1, *workers)
    assert code == 0 and started == workers and told == ["tried again"] * 9


def test_workers_that_die_before_they_have_a_trial_are_not_replaced_for_ever(run: Any) -> None:
    workers = [Worker(-signal.SIGILL, waits=False) for _ in range(9)]
    code, started, told = run(Trials(), 1, *workers)
    assert code == 128 + signal.SIGILL and len(started) == 4
    assert told == ["workers die of SIGILL before they have a trial"]


def test_a_device_that_is_lost_fails_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same process all that follow would fail at once; the trial is given back instead."""

    def lost(*_: Any) -> float:
        raise DeviceLost("the device does not answer any more: CUDA error", fix="look at it")

    said: list[str] = []
    claim = SimpleNamespace(
        number=2, point={}, give_back=lambda: said.append("given back"),
        end=lambda *_: said.append("ended"),
    )  # fmt: skip
    plan = SimpleNamespace(seeds=[1, 2], count=9, space=[], metric="val_loss")
    sweep: Any = SimpleNamespace(plan=plan, reference="some")
    trials: Any = SimpleNamespace(finished=lambda: False, claim=lambda: claim)
    monkeypatch.setattr("surefoot.sweep.work._run", lost)
    with pytest.raises(DeviceLost) as caught:
        work(sweep, trials, said.append)
    assert said == ["given back"]
    assert str(caught.value.fix) == "surefoot sweep resume some goes on; look at it"
