"""Long rows on small cards: what is kept for the gradient, and where.

A model of `transformers` whose layers are computed again for the gradient keeps one tensor for
each layer, its input, and while it works on a layer all that is inside. Here these inputs wait in
the host's memory, and the feed-forward part of a layer is computed for some tokens at a time. The
gradients are the same: bit for bit with the first, but for rounding with the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from surefoot.nn.again import Circumstances
from surefoot.ops import cross_entropy

__all__ = [
    "FewHeads",
    "frugal_kernels",
    "fuse_gelu",
    "host_room",
    "in_pieces",
    "narrow_norms",
    "offload_inputs",
    "repeat_keys",
    "takes_shared",
    "tile_feed_forward",
]

_SMALLEST = 1 << 20  # bytes of a piece of pinned memory
_HEAD_TOKENS = 1 << 18  # heads x tokens whose attention is computed at once


def host_room(nbytes: int, pinned: bool) -> list[Tensor]:
    """Return room for `nbytes` in the host's memory, u8[n] each.

    Pinned memory is given out in powers of two, so it is taken in such pieces.
    """
    if not pinned:
        return [torch.empty(nbytes, dtype=torch.uint8)]
    found, left = [], nbytes
    while left > 0:
        size = max(_SMALLEST, 1 << (left.bit_length() - 1))
        found.append(torch.empty(size, dtype=torch.uint8, pin_memory=True))
        left -= size
    return found


class _Waiting:
    """What a tensor holds, in the host's memory until it is fetched."""

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.dtype, self.device = tensor.shape, tensor.dtype, tensor.device
        self.on_card = tensor.device.type == "cuda"
        flat = tensor.contiguous().view(-1).view(torch.uint8)
        self.pieces = host_room(flat.numel(), self.on_card)
        for piece, part in self._pairs(flat):
            piece.copy_(part, non_blocking=self.on_card)

    def fetch(self) -> Tensor:
        """Return the tensor, on its device again."""
        found = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        for piece, part in self._pairs(found.view(-1).view(torch.uint8)):
            part.copy_(piece, non_blocking=self.on_card)
        return found

    def _pairs(self, flat: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield parts of the pieces, and of u8[n] what belongs there."""
        begin = 0
        for piece in self.pieces:
            part = flat[begin : begin + piece.numel()]
            yield piece[: part.numel()], part
            begin += piece.numel()


def tile_feed_forward(model: nn.Module, tokens: int) -> int:
    """Compute the module `mlp` of each layer for `tokens` tokens at a time; return how many.

    Its inner width then costs memory for one tile only, once more time in the backward pass.
    Dropout inside would draw the same mask for every tile, so there must be none.
    """
    found = [m for n, m in model.named_modules() if n.rpartition(".")[2] == "mlp"]
    for module in found:
        module.forward = partial(_tiled, module.forward, tokens)
    return len(found)


def _tiled(forward: Callable[[Tensor], Tensor], tokens: int, x: Tensor) -> Tensor:
    """Return `forward` of x [B, T, C], computed piece by piece along T."""
    if x.size(1) <= tokens:
        return forward(x)
    if not torch.is_grad_enabled():
        return torch.cat([forward(piece.contiguous()) for piece in x.split(tokens, 1)], 1)
    parts = (piece.contiguous() for piece in x.split(tokens, 1))  # some layers take only such
    return torch.cat([checkpoint(forward, piece, use_reentrant=False) for piece in parts], 1)


def narrow_norms(model: nn.Module) -> int:
    """Let norms of layers give what they take, also under autocast; return how many.

    On CUDA it would widen their inputs and outputs to fp32, which doubles what is kept of each. The
    sums inside are in fp32 anyway.
    """
    found = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    for norm in found:
        norm.forward = partial(_as_it_came, norm, norm.forward)  # type: ignore[method-assign]
    return len(found)


def _as_it_came(norm: nn.LayerNorm, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if norm.weight is not None and norm.weight.dtype != x.dtype:
        return forward(x)
    with torch.autocast(x.device.type, enabled=False):
        return forward(x)


def fuse_gelu(model: nn.Module) -> int:
    """Let one kernel compute GELU by tanh where transformers writes it out; return how many.

    It keeps nothing but what it is given, where eight steps keep six tensors of that size, which
    autocast of CUDA also widens to fp32 because of a power among them.
    """
    from transformers.activations import NewGELUActivation

    found = [name for name, m in model.named_modules() if type(m) is NewGELUActivation]
    for name in found:
        model.set_submodule(name, nn.GELU(approximate="tanh"))
    return len(found)


def repeat_keys() -> None:
    """Let transformers copy keys that heads share for all of them where attention does not share."""
    from transformers.integrations import sdpa_attention

    theirs: Any = sdpa_attention
    if not isinstance(theirs.use_gqa_in_sdpa, partial):
        theirs.use_gqa_in_sdpa = partial(_asked_and_taken, theirs.use_gqa_in_sdpa)


def _asked_and_taken(asked: Callable[..., bool], mask: Any, key: Tensor, *rest: Any) -> bool:
    return asked(mask, key, *rest) and (FewHeads.within > 0 or takes_shared(key))


def takes_shared(key: Tensor, frugal: bool = False) -> bool:
    """Whether fused attention takes keys that heads share; `frugal` is that of `frugal_kernels`.

    On CUDA only flash attention does, which takes half precision and no card before Ampere. For
    others torch would make all products of queries and keys at once.
    """
    if key.device.type != "cuda":
        return True
    if frugal:
        return False
    half = key.dtype != torch.float32 or torch.is_autocast_enabled("cuda")
    return half and torch.cuda.get_device_capability(key.device)[0] >= 8


def in_pieces(
    loss: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, y: Tensor, rows: int, frozen: bool
) -> Tensor:
    """Return the sum of `loss` over pieces of `rows` of hidden [N, C] and targets y [N].

    One piece's logits are all that there is at a time. Where `loss` is `frozen`, with nothing to
    learn in it, a piece's gradient is taken at once and kept; else what a piece computes is
    computed again for it.
    """
    pairs = zip(hidden.split(rows), y.split(rows))
    if not torch.is_grad_enabled():
        return torch.stack([loss(*pair) for pair in pairs]).sum()
    if frozen:
        total: Tensor = _AtOnce.apply(loss, hidden, y, rows)
        return total
    found = [checkpoint(loss, *pair, use_reentrant=False) for pair in pairs]
    return torch.stack(found).sum()


class _AtOnce(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loss: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, y: Tensor, rows: int
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        kept = torch.empty_like(hidden)
        parts = zip(hidden.split(rows), y.split(rows), kept.split(rows))
        for part, targets, place in cross_entropy.alike(parts):
            leaf = part.detach().requires_grad_()
            with torch.enable_grad():
                nats = loss(leaf, targets)
            place.copy_(torch.autograd.grad(nats, leaf)[0])
            total = total + nats.detach()
            del leaf, nats
        ctx.save_for_backward(kept)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (kept,) = ctx.saved_tensors  # ours alone, so no copy: torch refuses a second time
        return None, kept.mul_(grad.to(kept.dtype)), None, None


def offload_inputs(model: nn.Module) -> int:
    """Let the inputs of layers that are computed again wait in host memory; return how many.

    The layers must have been told to be computed again before (`adapters.recompute_layers`).
    """
    layers = [m for m in model.modules() if hasattr(m, "_gradient_checkpointing_func")]
    for layer in layers:
        layer._gradient_checkpointing_func = _offloaded  # type: ignore[assignment]
    return len(layers)


def frugal_kernels() -> AbstractContextManager[None]:
    """Prefer the attention whose backward pass needs the least room for sums that have an order.

    Flash attention then keeps a whole gradient of the queries in fp32 for several parts of them.
    """
    kinds = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    found: AbstractContextManager[None] = sdpa_kernel(kinds, set_priority=True)
    return found


class FewHeads(TorchFunctionMode):
    """Inside it, attention of long rows is computed for a few heads at a time.

    What a kernel works in is then as large as a few heads need, and heads that share keys need no
    copies of all of them.
    """

    within: ClassVar[int] = 0  # how many are entered

    def __enter__(self) -> FewHeads:
        FewHeads.within += 1
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        FewHeads.within -= 1
        super().__exit__(*error)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and len(args) == 3 and _groupable(kwargs):
            query, key = args[:2]
            size = max(1, _HEAD_TOKENS // query.size(-2) * key.size(1) // query.size(1))
            shared = key.size(1) < query.size(1)
            if size < key.size(1) or (shared and not takes_shared(key, frugal=True)):
                return _Grouped.apply(*args, kwargs.get("scale"), min(size, key.size(1)))
        return func(*args, **kwargs)


def _groupable(options: Mapping[str, Any]) -> bool:
    plain = options.get("attn_mask") is None and not options.get("dropout_p")
    return plain and bool(options.get("is_causal"))


class _Grouped(torch.autograd.Function):
    """Attention that looks back, of q [B, H, T, D] and k, v [B, G, T, D], `size` of G at a time."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float | None, size: int
    ) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        share = q.size(1) // k.size(1)
        ctx.shares, ctx.ends, found = (size * share, size, size), [], []
        ctx.heads = (q.size(1), k.size(1), v.size(1))
        parts = (x.detach().split(n, 1) for x, n in zip((q, k, v), ctx.shares))
        for given in zip(*parts):
            leaves = [x.requires_grad_(wanted) for x in given]
            with torch.set_grad_enabled(wanted):
                query, *rest = leaves
                key, value = (x.repeat_interleave(share, 1) if share > 1 else x for x in rest)
                out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
            found.append(out.detach())
            if wanted:
                ctx.ends.append((out, leaves))
        return torch.cat([x.transpose(1, 2) for x in found], 2).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        found: list[Tensor] = []
        places = [0, 0, 0]
        for part in grad.split(ctx.shares[0], 1):
            out, leaves = ctx.ends.pop(0)
            pieces = torch.autograd.grad(out, leaves, part)
            del out, leaves
            found = found or [
                x.new_empty((x.size(0), heads, *x.shape[2:])) for x, heads in zip(pieces, ctx.heads)
            ]
            for n, (whole, piece) in enumerate(zip(found, pieces)):
                whole[:, places[n] : places[n] + piece.size(1)] = piece
                places[n] += piece.size(1)
        return *found, None, None


def _offloaded(run: Callable[..., Tensor], hidden: Tensor, *rest: Any) -> Tensor:
    anchor = torch.zeros(
        (), device=hidden.device, requires_grad=True
    )  # hidden may need no gradient
    found: Tensor = _Offloaded.apply(run, anchor, hidden, *rest)
    return found


class _Offloaded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, run: Callable[..., Tensor], anchor: Tensor, hidden: Tensor, *rest: Any
    ) -> Tensor:
        ctx.run, ctx.rest, ctx.then = run, rest, Circumstances(hidden.device)
        ctx.host = _Waiting(hidden)
        with ctx.then.mixed(), frugal_kernels(), FewHeads():
            return run(hidden, *rest)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        hidden = ctx.host.fetch().requires_grad_(True)
        ctx.host = None
        with ctx.then.back(), frugal_kernels(), FewHeads():
            found = ctx.run(hidden, *ctx.rest)
            end = get_gradient_edge(found if isinstance(found, Tensor) else found[0])
            del found  # the result itself may go
        torch.autograd.backward([end], [grad])
        return None, None, hidden.grad, *(None for _ in ctx.rest)
