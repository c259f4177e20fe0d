"""Continue from an older checkpoint as a new run that remembers its parent."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

from surefoot.engine.load import select
from surefoot.engine.store import Store
from surefoot.errors import RunError
from surefoot.track.folder import RunFolder

__all__ = ["fork"]

# What a child does not inherit: its parent's history.
_OWN = ("name", "number", "created", "started", "ended", "status", "errors", "restarts", "best")


def fork(
    parent: RunFolder, step: int, runs: Path, files: Mapping[str, str], name: str | None = None
) -> RunFolder:
    """Return a new run that begins with the checkpoint of `step` of `parent`.

    `files` are the texts that the new folder starts with (config.yaml, a vocabulary). The parent
    is not changed. Raises RunError when the checkpoint is not there or has no optimiser state.
    """
    checkpoint = select(Store(parent.path / "checkpoints", parent.meta["id"]), parent, step)
    if not checkpoint.resumable:
        raise RunError(
            f"checkpoint {step} keeps only weights", where=str(checkpoint.path),
            fix="fork one whose state is whole: surefoot checkpoints RUN",
        )  # fmt: skip
    payload = checkpoint.read()
    meta = {k: v for k, v in parent.meta.items() if k not in _OWN}
    meta |= {
        "id": uuid.uuid4().hex, "segments": [], "step": step, "status": "stopped",
        "parent": {"run": parent.name, "id": parent.meta["id"], "step": step},
    }  # fmt: skip
    child = RunFolder.create(runs, str(parent.meta["recipe"]), name, files, meta)
    kept = ("identity", "versions", "threads")
    facts = {k: checkpoint.manifest[k] for k in kept if k in checkpoint.manifest}
    store = Store(child.path / "checkpoints", child.meta["id"])
    store.save(step, payload, metric=checkpoint.metric, places={}, **facts)
    return child
