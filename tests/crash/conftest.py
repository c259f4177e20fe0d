"""The stage for runs that die, and the table of what was tried."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))  # the tests here share modules that lie beside them

CORES = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2  # zygotes at once, of each worker
_TALLY: dict[str, Counter[str]] = {}


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Any]:
    """Zygotes with the preloaded library; skips where there is no Linux or no C compiler."""
    yield from _staged(tmp_path_factory, pytestconfig, "alone")


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Any]:
    """Zygotes that play several processes together."""
    yield from _staged(tmp_path_factory, pytestconfig, "together")


def _staged(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config, ready: str
) -> Iterator[Any]:
    from harness import Stage, compiled

    library = compiled(tmp_path_factory.mktemp("crashpoint"))
    if library is None:
        pytest.skip("needs Linux and a C compiler (cc)")
    stage = Stage(library, CORES, pytestconfig.getoption("every"), ready)
    yield stage
    stage.close()


class Tally:
    """Counts the trials of one condition; `check` fails the test with what went wrong."""

    def __init__(self, condition: str) -> None:
        self.counts = _TALLY.setdefault(condition, Counter())
        self.begun = time.monotonic()

    def check(self, found: list[tuple[Any, str | None]]) -> None:
        """`found` pairs each trial with what is wrong with it, or None."""
        bad = [(case, wrong) for case, wrong in found if wrong]
        self.counts["trials"] += len(found)
        self.counts["failures"] += len(bad)
        self.counts["seconds"] += round(time.monotonic() - self.begun)
        self.begun = time.monotonic()
        lines = "\n\n".join(f"{case}: {wrong}" for case, wrong in bad[:5])
        assert not bad, f"{len(bad)} of {len(found)} trials failed\n{lines}"


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """Trials of this test, under its own name in the table."""
    name = request.node.name.removeprefix("test_").replace("_", " ")
    return Tally(name)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table of trials after a sweep, ready for a page of the documents."""
    if config.option.markexpr != "slow" or not _TALLY:
        return
    columns = ("trials", "failures", "seconds")
    total = sum((counts for counts in _TALLY.values()), Counter())
    write = terminalreporter.write_line
    every = config.getoption("every")
    terminalreporter.write_sep("=", "what was tried" + (f", one in {every}" if every > 1 else ""))
    write(f"| condition | {' | '.join(columns)} |")
    write(f"|---|{'---:|' * len(columns)}")
    for condition, counts in (*_TALLY.items(), ("**all**", total)):
        write(f"| {condition} | {' | '.join(f'{counts[c]:,}' for c in columns)} |")
