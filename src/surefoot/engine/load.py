"""Put a checkpoint's weights into models that are only used, also while the run is training."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping

import torch
from torch import nn

from surefoot.engine.named import restore_weights
from surefoot.engine.place import reads_past_mkl
from surefoot.engine.reading import reading
from surefoot.engine.store import Checkpoint, Store
from surefoot.errors import CheckpointError, RunError, Unsupported
from surefoot.nn.gpt import GPT
from surefoot.nn.one_text import side_by_side
from surefoot.nn.packed import pack_
from surefoot.track.folder import RunFolder, reference

__all__ = ["fill", "narrow", "select"]


def fill(models: Mapping[str, nn.Module], folder: RunFolder, which: str | int = "best") -> int:
    """Fill `models` by learner name and return the step of the weights.

    Nothing in the run's folder is changed. A checkpoint that vanishes while it is read (the run
    goes on and tidies up) is chosen anew.
    """
    store = Store(folder.path / "checkpoints", folder.meta["id"])
    for attempt in range(3):
        checkpoint = select(store, folder, which)
        try:
            _pour(models, checkpoint, folder)
            return checkpoint.step
        except CheckpointError as error:
            if attempt == 2 or checkpoint.path.exists():
                error.fix = error.fix or (
                    f"--checkpoint STEP takes another; surefoot resume {folder.name} sets it aside"
                )
                raise
    raise AssertionError("the last attempt returns or raises")


def _pour(models: Mapping[str, nn.Module], checkpoint: Checkpoint, folder: RunFolder) -> None:
    """Read the weights into `models`, one tensor at a time."""
    tensors = checkpoint.weights()
    absent = [name for name in models if f"{name}.model.safetensors" not in tensors]
    if absent:
        there = sorted(f.partition(".")[0] for f in tensors if f.endswith(".model.safetensors"))
        raise RunError(
            f"the checkpoint of step {checkpoint.step} holds {', '.join(there)} "
            f"and not {', '.join(absent)}",
            where=str(folder.path), fix="--checkpoint last, or an older version of the run",
        )  # fmt: skip
    for name, model in models.items():
        averaged = tensors.get(f"{name}.ema.safetensors", {})
        with reading(checkpoint.path):
            restore_weights(model, ChainMap(averaged, tensors[f"{name}.model.safetensors"]))  # type: ignore[arg-type]  # only read


def narrow(models: Mapping[str, nn.Module], dtype: str) -> None:
    """Hold the weights of `models` as `fp32`, `bf16`, `fp16`, `int8` or `int4` from now on.

    Tables of angles stay in fp32, and so do the sums inside norms; what is narrower already stays,
    as does a base in 4 bits. Raises Unsupported where a
    model or its device cannot do that; see `nn.packed`.
    """
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    for name, model in models.items():
        if dtype in kind:
            for parameter in model.parameters():
                if parameter.is_floating_point() and parameter.itemsize > kind[dtype].itemsize:
                    parameter.data = parameter.data.to(kind[dtype])
            if isinstance(model, GPT) and dtype == "fp32" and reads_past_mkl():
                side_by_side(model)
        elif isinstance(model, GPT):
            pack_(model, int(dtype.removeprefix("int")))
        else:
            raise Unsupported(f"{name} is no GPT: no {dtype} for it", fix="--dtype bf16")


def _bare(folder: RunFolder) -> RunError:
    """Return what to say of a run without a checkpoint: one is to come, or all are gone."""
    if folder.status == "running":
        what, fix = "this run has no checkpoint yet", "wait for its first save"
    else:
        done = folder.status == "done"
        what = f"this run has no checkpoint{' any more: they are gone' if done else ''}"
        fix = f"surefoot resume {reference(folder.path)} computes its steps again"
    return RunError(what, where=str(folder.path), fix=fix)


def select(store: Store, folder: RunFolder, which: str | int = "best") -> Checkpoint:
    """Return the checkpoint meant by `best`, `last` or a step. Raises RunError when there is none."""
    found = store.checkpoints()
    for path, error in () if found else store.damaged()[-1:]:
        what = f"no checkpoint is sound; the newest: {error.what}"
        fix = f"surefoot resume {folder.name} sets damaged ones aside and trains again"
        raise CheckpointError(what, where=str(path), fix=error.fix or fix)
    if not found:
        raise _bare(folder)
    if which == "last":
        return found[-1]
    if which == "best":
        scored = [c for c in found if c.metric is not None]
        return min(scored, key=lambda c: (c.metric, c.sequence)) if scored else found[-1]
    by_step = {str(c.step): c for c in found}
    if str(which) not in by_step:
        steps = ", ".join(by_step)
        raise RunError(
            f"no checkpoint of step {which}", where=str(folder.path), fix=f"one of {steps}"
        )
    return by_step[str(which)]
