"""Whether a batch can be divided among that many processes."""

from __future__ import annotations

from surefoot.config.schema import RunConfig
from surefoot.errors import ConfigError, Problem

__all__ = ["enough"]


def enough(config: RunConfig, size: int, micro: int | None) -> None:
    """Raise ConfigError when there are more ranks than micro-batches."""
    batch = config.train.batch_size
    pieces = batch if micro is None else -(-batch // micro)
    if pieces >= size:
        return
    if micro is None or batch < size:
        text, fix = f"{size} ranks cannot share {batch} examples", "a larger --batch-size"
    else:
        text = f"{size} ranks cannot share {pieces} micro-batch{'es' * (pieces > 1)} of {micro}"
        fix = f"--micro-batch-size {max(1, batch // size)}, or fewer devices"
    raise ConfigError([Problem(f"more ranks than micro-batches: {text}", "machine.devices", fix)])
