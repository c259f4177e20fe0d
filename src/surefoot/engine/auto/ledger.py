"""Keep books on memory: which bytes live when, what for, and how much work every operation is.

A ledger watches each operation below autograd, so it sees what a real step sees; with fake tensors
it sees the same and nothing is computed. It counts storages, not tensors: views cost nothing.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["HOST", "Entry", "Ledger", "Mark", "Work"]

T = TypeVar("T")

HOST = "host"  # the kind of what waits beside the card
_WHERE = torch.ops.prim.device.default
_SCALAR = torch.ops.aten._local_scalar_dense.default
_BACK = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
# Attention on a processor, which nobody counts: how many products of matrices it takes.
_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default: 2, _BACK: 5}
_COPY, _SOFTMAX = torch.ops.aten._to_copy.default, torch.ops.aten._softmax.default
_SOFTMAX_BACK = torch.ops.aten._softmax_backward_data.default
_WIDENED = "widened"  # what was fp16 before, which softmax on a card reads as it is


@dataclass(eq=False)
class Entry:
    """One storage: its bytes, what it is for (`kind`), and the operation and shape it came from."""

    nbytes: int
    kind: str
    source: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Work:
    """What one operation asks of a machine: floating-point operations, bytes moved, and in what."""

    flops: int
    nbytes: int
    dtype: str


@dataclass
class Mark:
    """How many events and operations there were at one moment."""

    events: int
    works: int


@dataclass(eq=False)
class Ledger(TorchDispatchMode):
    """Records the births and deaths of storages while it is entered.

    `kind` is what a storage that is born now is for. Sizes are rounded up to multiples of
    `block` bytes, as an allocator does. `processors` are those of the card that is planned for
    (None: a processor itself): they decide what room its attention takes in the backward pass.
    """

    block: int = 1
    kind: str = "weights"
    processors: int | None = None
    frugal: bool = False  # whether attention is told to take little room
    events: list[tuple[Entry, int]] = field(default_factory=list)  # +1 born, -1 died
    works: list[Work] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._entries: dict[int, Entry] = {}
        self._watched: dict[int, weakref.ref[Any]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # No compiler looks in here, and telling it not to takes time at each operation.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _WHERE:  # a question, and half of all calls
            whose = args[0]
            return whose.device if type(whose) is FakeTensor else func(*args, **kwargs)
        if func is _SCALAR and isinstance(args[0], FakeTensor):
            return _pretended(args[0])
        given = _tensors(args, kwargs)
        known = {self._see(tensor, "given") for tensor in given}
        found = func(*args, **kwargs)
        outputs, name = _tensors(found), str(func)
        after = {self._see(tensor, name) for tensor in outputs}
        if func is _BACK and self.processors is not None:
            flash = not self.frugal and args[1].dtype != torch.float32  # which it does not take
            parts = self.processors if flash else 0
            self._work_in(_room_of_attention(args[1], args[2], parts), "room of attention")
        if self.processors is not None and func in (_COPY, _SOFTMAX, _SOFTMAX_BACK):
            self._softmax(func, args, found)
        if func._schema.is_mutable or not after <= known:  # else it only looks at memory otherwise
            self._measure(func, args, kwargs, given, outputs, found)
        return found

    def see(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that came to be without an operation, such as a batch."""
        for tensor in tensors:
            self._see(tensor, "given")

    def name(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Record, after the fact, what storages were for."""
        for tensor in tensors:
            entry = self._entries.get(id(tensor.untyped_storage()))
            if entry is not None:
                entry.kind = kind

    @contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """Within the block, new storages are recorded as being for `kind`."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def mark(self) -> Mark:
        """Return this moment."""
        return Mark(len(self.events), len(self.works))

    def peak(self, since: Mark, until: Mark | None = None) -> tuple[int, list[Entry]]:
        """Return the most bytes alive at once in between, and what was alive then.

        What waits in the host's memory does not count.
        """
        most, place = self._most(since, until, host=False)
        alive: Counter[Entry] = Counter()
        for entry, sign in self.events[:place]:
            alive[entry] += sign
        return most, [entry for entry, n in alive.items() if n and entry.kind != HOST]

    def host(self, since: Mark) -> int:
        """Return the most bytes that waited in the host's memory at once after `since`."""
        return self._most(since, None, host=True)[0]

    def _most(self, since: Mark, until: Mark | None, host: bool) -> tuple[int, int]:
        """Return the most bytes at once in between, and after how many events."""
        end = len(self.events) if until is None else until.events
        size = most = 0
        place = since.events
        for index, (entry, sign) in enumerate(self.events[:end], 1):
            size += entry.nbytes * sign * ((entry.kind == HOST) == host)
            if index <= since.events:
                most = size
            elif size > most:
                most, place = size, index
        return most, place

    def between(self, begun: Mark, ended: Mark) -> Mark:
        """Return the moment half-way, counted in births and deaths."""
        return Mark((begun.events + ended.events) // 2, (begun.works + ended.works) // 2)

    def rounds(self, items: Iterable[T]) -> Iterator[T]:
        """Yield `items` until a round of the loop did what the one before it did, and then the last.

        What the rounds in between do is counted and not played. For a loop whose rounds do all the
        same, but perhaps the first ones and the last; that they leave nothing behind is looked at.
        """
        waiting, cuts, at = list(items), [self.mark()], 0
        while at < len(waiting):
            yield waiting[at]
            cuts.append(self.mark())
            at += 1
            between = len(waiting) - at - 1
            if between > 0 and at > 2 and self._repeat(cuts[-3:], between):
                at += between

    def _repeat(self, cuts: Sequence[Mark], times: int) -> bool:
        """Count what lies between the last two `cuts` so many `times` more; False if it differs from before."""
        first, second, end = cuts
        before = self.events[first.events : second.events]
        last = self.events[second.events : end.events]
        works = self.works[second.works : end.works]
        # By entry, where in its round it was born; what a round leaves behind dies in the next.
        was = {entry: at for at, (entry, sign) in enumerate(before) if sign > 0}
        born = {entry: at for at, (entry, sign) in enumerate(last) if sign > 0}
        left = was.keys() - {entry for entry, sign in before if sign < 0}
        if (
            {entry for entry, sign in last if sign < 0} - born.keys() != left
            or [(astuple(entry), sign) for entry, sign in before]
            != [(astuple(entry), sign) for entry, sign in last]
            or self.works[first.works : second.works] != works
        ):
            return False
        earlier = {at: entry for entry, at in born.items()}
        for _ in range(times):
            fresh = {at: replace(entry) for at, entry in earlier.items()}
            for at, (entry, sign) in enumerate(last):
                if sign > 0:
                    self.events.append((fresh[at], 1))
                else:
                    whose = fresh[born[entry]] if entry in born else earlier[was[entry]]
                    self.events.append((whose, -1))
            self.works += works
            earlier = fresh
        for key, entry in list(self._entries.items()):
            if entry in born:
                self._entries[key] = earlier[born[entry]]
        return True

    def _softmax(self, func: Any, args: tuple[Any, ...], found: Tensor) -> None:
        """Note what softmax takes on a card and not here: its backward pass multiplies first.

        The product has the type of the gradient. Of fp16 that is summed in fp32 a card makes the
        gradient in fp16 at once, and here it is made in fp32 and narrowed afterwards.
        """
        entry = self._entries.get(id(found.untyped_storage()))
        if func is _SOFTMAX_BACK:
            output = self._entries.get(id(args[1].untyped_storage()))
            widened = output is not None and output.source == _WIDENED
            self._work_in(found.nbytes // (2 if widened else 1), "room of softmax")
        elif entry is not None and func is _COPY:
            if (args[0].dtype, found.dtype) == (torch.float16, torch.float32):
                entry.source = _WIDENED
        elif entry is not None:
            given = self._entries.get(id(args[0].untyped_storage()))
            if given is not None and given.source == _WIDENED:
                entry.source = _WIDENED

    def _work_in(self, nbytes: int, source: str) -> None:
        """Note room that an operation takes while it works."""
        rounded = -(-nbytes // self.block) * self.block
        entry = Entry(rounded, self.kind, source, ())
        self.events += [(entry, 1), (entry, -1)]

    def history(self, since: Mark, kinds: Sequence[str], points: int) -> list[tuple[int, ...]]:
        """Return the bytes of each of `kinds` at about `points` moments after `since`."""
        size = dict.fromkeys(kinds, 0)
        count = len(self.events) - since.events
        every, found = max(1, count // points), []
        for index, (entry, sign) in enumerate(self.events, 1 - since.events):
            if entry.kind in size:
                size[entry.kind] += entry.nbytes * sign
            if index > 0 and index % every == 0:
                found.append(tuple(size.values()))
        return found

    def _see(self, tensor: Tensor, source: str) -> int:
        """Note a storage that is new, and return by which number it is known."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._entries or not storage.nbytes():
            return key
        rounded = -(-storage.nbytes() // self.block) * self.block
        entry = Entry(rounded, self.kind, source, tuple(tensor.shape))
        self._entries[key] = entry
        self._watched[key] = weakref.ref(storage, self._mourner(key))
        self.events.append((entry, 1))
        return key

    def _mourner(self, key: int) -> Callable[[Any], None]:
        books = weakref.ref(self)

        def died(_: Any) -> None:
            ledger = books()
            if ledger is not None:
                ledger._watched.pop(key)
                ledger.events.append((ledger._entries.pop(key), -1))

        return died

    def _measure(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        given: list[Tensor],
        outputs: list[Tensor],
        found: Any,
    ) -> None:
        """Note the work of an operation."""
        flops = _flops(func, args, kwargs, found)
        moved = sum(t.numel() * t.element_size() for t in (*given, *outputs))
        half = any(t.dtype in (torch.bfloat16, torch.float16) for t in given)
        self.works.append(Work(flops, moved, "half" if half else "fp32"))


def _flops(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], found: Any) -> int:
    """Return the floating-point operations."""
    if func in _ATTENTION:
        return _flops_of_attention(func, args, kwargs)
    count = flop_registry.get(func._overloadpacket)
    return 0 if count is None else int(count(*args, **kwargs, out_val=found))


def _flops_of_attention(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Count two products [T, D] x [D, S] of each head, five in the backward pass, two each.

    Attention that looks back only does half of them.
    """
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args)), **kwargs}
    b, h, t, d = given["query"].shape
    whole = 2 * _ATTENTION[func] * b * h * t * given["key"].size(2) * d
    return int(whole // 2 if given.get("is_causal") else whole)


def _room_of_attention(query: Tensor, key: Tensor, processors: int) -> int:
    """Return the bytes that the backward pass of attention [B, H, T, D] takes on a card.

    The memory-efficient kernel (`processors` 0) sums the gradient of the queries in fp32. That of
    flash attention does, where sums must have an order, for as many parts of the keys as keep all
    processors busy; and it makes gradients of the keys for every head of the queries.
    """
    b, h, t, d = query.shape
    if not processors:
        return 4 * b * h * (_up(t, 64) * _up(d, 64) + t)
    parts = -(-processors // (b * h))
    shared = 0 if key.size(1) == h else 2 * b * h * t * d * query.element_size()
    rows = _up(t, 128)
    return 4 * parts * b * h * rows * _up(d, 32) + 4 * b * h * rows + shared


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


def _pretended(tensor: Tensor) -> float | int | bool:
    """Return a value for a number that a program reads and that nobody computed."""
    if tensor.dtype == torch.bool:
        return True
    return 1.0 if tensor.dtype.is_floating_point else 1


def _tensors(*values: Any) -> list[Tensor]:
    """Return the tensors in values, however they are packed."""
    found: list[Tensor] = []
    _collect(values, found)
    return found


def _collect(values: Iterable[Any], found: list[Tensor]) -> None:
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            _collect(value, found)
        elif isinstance(value, dict):
            _collect(value.values(), found)
