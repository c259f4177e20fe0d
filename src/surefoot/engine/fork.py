"""Continue from an older checkpoint as a new run that remembers its parent."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surefoot.engine.load import select
from surefoot.engine.state import Payload
from surefoot.engine.store import Store
from surefoot.errors import RunError
from surefoot.track.folder import RunFolder

__all__ = ["fork", "inherit"]

# What a child does not inherit: its parent's history.
_OWN = ("name", "number", "created", "started", "ended", "status", "errors", "restarts", "best")


def inherit(parent: RunFolder, which: str | int) -> tuple[dict[str, Any], Payload]:
    """Return what a child's run.json says of its parent, and the contents of the checkpoint.

    Raises RunError when the checkpoint is not there or has no optimiser state.
    """
    checkpoint = select(Store(parent.path / "checkpoints", parent.meta["id"]), parent, which)
    if not checkpoint.resumable:
        raise RunError(
            f"checkpoint {checkpoint.step} keeps only weights", where=str(checkpoint.path),
            fix="fork one whose state is whole: surefoot checkpoints RUN",
        )  # fmt: skip
    origin = {"run": parent.name, "id": parent.meta["id"], "step": checkpoint.step}
    return {"parent": origin, "step": checkpoint.step}, checkpoint.read()


def fork(
    parent: RunFolder, step: int, runs: Path, files: Mapping[str, str], name: str | None = None
) -> RunFolder:
    """Return a new run, stopped at the checkpoint of `step` of `parent`, with its settings.

    `files` are the texts that the new folder starts with (config.yaml, a vocabulary). The parent
    is not changed.
    """
    ancestor, payload = inherit(parent, step)
    meta = {k: v for k, v in parent.meta.items() if k not in _OWN}
    meta |= {"id": uuid.uuid4().hex, "segments": [], "status": "stopped", **ancestor}
    child = RunFolder.create(runs, str(parent.meta["recipe"]), name, files, meta)
    store = Store(child.path / "checkpoints", child.meta["id"])
    store.save(step, payload, places={}, identity=child.meta["identity"])
    return child
