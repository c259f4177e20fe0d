"""Weights that somebody saved without a configuration: read them safely, and fit a model to them."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surefoot.config.suggest import nearest
from surefoot.engine import named
from surefoot.engine.codec import read_tensors
from surefoot.engine.learner import Learner
from surefoot.errors import DataError
from surefoot.nn.public import sizes_of

__all__ = ["fill", "read_folder", "read_weights"]

_SHOWN = 12  # tensors named in an error
_UNREAD = "no weights can be read: another format, damaged, or cut short"
_UNSAFE = (
    "safetensors, or what torch.save(model.state_dict(), FILE) writes; nothing else is read, "
    "because it could run code"
)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a file by name, on the CPU, and what else it holds.

    safetensors, or a state dict of torch, also one inside a dictionary beside other values. No
    code in such a file is run. Raises DataError.
    """
    if not path.is_file():
        raise DataError("no such file", where=str(path), fix="check the path")
    try:
        if path.suffix == ".safetensors":
            return read_tensors(path), {}
        with warnings.catch_warnings(action="ignore"):  # about what is refused next
            held = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        fix = "check that you may read it"
        raise DataError(f"cannot read it: {error.strerror}", where=str(path), fix=fix) from None
    except Exception as error:  # the library's list of complaints is not documented
        more = re.search(r"GLOBAL (\S+)", str(error))  # and some of its advice is dangerous
        what = f"it holds a {more[1]}, not weights alone" if more else _UNREAD
        raise DataError(what, where=str(path), fix=_UNSAFE) from error
    return _tensors_in(held, path)


def read_folder(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a folder as `transformers` saves it, in fp32, and what it says.

    That is `config`, sizes with our names, `folder`, and `tokenizer`, the path of its file where
    there is one. Raises DataError for an architecture other than Llama and Qwen3.
    """
    where = path / "config.json"
    try:
        sizes = sizes_of(json.loads(where.read_text("utf-8")))
    except OSError as error:
        what = f"this folder holds no model: config.json: {error.strerror}"
        fix = "a folder that transformers saved, with config.json, or a file of weights"
        raise DataError(what, where=str(path), fix=fix) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"no model: {error}", where=str(where)) from None
    except DataError as error:
        error.where = str(where)
        raise
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise DataError("no *.safetensors in this folder", where=str(path), fix=_UNSAFE)
    tensors = {n: t.float() for file in files for n, t in read_weights(file)[0].items()}
    kept = path.resolve() / "tokenizer.json"
    said = {"config": sizes, "folder": str(path)}
    return tensors, {**said, **({"tokenizer": str(kept)} if kept.is_file() else {})}


def _tensors_in(held: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Take the dictionary with most tensors: the whole, or one of its values."""
    inner = list(held.values()) if isinstance(held, Mapping) else []
    best = max((held, *inner), key=lambda value: len(_tensors(value)))
    found = _tensors(best)
    if not found:
        raise DataError("no tensors by name in it", where=str(path), fix=_UNSAFE)
    said = {str(k): v for k, v in held.items() if v is not best and not isinstance(v, Tensor)}
    return found, said


def _tensors(value: Any) -> dict[str, Tensor]:
    if not isinstance(value, Mapping):
        return {}
    return {str(k): v.detach() for k, v in value.items() if isinstance(v, Tensor)}


def fill(learners: Mapping[str, Learner], found: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Give the learners the weights that were `found`, in the precision of the model.

    Raises DataError that explains every tensor which does not fit.
    """
    wrong: list[str] = []
    for name, tensors in found.items():
        wrong += _misfits(named.weights(learners[name].model), tensors)
    if wrong:
        more = [f"and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
        raise DataError(
            "\n  ".join(["the weights do not fit the model:", *wrong[:_SHOWN], *more]),
            fix="settings for which the shapes are those of the file, like --d-model",
        )
    for name, tensors in found.items():
        learner = learners[name]
        present = named.weights(learner.model)
        named.restore_weights(
            learner.model, {n: t.to(present[n].dtype) for n, t in tensors.items()}
        )
        learner.average_with(learner.ema)


def _misfits(model: Mapping[str, Tensor], file: Mapping[str, Tensor]) -> Iterator[str]:
    """Say of each tensor what is wrong, with the name that was probably meant."""
    spare = [name for name in file if name not in model]
    for name, tensor in model.items():
        wanted = list(tensor.shape)
        if name not in file:
            near = nearest(name, [n for n in spare if list(file[n].shape) == wanted])
            if near:
                spare.remove(near)
            yield f"{name}: not in the file" + (f"; did you mean {near}?" if near else "")
        elif list(file[name].shape) != wanted:
            yield f"{name}: {list(file[name].shape)} in the file, {wanted} in the model"
    yield from (f"{name}: not in the model" for name in spare)
