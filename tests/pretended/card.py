"""A card of NVIDIA's that is none: what runs on `cuda` runs through the processor, and bytes are counted.

`import tests.pretended.card` in a process of its own, before torch is: then `torch.device("cuda")` is
there. A tensor on it is a `Card` around one in memory. Every operation of torch arrives at
`Card.__torch_dispatch__`, is computed on what lies inside, and its result is put around again; so
the paths that are taken only on a card are taken here, an operation that mixes both places is an
error as it is there, and `torch.cuda.max_memory_allocated` says what tensors held, in blocks of 512
bytes. Not counted is what kernels of a card take for themselves; nothing is known of its speed, and
Triton is not there.

$PRETENDED_CARD names the library made of card.cpp. Where $WITHOUT_FP64 is set, the card has no such
numbers, as MPS has none.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import weakref
from collections import defaultdict
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.modules["triton"] = None  # type: ignore[assignment]  # it would look for a driver
_TORCH = Path(next(iter(find_spec("torch").submodule_search_locations))) / "lib"  # type: ignore[union-attr,arg-type]
for _name in (_TORCH / "libc10.so", _TORCH / "libtorch_cpu.so", os.environ["PRETENDED_CARD"]):
    ctypes.CDLL(str(_name), ctypes.RTLD_GLOBAL)

import bitsandbytes  # noqa: E402, F401 - before there is a card, or it would load kernels for one
import peft  # noqa: E402, F401
import torch  # noqa: E402
import transformers  # noqa: E402, F401
from torch.nn import functional  # noqa: E402
from torch.nn.attention import SDPBackend  # noqa: E402
from torch.overrides import handle_torch_function  # noqa: E402

__all__ = ["HELD", "Card", "bar_fp64"]

CARD, HOME = torch.device("cuda", 0), torch.device("cpu")
_BARRED: set[torch.dtype] = set()
_WHOLE, _BLOCK = 8 << 30, 512
_ATEN = torch.ops.aten
_OWN = ["silu_backward"]  # a card has kernels for these, and others take them apart
_FLASH = _ATEN._scaled_dot_product_flash_attention
_FLASH_BACK = _ATEN._scaled_dot_product_flash_attention_backward


ABOUT = SimpleNamespace(
    name="a card that is none", total_memory=_WHOLE, major=9, minor=0, multi_processor_count=132,
    uuid="0", L2_cache_size=50 << 20, warp_size=32, regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048, shared_memory_per_block_optin=232448, gcnArchName="",
)  # fmt: skip


class Held:
    """Bytes of tensors that live on the card, now and at most."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._lock = threading.RLock()  # what is let go may be let go while another is counted

    def add(self, inner: torch.Tensor) -> None:
        """Count a tensor's storage until it is gone."""
        storage = inner.untyped_storage()
        with self._lock:
            if storage._cdata in self._sizes:
                return
            size = -(-storage.nbytes() // _BLOCK) * _BLOCK
            self._sizes[storage._cdata] = size
            self.now += size
            self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, key: int) -> None:
        with self._lock:
            self.now -= self._sizes.pop(key, 0)

    def forget(self, *_: Any) -> None:
        """Let the most be what there is now."""
        self.peak = self.now

    def stats(self, *_: Any) -> dict[str, int]:
        """What torch's allocator tells, as far as it is known."""
        found = defaultdict(int)
        for kind in ("allocated", "reserved"):
            found |= {f"{kind}_bytes.all.current": self.now, f"{kind}_bytes.all.peak": self.peak}
        return found


HELD = Held()


