"""Low-rank adapters on a pretrained model, and the pretrained model as the engine wants it.

`peft` makes the adapters (Hu et al., "LoRA", 2021) and `transformers` the model; this adds what
they leave open: masks of dropout that are functions of keys, a loss that never holds all logits,
optimiser groups that are told and not guessed, and a guard against a fault of `bitsandbytes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, ClassVar

import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.errors import ConfigError
from surefoot.nn.dropout import Dropout
from surefoot.nn.lean import in_pieces
from surefoot.ops import CROSS_ENTROPY, Op

__all__ = [
    "Lora",
    "Pretrained",
    "Writer",
    "adapt",
    "adapter_groups",
    "frozen_digest",
    "guard_four_bit",
    "in_full",
    "linears",
    "recompute_layers",
    "still_dropout",
]

_CAPS = ("final_logit_softcapping", "logits_soft_cap")
_PIECE = 512  # positions whose logits exist at the same time, where the head is no plain product


@dataclass(frozen=True)
class Lora:
    """What adapters are like: `alpha / rank` scales them, with `rslora` alpha / sqrt(rank).

    `targets` are names of linear layers, or "all". `dora` also learns the length of each row (Liu
    et al., 2024); `freeze_a` trains only the second factor (Zhang et al., "LoRA-FA", 2023), which
    then need not remember the inputs of the layer.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all",)
    rslora: bool = False
    dora: bool = False
    freeze_a: bool = False


class Pretrained(nn.Module):
    """A causal language model of `transformers`, with or without adapters.

    `model(x)` gives logits f32[B, T, V]; `model(x, y)` the loss in nats summed over the targets
    i64[B, T] that are not -100.
    """

    kernels: ClassVar[dict[str, Op]] = {"entropy": CROSS_ENTROPY}

    def __init__(self, inner: nn.Module, context: int) -> None:
        super().__init__()
        self.inner = inner
        outer: Any = inner
        causal: Any = outer.get_base_model() if hasattr(inner, "peft_config") else inner
        self.config = _Size(context, causal.config)
        self.entropy = CROSS_ENTROPY.call
        self._parts = (causal,)  # a tuple, so that nothing is registered twice
        self._adapted = [m for m in inner.modules() if hasattr(m, "lora_A")]

    @property
    def causal(self) -> Any:
        """The model of `transformers` itself."""
        return self._parts[0]

    @property
    def vocab_size(self) -> int:
        return int(self.causal.get_output_embeddings().weight.size(0))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return logits, or with targets the summed loss."""
        hidden = self.hidden(x)[0]  # [B, T, C]
        head = self.causal.get_output_embeddings()
        if y is None:
            return self.logits(hidden)
        if _plain(head, self.causal.config):
            # Else a gradient would be made for a head that nobody trains.
            weight = head.weight if head.weight.requires_grad else head.weight.detach()
            return self.entropy(hidden.flatten(0, 1), weight, y.flatten())
        frozen = not any(p.requires_grad for p in head.parameters())
        return in_pieces(self._nats, hidden.flatten(0, 1), y.flatten(), _PIECE, frozen)

    def _nats(self, hidden: Tensor, y: Tensor) -> Tensor:
        """Return the loss of positions [N, C], all logits at once."""
        return F.cross_entropy(self.logits(hidden), y, ignore_index=-100, reduction="sum")

    def logits(self, hidden: Tensor) -> Tensor:
        """Return f32[..., V] for hidden states [..., C]."""
        found = self.causal.get_output_embeddings()(hidden).float()
        return _as_said(found, self.causal.config)

    @contextmanager
    def base(self) -> Iterator[None]:
        """Inside the block the adapters are off: the model as it was before training."""
        inner: Any = self.inner
        with inner.disable_adapter():
            yield

    def hidden(self, x: Tensor, **options: Any) -> Any:
        """Return what the blocks make of tokens i64[B, T], [B, T, C] first of all."""
        mixed = torch.is_autocast_enabled(x.device.type)
        for layer in self._adapted:  # autocast narrows the factors; else the input is widened
            layer.cast_input_dtype_enabled = not mixed  # type: ignore[assignment]
        return self.causal.base_model(input_ids=x, **{"use_cache": False, **options})


class Writer:
    """A pretrained model that reads token by token and says what comes next (engine/kit/sample.py).

    Many models have more rows than their tokenizer has `words`; the others are never written.
    """

    def __init__(self, model: Pretrained, words: int | None = None) -> None:
        self.model, self.words = model, words
        asked = signature(model.causal.base_model.forward).parameters
        self._pasts = "cache" if "cache" in asked else "past_key_values"  # before transformers 5.24

    @property
    def context(self) -> int:
        """Tokens that the model sees at once."""
        return self.model.config.context

    @property
    def device(self) -> torch.device:
        """Where tokens are expected."""
        return next(self.model.parameters()).device

    def empty(self, batch: int) -> Any:
        """Return the empty memory of texts; it grows with them."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config.public)

    @torch.no_grad()
    def __call__(self, tokens: Tensor, pasts: Any) -> Tensor:
        """Read tokens i64[B, T] after those in `pasts`; return logits f32[B, words] of what is next."""
        hidden = self.model.hidden(tokens, use_cache=True, **{self._pasts: pasts})[0][:, -1]
        return self.model.logits(hidden)[:, : self.words]


