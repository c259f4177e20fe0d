"""Tensors without contents, quickly: what an operation gives is worked out once and then recalled.

A step of a model does a few hundred different operations, thousands of times. What each gives
depends on shapes, strides and types alone, and torch works it out in Python; it remembers, too, but
to ask it takes several times as long as here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

__all__ = ["Recalling"]

Way = Callable[["Recalling", list[FakeTensor]], Any]  # makes what comes out of what goes in

_WHERE = torch.ops.prim.device.default
_ABSOLUTE = torch.ops.aten.as_strided.default  # the place in memory that it is told is no distance
_PLAIN = {
    int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format,
}  # fmt: skip


class Recalling(FakeTensorMode):
    """torch's mode of tensors without contents, which recalls what operations gave, in any play.

    Whatever is not as simple as most operations are goes the way of torch.
    """

    ways: ClassVar[dict[Any, Way | None]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # No compiler looks in here, and telling it not to takes time at each operation.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is _WHERE:
            return args[0].device
        given: list[FakeTensor] = []
        try:
            key: Any = (func, torch.get_default_dtype(), _sign(args, given), _sign(kwargs, given))
        except _Unusual:
            return super().__torch_dispatch__(func, types, args, kwargs or {})
        if func is _ABSOLUTE:
            key = (*key, given[0].storage_offset())
        way = self.ways.get(key)
        if way is not None:
            return way(self, given)
        found = super().__torch_dispatch__(func, types, args, kwargs or {})
        if key not in self.ways:
            self.ways[key] = None if torch.Tag.inplace_view in func.tags else _way(found, given)
        return found


class _Unusual(Exception):
    """Something goes in that is not told apart here."""


def _sign(value: Any, given: list[FakeTensor]) -> Any:
    """Return what decides over what comes out, and add the tensors in `value` to `given`."""
    kind = type(value)
    if kind is FakeTensor and value.constant is None:
        given.append(value)
        return value.shape, value.stride(), value.dtype, value.device
    if kind in _PLAIN:
        return kind, value  # 1 and 1.0 are equal, and give other types
    if kind is tuple or kind is list or kind is torch.Size:
        return tuple([_sign(item, given) for item in value])
    if isinstance(value, Mapping):
        return tuple([(name, _sign(item, given)) for name, item in value.items()])
    raise _Unusual


def _way(found: Any, given: list[FakeTensor]) -> Way | None:
    """Return how to make the like of `found`, None where that is not so simple."""
    if isinstance(found, tuple | list):
        ways = [_way(item, given) for item in found]
        known = [way for way in ways if way is not None]
        kind = list if isinstance(found, list) else tuple
        return partial(_several, known, kind) if len(known) == len(ways) else None
    if found is None:
        return _nothing
    for at, tensor in enumerate(given):
        if tensor is found:
            return partial(_same, at)
    simple = type(found) is FakeTensor and found.layout is torch.strided
    if not simple or found.constant is not None or found.requires_grad:
        return None
    rest = {name: value for name, value in vars(found).items() if name != "fake_mode"}
    form = (found.shape, found.stride())
    for at, tensor in enumerate(given):
        if tensor.untyped_storage()._cdata == found.untyped_storage()._cdata:
            offset = int(found.storage_offset()) - int(tensor.storage_offset())
            return partial(_view, at, offset, form, found.dtype, rest)
    return partial(_new, form, found.dtype, rest) if found.storage_offset() == 0 else None


def _several(ways: Iterable[Way], kind: type, mode: Recalling, given: list[FakeTensor]) -> Any:
    return kind([way(mode, given) for way in ways])


def _nothing(mode: Recalling, given: list[FakeTensor]) -> None:
    return None


def _same(at: int, mode: Recalling, given: list[FakeTensor]) -> FakeTensor:
    return given[at]


def _new(form: Any, dtype: Any, rest: Any, mode: Recalling, given: list[FakeTensor]) -> Tensor:
    return _wrapped(torch.empty_strided(*form, dtype=dtype, device="meta"), rest, mode)


def _view(
    at: int, offset: int, form: Any, dtype: Any, rest: Any, mode: Recalling, given: list[FakeTensor]
) -> Tensor:
    of, bare = given[at], torch.empty(0, dtype=dtype, device="meta")
    bare.set_(of.untyped_storage(), int(of.storage_offset()) + offset, *form)
    return _wrapped(bare, rest, mode)


def _wrapped(bare: Tensor, rest: Mapping[str, Any], mode: Recalling) -> Tensor:
    """Return what torch makes of a tensor on no device, by what it made of the like before."""
    device = rest.get("_fake_device", rest.get("fake_device"))
    found: Any = Tensor._make_subclass(
        FakeTensor, bare, False, dispatch_device=True, device_for_backend_keys=device
    )
    torch._C._set_throw_on_mutable_data_ptr(found)
    found.__dict__.update(rest, fake_mode=mode)
    return found
