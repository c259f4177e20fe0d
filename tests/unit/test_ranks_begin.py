"""What stands before the first step of several processes."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from surefoot.engine.ranks.begin import spread


def test_what_torch_makes_on_import_is_gone_before_a_kill_can_leave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch before 2.11 keeps a folder for modules on other machines."""
    made = tempfile.TemporaryDirectory(dir=tmp_path)
    module = SimpleNamespace(_TEMP_DIR=made)
    monkeypatch.setitem(sys.modules, "torch.distributed.nn.jit.instantiator", module)  # type: ignore[arg-type]
    world: Any = SimpleNamespace(size=1, team=None, device=torch.device("cpu"))
    job: Any = SimpleNamespace(learners={})
    spread(job, world, "none", "tree")
    assert list(tmp_path.iterdir()) == []
    made.cleanup()  # as torch does at the end