@dataclass(frozen=True)
class _Size:
    """The sizes that the engine asks a model for."""

    context: int
    public: Any

    @property
    def num_layers(self) -> int:
        return int(self.public.num_hidden_layers)


def _plain(head: nn.Module, config: Any) -> bool:
    """Whether logits are nothing but hidden states times the weights of the head."""
    told = (*_CAPS, "logits_scaling", "logit_scale")
    altered = any(getattr(config, name, None) not in (None, 1.0) for name in told)
    return type(head) is nn.Linear and head.bias is None and not altered


def _as_said(logits: Tensor, config: Any) -> Tensor:
    """Do to logits what the model's own head does after the product."""
    if scale := getattr(config, "logits_scaling", None):
        logits = logits / scale
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    for name in _CAPS:
        if cap := getattr(config, name, None):
            logits = cap * torch.tanh(logits / cap)
    return logits


def linears(model: nn.Module) -> dict[str, int]:
    """Return the names that linear layers of the blocks go by, and the highest rank of each."""
    causal: Any = model
    head = causal.get_output_embeddings()
    found: dict[str, int] = {}
    for name, module in causal.named_modules():
        public = hasattr(module, "nf")  # the linear layers of GPT-2 and its kin
        if (public or isinstance(module, nn.Linear)) and module is not head:
            sizes = (module.nx, module.nf) if public else (module.in_features, module.out_features)
            last = name.rpartition(".")[2]
            found[last] = max(found.get(last, 0), min(sizes))
    return found


