"""Which checkpoints stay, and why: a pure function of what is there and what was asked."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from surefoot.config.learners import alone
from surefoot.config.schema import Keep, RunConfig
from surefoot.config.units import parse_bytes
from surefoot.engine.store import Checkpoint, Store
from surefoot.errors import CheckpointError

__all__ = ["apply", "needed", "pins", "reasons"]


def reasons(
    found: Sequence[Checkpoint], keep: Keep, pinned: Collection[int] = ()
) -> dict[int, list[str]]:
    """Return, by sequence number, why each checkpoint stays; one without a reason may go.

    The newest two resumable ones always stay, and so do those of `pinned` steps (see `needed`). A
    disk budget takes the reasons of the cheapest losses first: old milestones, then bests, then
    all but two of the newest.
    """
    ordered = sorted(found, key=lambda c: c.sequence)
    resumable = [c for c in ordered if c.resumable]
    why: dict[int, list[str]] = {}

    def give(checkpoint: Checkpoint, reason: str) -> None:
        why.setdefault(checkpoint.sequence, []).append(reason)

    for checkpoint in resumable[-keep.last :]:
        give(checkpoint, "last")
    scored = [c for c in ordered if c.metric is not None and math.isfinite(c.metric)]
    for checkpoint in sorted(scored, key=lambda c: (c.metric, c.sequence))[: keep.best]:
        give(checkpoint, "best")
    for checkpoint in ordered:
        if keep.milestones and checkpoint.step and checkpoint.step % keep.milestones == 0:
            give(checkpoint, "milestone")
        if checkpoint.step in pinned:
            give(checkpoint, "needed")
    return _within(ordered, why, keep, {c.sequence for c in resumable[-2:]}, pinned)


def _within(
    ordered: Sequence[Checkpoint],
    why: dict[int, list[str]],
    keep: Keep,
    sacred: set[int],
    pinned: Collection[int],
) -> dict[int, list[str]]:
    if keep.max_disk is None:
        return why
    budget = parse_bytes(keep.max_disk)
    by_rank = {"milestone": 0, "best": 1, "last": 2}
    candidates = [c for c in ordered if c.sequence in why and c.sequence not in sacred]
    candidates = [c for c in candidates if c.step not in pinned]
    candidates.sort(key=lambda c: max(by_rank[r] for r in why[c.sequence]))
    used = sum(c.size for c in ordered if c.sequence in why)
    for checkpoint in candidates:
        if used <= budget:
            break
        used -= checkpoint.size
        del why[checkpoint.sequence]
    return why


def needed(config: RunConfig, learners: Mapping[str, tuple[int, Mapping[str, Any]]]) -> set[int]:
    """Return the steps whose checkpoints `learners`, name -> (step, memory), may still need.

    Those are where a rollback goes, and the best weights when they will be the result.
    """
    steps = set()
    for name, (step, memory) in learners.items():
        policy = alone(config, name).train
        if policy.nonfinite == "rollback":
            steps.add(step // policy.rollback_every * policy.rollback_every)
        if policy.patience and policy.restore_best and "best" in memory:
            steps.add(int(memory["best"][0]))
    return steps


def pins(store: Store, config: RunConfig) -> set[int]:
    """Return what `needed` says of a run that is not being trained, from its newest checkpoint."""
    for checkpoint in reversed(store.checkpoints()):
        with suppress(CheckpointError):
            if checkpoint.resumable:
                learners = checkpoint.read().small["learners"]
                return needed(config, {n: (x["step"], x["memory"]) for n, x in learners.items()})
    return set()


def apply(store: Store, keep: Keep, pinned: Collection[int] = ()) -> None:
    """Delete what has no reason to stay; drop the optimiser of what stays only for its weights.

    Not to be called while a save is being written. Raises OSError when the disk refuses; what
    is left half deleted then is out of sight, and goes with the next call.
    """
    found = store.checkpoints()
    why = reasons(found, keep, pinned)
    try:
        for checkpoint in found:
            if checkpoint.sequence not in why:
                store.remove(checkpoint)
            elif why[checkpoint.sequence] == ["best"] and checkpoint.resumable:
                store.slim(checkpoint)
    finally:
        store.sweep()
