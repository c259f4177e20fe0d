"""What training changes, by full parameter name.

Parameter names are the checkpoint format. This reads and writes optimiser state directly, because
the helpers that exist take a fake optimiser step to initialise empty state, which changes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from surefoot.engine.learner import Learner
from surefoot.errors import CheckpointError

__all__ = [
    "buffers_kept", "moments", "of", "restore_average", "restore_moments", "restore_own",
    "restore_weights", "weights",
]  # fmt: skip


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return every tensor of `model` that training changes: trained parameters and buffers."""
    found = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    persistent = set(model.state_dict(keep_vars=True))
    found |= {n: b for n, b in model.named_buffers() if n in persistent}
    return found


def of(learner: Learner) -> dict[str, Tensor]:
    """Return the weights of `learner` that are here: of one that is split, some rows of each."""
    if not learner.split:
        return weights(learner.model)
    names = set(learner.names)
    found = {n: p.detach() for n, p in zip(learner.names, learner.parameters, strict=True)}
    persistent = set(learner.model.state_dict(keep_vars=True)) - names
    return found | {n: b for n, b in learner.model.named_buffers() if n in persistent}


@contextmanager
def buffers_kept(*learners: Learner) -> Iterator[None]:
    """Put back when the block ends what passes in it write into buffers, like BatchNorm's."""
    buffers = [buffer for learner in learners for buffer in learner.buffers]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


def restore_own(learner: Learner, saved: Mapping[str, Tensor]) -> None:
    """Write whole `saved` weights into what of them is here. Raises as `restore_weights` does."""
    _fill(of(learner), saved, _slices(learner))


def _slices(learner: Learner) -> Mapping[str, Any]:
    """Return which rows are here, by name; nothing where it is all."""
    found: Mapping[str, Any] = learner.exchange.slices if learner.split else {}
    return found


def restore_weights(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Write `saved` into `model` in place; every name and shape must match.

    Raises CheckpointError that lists each tensor which is missing, unexpected or of another shape.
    """
    _fill(weights(model), saved)


def restore_average(learner: Learner, saved: Mapping[str, Tensor]) -> None:
    """Write `saved` into the averaged weights in place. Raises as `restore_weights` does."""
    _fill(learner.average, saved, _slices(learner))


def _fill(
    present: Mapping[str, Tensor],
    saved: Mapping[str, Tensor],
    slices: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    wrong = [f"{n}: not in the checkpoint" for n in present if n not in saved]
    wrong += [f"{n}: not in the model" for n in saved if n not in present]
    wrong += [
        f"{n}: {_kind(saved[n])} in the checkpoint, {_kind(t, slices.get(n))} in the model"
        for n, t in present.items()
        if n in saved and _kind(saved[n]) != _kind(t, slices.get(n))
    ]
    if wrong:
        raise CheckpointError(
            "the checkpoint does not fit the model:\n  " + "\n  ".join(wrong),
            fix="use the configuration the run was started with (surefoot config show RUN), and a recipe "
            "of your own as it was then (recipe.py in the run)",
        )
    with torch.no_grad():
        for name, tensor in present.items():
            tensor.copy_(_rows(saved[name], slices.get(name)))


def _kind(tensor: Tensor, part: Any = None) -> str:
    shape = tensor.shape if part is None else part.shape
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(shape)}"


def _rows(whole: Tensor, part: Any) -> Tensor:
    """Return the rows of a saved tensor that are here."""
    return whole if part is None or whole.shape != part.shape else whole[part.low : part.high]


def moments(learner: Learner) -> dict[str, Tensor]:
    """Return the optimiser's tensors as `parameter.name/moment`."""
    names = dict(zip(learner.parameters, learner.names, strict=True))
    found: dict[str, Tensor] = {}
    for optimiser in learner.optimisers:
        for parameter, state in optimiser.state.items():
            for key, value in state.items():
                found[f"{names[parameter]}/{key}"] = torch.as_tensor(value)
    return found


def restore_moments(learner: Learner, saved: Mapping[str, Tensor]) -> None:
    """Write what `moments` returned into the optimisers, exactly as it was.

    A scalar `step` stays on the device where the optimiser keeps it (the CPU unless fused).
    """
    named = dict(zip(learner.names, learner.parameters, strict=True))
    slices = _slices(learner)
    owner = {p: o for o in learner.optimisers for g in o.param_groups for p in g["params"]}
    for optimiser in learner.optimisers:
        optimiser.state.clear()
    for key, value in saved.items():
        name, _, moment = key.rpartition("/")
        parameter = named.get(name)
        if parameter is None or parameter not in owner:
            raise CheckpointError(f"optimiser state of a parameter that is not trained: {name}")
        owner[parameter].state.setdefault(parameter, {})[moment] = _home(
            _rows(value, slices.get(name)), parameter, owner[parameter]
        )


def _home(value: Tensor, parameter: Tensor, optimiser: Any) -> Tensor:
    on_device = value.dim() > 0 or _fused(optimiser, parameter)
    return value.to(parameter.device if on_device else "cpu", copy=True)


def _fused(optimiser: Any, parameter: Tensor) -> bool:
    groups = (g for g in optimiser.param_groups if any(p is parameter for p in g["params"]))
    return any(g.get("fused") or g.get("capturable") for g in groups)