class Card(torch.Tensor):
    """A tensor on the card; `inner` holds its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Card:
        made: Card = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, layout=inner.layout, device=CARD,
        )  # fmt: skip
        if inner.dtype in _BARRED:
            raise TypeError(f"this device has no {inner.dtype}")
        made.inner = inner
        HELD.add(inner)
        return made

    def tolist(self) -> Any:
        return self.inner.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, call: Any, types: Any, args: Any = (), options: Any = None) -> Any:
        options = options or {}
        if call is _ATEN.copy_.default:
            _inner(args[0]).copy_(_inner(args[1]))
            return args[0]
        if call is _ATEN.is_pinned.default:
            return False
        if call is _FLASH.default:
            return _flash(*args, **options)
        if call is _FLASH_BACK.default:
            return _flash_back(*args, **options)
        return _computed(call, args, options)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Card) else value


def _opened(value: Any, given: list[torch.Tensor]) -> Any:
    """Return what lies inside, and add the tensors that are met to `given`."""
    if isinstance(value, torch.Tensor):
        given.append(value)
        return _inner(value)
    if type(value) in (list, tuple):
        return type(value)([_opened(each, given) for each in value])
    return HOME if isinstance(value, torch.device) and value.type == "cuda" else value


def _computed(call: Any, args: Any, options: dict[str, Any]) -> Any:
    """Compute on what lies inside; a tensor that came in goes out as it was, others are new."""
    given: list[torch.Tensor] = []
    inside, asked = _opened(args, given), {k: _opened(v, given) for k, v in options.items()}
    if any(not isinstance(each, Card) and each.dim() for each in given):
        raise RuntimeError(f"{call}: tensors on cuda:0 and cpu")
    comes_home = options.get("device") is not None and options["device"].type == "cpu"
    asked.pop("pin_memory", None)
    with torch.no_grad():
        found = call(*inside, **asked)
    came = {id(each.inner): each for each in given if isinstance(each, Card)}
    return _closed(found, came, comes_home)


def _closed(found: Any, came: dict[int, Card], comes_home: bool) -> Any:
    if type(found) in (list, tuple):
        return type(found)([_closed(each, came, comes_home) for each in found])
    if not isinstance(found, torch.Tensor) or isinstance(found, Card):
        return found
    if id(found) in came:
        return came[id(found)]
    return found if comes_home else Card(found)


def _shared(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Repeat heads that several queries share: the processor's kernel knows none, a card's does."""
    return key.repeat_interleave(query.shape[1] // key.shape[1], 1)


def _flash(
    q: Any, k: Any, v: Any, dropout: float = 0.0, causal: bool = False, debug: bool = False,
    *, scale: float | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    """Attention as a card's kernel gives it back: [B, T, H, D] in memory, sums of rows in fp32."""
    q, k, v = _inner(q), _inner(k), _inner(v)
    out, sums = _ATEN._scaled_dot_product_flash_attention_for_cpu(
        q, _shared(q, k), _shared(q, v), 0.0, causal, scale=scale
    )
    first = torch._C._get_sdp_priority_order()[0]
    frugal = first == SDPBackend.EFFICIENT_ATTENTION.value  # another kernel, which takes less
    state, nothing = torch.full((2,), int(frugal)), torch.zeros(0, dtype=torch.int64)
    out = out.transpose(1, 2).contiguous().transpose(1, 2)
    lengths = None, None, q.shape[2], k.shape[2]
    return (
        Card(out),
        Card(sums.float().contiguous()),
        *lengths,
        Card(state),
        Card(nothing),
        Card(nothing),
    )


def _flash_back(
    grad: Any, q: Any, k: Any, v: Any, out: Any, sums: Any, _1: Any, _2: Any, _3: int, _4: int,
    dropout: float, causal: bool, seed: Any, offset: Any, *, scale: float | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    """Its gradients, and what the kernel of FlashAttention 2 takes meanwhile (flash_api.cpp).

    That is the gradient of q in fp32, several times where the order of sums is fixed, and a sum for
    each row, of 128 rows at a time; gradients of shared keys and values for each head that shares
    them. Of the frugal kernel nothing is counted.
    """
    grad, q, k, v, out, sums = map(_inner, (grad, q, k, v, out, sums))
    (batch, heads, rows, width), few = q.shape, k.shape[1]
    fixed = torch.are_deterministic_algorithms_enabled()
    times = -(-ABOUT.multi_processor_count // (batch * heads)) if fixed else 1
    padded = -(-rows // 128) * 128
    held = []
    if not _inner(seed)[0]:
        held += [torch.empty(times, batch, padded, heads, -(-width // 32) * 32)]
        held += [torch.empty(batch, heads, padded)]
        own = 0 if few == heads else 2
        held += [torch.empty(batch, k.shape[2], heads, width, dtype=q.dtype) for _ in range(own)]
    for each in held:
        HELD.add(each)
    by_q, *others = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward(
        grad.contiguous(), q, _shared(q, k), _shared(q, v), out, sums, 0.0, causal, scale=scale
    )
    if few < heads:
        others = [each.unflatten(1, (few, heads // few)).sum(2) for each in others]
    gradients = Card(by_q), *map(Card, others)
    del held  # only now: a card holds both
    return gradients


_attention, _tensor, _empty = functional.scaled_dot_product_attention, torch.tensor, torch.empty


def _attend(query: Any, key: Any, value: Any, *args: Any, **options: Any) -> Any:
    """Attention, in whose place a mode of torch's may do something else, as with torch's own."""
    if torch._C._is_torch_function_mode_enabled():
        return handle_torch_function(
            _attend, (query, key, value), query, key, value, *args, **options
        )
    return _chosen(query, key, value, *args, **options)


def _chosen(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """Choose as torch does on a card: its fused kernel for half precision without a mask."""
    if torch.is_autocast_enabled("cuda"):
        kind = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
    half = query.dtype in (torch.bfloat16, torch.float16)
    if isinstance(query, Card) and half and attn_mask is None and not dropout_p:
        return _FLASH(query, key, value, 0.0, is_causal, scale=scale)[0]
    more = {"scale": scale, "enable_gqa": enable_gqa}
    return _attention(query, key, value, attn_mask, dropout_p, is_causal, **more)


def _from_numbers(
    data: Any, *, dtype: Any = None, device: Any = None, **options: Any
) -> torch.Tensor:
    made = _tensor(data, dtype=dtype, **options)
    return made if device is None or torch.device(device).type == "cpu" else made.to("cuda")


def _like(
    self: torch.Tensor, data: Any, *, dtype: Any = None, device: Any = None, **options: Any
) -> Any:
    return _from_numbers(data, dtype=dtype or self.dtype, device=device or self.device, **options)


def _bare(size: Any, *, dtype: Any = None, **_: Any) -> Card:
    return Card(_empty(size, dtype=dtype or torch.get_default_dtype()))


def _strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Card:
    return Card(torch.empty_strided(size, stride, dtype=dtype or torch.get_default_dtype()))


class _Stream(nullcontext[None]):
    """A stream and an event: all that was asked for is done."""

    device = CARD

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def query(self, *_: Any) -> bool:
        return True

    def elapsed_time(self, *_: Any) -> float:
        return 1.0

    def record_event(self, *_: Any) -> _Stream:
        return self

    record = wait = synchronize = wait_stream = wait_event = query


def _pretend() -> None:
    told = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
        "get_device_properties": ABOUT, "get_device_name": ABOUT.name, "get_device_capability": (9, 0),
        "is_bf16_supported": True, "_lazy_init": None, "set_device": None, "synchronize": None,
        "empty_cache": None, "set_per_process_memory_fraction": None,
    }  # fmt: skip
    for name, answer in told.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    for name in ("memory_allocated", "memory_reserved"):
        setattr(torch.cuda, name, lambda *_: HELD.now)
        setattr(torch.cuda, f"max_{name}", lambda *_: HELD.peak)
    streams = ("Stream", "Event", "device", "stream", "current_stream", "default_stream")
    one = SimpleNamespace(manual_seed=torch.manual_seed)
    own = dict.fromkeys(streams, _Stream) | {
        "reset_peak_memory_stats": HELD.forget, "memory_stats": HELD.stats, "default_generators": (one,),
        "mem_get_info": lambda *_: (_WHOLE - HELD.now, _WHOLE),
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
    }  # fmt: skip
    for name, value in own.items():
        setattr(torch.cuda, name, value)
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty.memory_format", _bare, "CUDA")
    library.impl("empty_strided", _strided, "CUDA")
    for name in _OWN:
        library.impl(
            name, partial(Card.__torch_dispatch__, getattr(_ATEN, name).default, ()), "CUDA"
        )
    HELD.library = library  # type: ignore[attr-defined]  # as long as it lives, so do these
    torch.tensor, torch.Tensor.new_tensor = _from_numbers, _like
    torch.empty = lambda *size, pin_memory=False, **options: _empty(*size, **options)
    torch.Tensor.pin_memory = lambda self, *_: self
    torch.Tensor.record_stream = lambda *_: None
    functional.scaled_dot_product_attention = _attend
    torch.__future__.set_swap_module_params_on_conversion(True)


def bar_fp64() -> None:
    """From here on the card has no such numbers, as MPS has none."""
    _BARRED.add(torch.float64)


_pretend()
if "WITHOUT_FP64" in os.environ:
    bar_fp64()

from surefoot.ops import way  # noqa: E402 - before others take the function from there

_exact_place = way.exact_place
way.exact_place = lambda device: HOME if _BARRED else _exact_place(device)  # as for MPS
