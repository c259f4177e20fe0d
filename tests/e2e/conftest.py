"""The command line as a person uses it, in this process, on a small text and explicit choices."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

TEXT = Path(__file__).resolve().parents[1] / "fixtures" / "shakespeare.txt"

# Every choice made by hand, so that no probe decides what a test computes.
PINS = {
    "device": "cpu",
    "precision": "fp32",
    "threads": 1,
    "matmul": "default",
    "compile": "off",
    "attention": "sdpa",
    "cross-entropy": "reference",
    "norm": "fused",
    "rotary": "fused",
    "swiglu": "reference",
    "keyed-dropout": "table",
    "micro-batch-size": 8,
    "prefetch-threads": 0,
}
QUICK = {
    "warmup-steps": 2,
    "log-every": 1,
    "validate-every": 3,
    "sample-every": 0,
    "save-every": 2,
    "track.tensorboard": "no",
    "track.report": "no",
}


@dataclass(frozen=True)
class Answer:
    """What a command gave: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on standard output; anything beside it is an error."""
        return json.loads(self.out)

    def ok(self) -> Answer:
        assert self.code == 0, self.out + self.err
        return self


class Switch:
    """Standard output that sends this process signals when it reads `word`."""

    def __init__(self, stream: Any, word: str, numbers: tuple[int, ...]) -> None:
        self._stream, self._word, self._numbers = stream, word, numbers

    def write(self, text: str) -> int:
        if self._word in text:
            for number in self._numbers:
                signal.raise_signal(number)
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Surefoot:
    """Runs commands in this process: `surefoot("runs", "--json")`, `surefoot.train(steps=6)`."""

    text = TEXT

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *words: str | Path) -> Answer:
        from surefoot.cli import main

        self._capture.readouterr()
        code = main([str(word) for word in words])
        captured = self._capture.readouterr()
        assert "Traceback" not in captured.err, captured.err
        return Answer(code, captured.out, captured.err)

    @contextmanager
    def signalled(self, word: str, *numbers: int) -> Iterator[None]:
        """Inside the block, a run that prints `word` gets these signals at that moment."""
        before = sys.stdout
        sys.stdout = Switch(before, word, numbers)
        try:
            yield
        finally:
            sys.stdout = before

    def silent(self) -> bool:
        """Whether nothing was printed since the last command."""
        captured = self._capture.readouterr()
        return not captured.out and not captured.err

    def train(self, *more: str | Path, steps: int | str = 6, path: Path | str = TEXT) -> Answer:
        """Train the tiny model for a few steps."""
        return self(*training(*more, steps=steps, path=path))


def training(*more: str | Path, steps: int | str = 6, path: Path | str = TEXT) -> list[str]:
    """Return words that train the tiny model for a few steps."""
    first = ["train", "charlm", "--preset", "tiny", "--path", path, "--max-steps", steps]
    settings = [word for name, value in (PINS | QUICK).items() for word in (f"--{name}", value)]
    return [str(word) for word in [*first, *settings, *more]]


@pytest.fixture
def surefoot(capfd: pytest.CaptureFixture[str]) -> Surefoot:
    return Surefoot(capfd)


@pytest.fixture(autouse=True)
def products_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure what this machine computes at most with small products: each test begins without a cache."""
    from surefoot.engine.auto import ceilings

    monkeypatch.setattr(ceilings, "_SIDE", 128)


@pytest.fixture(autouse=True)
def threads_as_found() -> Any:
    """Training sets the threads of the process; put them back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of six steps called `done`, in a folder of its own; do not change it."""
    from surefoot.cli import main

    runs = tmp_path_factory.mktemp("trained") / "runs"
    assert main([*training("--name", "done", "--runs", runs, "--quiet", steps=6)]) == 0
    return runs


@pytest.fixture
def runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run's folder, as $SUREFOOT_RUNS."""
    copy = tmp_path / "runs"
    shutil.copytree(trained, copy)
    monkeypatch.setenv("SUREFOOT_RUNS", str(copy))
    return copy
