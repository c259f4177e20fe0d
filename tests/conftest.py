"""Shared fixtures: a sealed environment, and a toy job that exercises what is hard to resume."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from surefoot.track.folder import runs_dir

PYTEST = "made by pytest"
LONG = {"tests/unit/test_pretended_card.py", "tests/unit/test_foresee_predict.py"}  # begun first
APART = {"tests/crash/test_kills.py"}  # long, and what its tests share is made in a moment

settings.register_profile("steady", derandomize=True, database=None, deadline=None)
settings.load_profile("steady")  # the same examples every time, and nothing left behind

# One thread: tests are small, run beside each other, and must give the same bits everywhere.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

# What torch compiles is the same for every test, so it is kept as torch itself would keep it.
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"surefoot-tests-{os.getuid()}")
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--update-golden` writes golden files anew, after a change that is meant."""
    parser.addoption("--update-golden", action="store_true", help="write golden files anew")
    parser.addoption(
        "--every", type=int, default=1, metavar="N", help="the crash sweep: try one case in N"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Let nobody fail for being the first of its process to import torch's compiler."""
    about_itself = "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
    config.addinivalue_line("filterwarnings", about_itself)
    # Python 3.13.0, by torch's compiler
    config.addinivalue_line("filterwarnings", "ignore:Guards may run slower:RuntimeWarning")


def pytest_unconfigure() -> None:
    """Thaw what was frozen (below), or nobody would take it away at the end of the process."""
    gc.unfreeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a file's tests in one worker, or each would make the fixtures that they share.

    Files are begun in the order of their paths, which has long ones first, but for those in LONG. Who asks for another
    order (`--dist`) gets it.
    """
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            found: str = super()._split_scope(nodeid)
            return nodeid if found in APART else found

    config.option.loadscopereorder = False  # the most tests are not the most work
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, or one worker would still be at them when the others are done."""
    items.sort(key=lambda item: item.nodeid.partition("::")[0] not in LONG)


def runs_made_here(*places: Path) -> set[Path]:
    """Return the runs in these folders that a test made: each is marked at birth."""
    from surefoot.track.folder import list_runs

    return {run.path for place in places for run in list_runs(place) if run.test == PYTEST}


@pytest.fixture(autouse=True, scope="session")
def nothing_left_behind() -> Iterator[None]:
    """Fail at the end when a test left a run where a person keeps theirs."""
    root = Path(__file__).resolve().parent.parent
    places = [place.resolve() for place in (root / "runs", Path.cwd() / "runs", runs_dir())]
    before = runs_made_here(*places)
    yield
    left = runs_made_here(*places) - before
    assert not left, f"tests left runs behind: {sorted(left)}"


@pytest.fixture(autouse=True, scope="session")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let what is killed leave its temporary files where pytest tidies, not where a person's are."""
    place = str(tmp_path_factory.mktemp("tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", place)
        patch.setattr(tempfile, "tempdir", place)
        yield


@pytest.fixture(autouse=True, scope="session")
def silent_end() -> Iterator[None]:
    """Close what llama_cpp opens when it is imported and leaves to the interpreter's end."""
    yield
    if opened := sys.modules.get("llama_cpp._utils"):
        opened.outnull_file.close()
        opened.errnull_file.close()


@pytest.fixture(autouse=True, scope="module")
def what_is_there_is_frozen() -> Iterator[None]:
    """Let the collection at the start of a run not look through all that pytest and imports hold.

    Nor is it counted anew by each run that asks whether its host froze something, which takes longer
    than many runs here; until somebody thaws it.
    """
    gc.collect()
    gc.freeze()
    count, thaw = gc.get_freeze_count(), gc.unfreeze
    with pytest.MonkeyPatch.context() as patch:

        def thaw_and_count() -> None:
            patch.undo()
            thaw()

        patch.setattr(gc, "get_freeze_count", lambda: count)
        patch.setattr(gc, "unfreeze", thaw_and_count)
        yield


@pytest.fixture(autouse=True)
def sealed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point runs, cache and what is remembered at temporary folders and forbid the network."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("SUREFOOT_RUNS", str(home / "runs"))
    monkeypatch.setenv("SUREFOOT_CACHE", str(home / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.setenv("SUREFOOT_OFFLINE", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return home


@dataclass(frozen=True)
class Toy:
    """Twenty-dimensional regression with dropout, augmentation and foreign random draws."""

    examples: int = 50
    batch_size: int = 8
    dropout: float = 0.2

    fingerprint = "toy/1"

    def __len__(self) -> int:
        return self.examples

    def batch(self, index: Any, epoch: Any, key: int) -> Any:
        import numpy as np

        from surefoot.data.batch import Batch
        from surefoot.seeds import derive

        rows = []
        for i, e in zip(index.tolist(), epoch.tolist()):
            base = np.random.Generator(np.random.Philox(i)).standard_normal(20)
            noise = np.random.Generator(np.random.Philox(derive(key, e, i))).standard_normal(20)
            rows.append(base + 0.1 * noise)
        x = np.stack(rows).astype("float32")
        return Batch({"x": x, "y": np.sin(x).sum(1, keepdims=True)}, weight=len(index))

    def model(self, width: int = 16, seed: int = 0) -> Any:
        import torch
        from torch import nn

        from surefoot.nn.dropout import Dropout

        generator = torch.Generator().manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(20, width), nn.Tanh(), Dropout(self.dropout), nn.Linear(width, 1)
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        return model

    @staticmethod
    def loss(model: Any, batch: Any) -> Any:
        """Squared error, disturbed by draws from every global generator."""
        import random

        import numpy as np
        import torch

        from surefoot.engine import Loss

        noise = 0.01 * (random.random() + float(np.random.rand()) + float(torch.rand(())))
        found = (model(batch.fields["x"]) - batch.fields["y"]) ** 2
        return Loss(found.sum() * (1 + noise), {"error": found.detach().sum()})

    def learner(self, **changes: Any) -> Any:
        import torch

        from surefoot.engine import Learner
        from surefoot.schedule import Cosine

        seed, width = changes.pop("seed", 0), changes.pop("width", 16)
        model = self.model(width, seed)
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
        settings = {"schedule": Cosine(2, 20, 0.1), "limit": 20, **changes}
        return Learner(model, self.loss, [optimiser], **settings)

    def data(self, seed: int = 1) -> Any:
        from surefoot.data.batch import Data

        return Data(self, seed, self.batch_size)


@pytest.fixture
def toy() -> Toy:
    return Toy()