def adapt(model: nn.Module, lora: Lora, seed: int) -> nn.Module:
    """Return `model` with fresh adapters in its linear layers; only they are trained.

    Until the first update it computes what it computed before. Raises ConfigError for targets
    that are no linear layers of the model, and lists those, and for a rank above theirs.
    """
    from peft import LoraConfig, get_peft_model

    causal: Any = model
    there = linears(causal)
    unknown = [t for t in lora.targets if t != "all" and t not in there]
    if unknown:
        names = ", ".join(there)
        what = f"adapter.targets: no linear layer is called {', '.join(unknown)}"
        raise ConfigError(what, fix=f"all, or of: {names}")
    chosen = [rank for t, rank in there.items() if t in lora.targets or "all" in lora.targets]
    most = max(chosen, default=lora.rank)
    if lora.rank > most:
        what = (
            f"adapter.rank: {lora.rank:,} is more than {most:,}, the rank of the layers themselves"
        )
        raise ConfigError(what, fix=f"at most {most:,}; --method full trains all weights")
    options: dict[str, Any] = {
        "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout,
        "target_modules": "all-linear" if "all" in lora.targets else list(lora.targets),
        "use_rslora": lora.rslora, "use_dora": lora.dora, "bias": "none",
        "task_type": "CAUSAL_LM",
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            adapted: nn.Module = get_peft_model(causal, LoraConfig(**options))
        except (ValueError, TypeError) as error:  # such as DoRA of experts that are one tensor
            what = f"adapter: peft cannot put such adapters on this base: {error}"
            raise ConfigError(what, fix="other --targets, or no --dora and --dropout") from None
    causal.disable_input_require_grads()  # peft asks for a gradient of the first layer's inputs
    for module in adapted.modules():
        if _usual(module):
            module.forward = partial(_at_once, module, module.forward)
        masks: Any = getattr(module, "lora_dropout", {})
        for name, layer in masks.items():
            if isinstance(layer, nn.Dropout):
                masks[name] = Dropout(layer.p)
    for name, parameter in adapted.named_parameters():
        if lora.freeze_a and ".lora_A." in name:
            parameter.requires_grad_(False)
    return adapted


def _usual(module: nn.Module) -> bool:
    """Whether `module` is a linear layer with adapters that do nothing but add."""
    layer: Any = module
    linear = isinstance(getattr(module, "base_layer", None), nn.Linear)
    return linear and hasattr(module, "lora_A") and not layer.lora_variant


def _at_once(
    layer: Any, forward: Callable[..., Tensor], x: Tensor, *rest: Any, **more: Any
) -> Tensor:
    """Return what the layer gives, the adapter's share added by the product that makes it.

    peft makes the product, scales it, and adds it to a copy: three more tensors of that size, and
    three roundings. Its own way is taken outside of autocast, and while the adapters are off.
    """
    if layer.disable_adapters or layer.merged or rest or more or not _mixed(x):
        return forward(x, *rest, **more)
    (name,) = layer.active_adapters
    found: Tensor = layer.base_layer(x)
    inner = layer.lora_A[name](layer.lora_dropout[name](x))
    second = layer.lora_B[name].weight.t()
    added = torch.addmm(
        found.flatten(0, -2), inner.flatten(0, -2), second, alpha=layer.scaling[name]
    )
    return added.view_as(found)


def _mixed(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)


def adapter_groups(
    model: nn.Module, lr: float, ratio: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Sort what is trained into optimiser groups, each with `name`, `lr`, `peak`, `weight_decay`.

    The second factors learn `ratio` times as fast as the first (Hayou et al., "LoRA+", 2024);
    lengths of rows and other vectors at the plain rate and without decay. The last group has the
    plain rate.
    """
    named: dict[str, list[Tensor]] = {"B": [], "vectors": [], "A": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        vector = parameter.dim() < 2 or "lora_magnitude" in name
        second = ".lora_B." in name or "lora_embedding_B" in name
        named["vectors" if vector else "B" if second else "A"].append(parameter)
    rates = {"B": lr * ratio, "vectors": lr, "A": lr}
    return [
        {
            "name": name, "params": params, "lr": rates[name], "peak": rates[name],
            "weight_decay": 0.0 if name == "vectors" else weight_decay,
        }
        for name, params in named.items() if params
    ]  # fmt: skip


def guard_four_bit(model: nn.Module) -> int:
    """Keep 4-bit layers from repacking themselves for inference; return how many there are.

    On processors with bf16 instructions, bitsandbytes 0.50 rewrites the weights of a layer in its
    first evaluation for a kernel that has no backward: gradients through the base are then dropped
    with no more than a warning, and the weights are no longer those that were loaded.
    """
    layers = [m for m in model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return len(layers)


def still_dropout(model: Any) -> None:
    """Turn off the dropout that a pretrained model brings along; that of adapters is asked for.

    Its masks would depend on how a batch is cut, so that a step which ran out of memory and is cut
    smaller would be another step.
    """
    for part in (model.config, *model.modules()):
        for name, value in [*vars(part).items()]:
            if isinstance(value, float) and ("drop" in name or isinstance(part, nn.Dropout)):
                setattr(part, name, 0.0)


def recompute_layers(model: Any) -> None:
    """Keep only the inputs of the layers; what is inside is computed again for the gradient."""
    name = "activation_checkpointing_enable"  # as transformers 5.20 and later call it
    enable = getattr(model, name, None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


@torch.no_grad()
def in_full(model: Pretrained, plain: nn.Module, lora: Lora | None) -> nn.Module:
    """Return the tuned model in fp32 around `plain`, the base in fp32, whose weights it takes over.

    Weights of 4 bits become the numbers that they stand for, so the result computes what `model`
    does, without the rounding of its arithmetic.
    """
    target = dict(plain.named_parameters())
    for name, module in model.causal.named_modules():
        weight: Any = getattr(module, "weight", None)
        if getattr(weight, "quant_state", None) is not None:
            from bitsandbytes.functional import dequantize_4bit

            found = dequantize_4bit(weight.data, weight.quant_state)
            name = name.removesuffix(".base_layer")
            turned = hasattr(plain.get_submodule(name), "nf")  # GPT-2's layers hold [in, out]
            target[f"{name}.weight"].copy_(found.t() if turned else found)
    whole: nn.Module = plain if lora is None else adapt(plain, lora, 0)
    ours = dict(model.inner.named_parameters())
    for name, parameter in whole.named_parameters():
        if lora is None or "lora_" in name:
            parameter.copy_(ours[name])
    return whole.eval()


def frozen_digest(model: nn.Module) -> str:
    """Return a name of all the model's bits, quantised weights and their constants included."""
    state = xxhash.xxh3_128()
    for name, tensor in sorted(_tensors(model.state_dict()).items()):
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        state.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return state.hexdigest()


def _tensors(found: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}
