"""Our GPT under the names of public architectures: Llama, Qwen3, Arcee and GPT-2. Reads no file.

Every layout that `config.model.GPTConfig` can say is one of these, but for what it calls private.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from surefoot.config.model import GPTConfig
from surefoot.errors import DataError, Unsupported
from surefoot.nn.gpt import GPT

__all__ = ["public_config", "public_weights", "sizes_of"]

_LLAMA = {
    "attn.out": "self_attn.o_proj", "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm", "mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj", "norm1": "input_layernorm", "norm2": "post_attention_layernorm",
}  # fmt: skip
_GPT2 = {
    "attn.qkv": "attn.c_attn", "attn.out": "attn.c_proj", "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj", "norm1": "ln_1", "norm2": "ln_2",
}  # fmt: skip
_ADOPT = (
    "GPT-2: surefoot adopt FOLDER/model.safetensors --recipe gpt --tokenizer FOLDER/tokenizer.json"
)
_BENDS = {"llama": "silu", "qwen3": "silu", "arcee": "relu2"}  # what may be imported
_PARTS = ("q_proj", "k_proj", "v_proj")


def public_config(config: GPTConfig, vocab_size: int, border: int | None) -> dict[str, Any]:
    """Return `config.json` as `transformers` reads it; `border` stands between documents.

    Raises Unsupported for a layout that no public architecture has.
    """
    if config.private:
        raise Unsupported(
            f"no public architecture has {' or '.join(config.private)}",
            fix="--to onnx or --to pt keeps the model as it is",
            verb="export",
        )
    shared: dict[str, Any] = {
        "vocab_size": vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": border,
        "eos_token_id": border,
        "dtype": "float32",
    }
    if config.layout == "gpt2":
        return {
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2",
            "n_embd": config.d_model, "n_layer": config.num_layers, "n_head": config.num_heads,
            "n_positions": config.context, "n_inner": config.ff_width,
            "activation_function": "gelu", "layer_norm_epsilon": config.norm_eps,
            "attn_pdrop": 0.0, "embd_pdrop": config.dropout, "resid_pdrop": config.dropout,
            **shared,
        }  # fmt: skip
    relu2 = config.feed_forward == "relu2"
    kind = "Qwen3" if config.qk_norm else "Arcee" if relu2 else "Llama"
    return {
        "architectures": [f"{kind}ForCausalLM"], "model_type": kind.lower(),
        "hidden_size": config.d_model, "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads or config.num_heads,
        "head_dim": config.d_model // config.num_heads, "intermediate_size": config.ff_width,
        "max_position_embeddings": config.context, "rms_norm_eps": config.norm_eps,
        "hidden_act": "relu2" if relu2 else "silu", "mlp_bias": False, "attention_bias": False,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        **shared,
    }  # fmt: skip


def public_weights(model: GPT) -> dict[str, Tensor]:
    """Return the parameters under their public names, as views where that is possible."""
    gpt2 = model.config.layout == "gpt2"
    top = "transformer" if gpt2 else "model"
    names = ("wte", "ln_f", "h") if gpt2 else ("embed_tokens", "norm", "layers")
    embed, norm, layers = (f"{top}.{name}" for name in names)
    found: dict[str, Tensor] = {}
    for name, tensor in model.named_parameters():
        kind = name.rpartition(".")[2]
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            part = _of_gpt2(rest, tensor) if gpt2 else _of_llama(model, rest, tensor)
            found |= {f"{layers}.{number}.{inner}": value for inner, value in part}
        elif name == "head.weight":
            found["lm_head.weight"] = tensor
        else:
            place = {"embed": embed, "positions": f"{top}.wpe", "norm": norm}
            found[f"{place[name.partition('.')[0]]}.{kind}"] = tensor
    return {name: tensor.detach() for name, tensor in found.items()}


def _of_gpt2(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    stem, _, kind = name.rpartition(".")
    yield f"{_GPT2[stem]}.{kind}", tensor.T if tensor.dim() == 2 else tensor  # [in, out] there


def _of_llama(model: GPT, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    stem, _, kind = name.rpartition(".")
    if stem != "attn.qkv":
        yield f"{_LLAMA[stem]}.{kind}", tensor
        return
    config = model.config
    width = config.d_model // config.num_heads
    kv_heads = config.num_kv_heads or config.num_heads
    heights = [config.num_heads * width, kv_heads * width, kv_heads * width]
    for part, piece in zip(_PARTS, tensor.split(heights)):
        yield f"self_attn.{part}.{kind}", piece


def sizes_of(public: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of GPTConfig that a `config.json` of Llama, Qwen3 or Arcee says.

    Raises DataError for another architecture, and for what our layouts cannot express.
    """
    kind = public.get("model_type")
    if kind not in _BENDS:
        raise DataError(f"model_type {kind} is none of {', '.join(_BENDS)}", fix=_ADOPT)
    rope = public.get("rope_parameters") or public.get("rope_scaling") or {}
    heads = public["num_attention_heads"]
    width = public.get("head_dim") or public["hidden_size"] // heads
    obstacles = [
        (
            public.get("hidden_act", _BENDS[kind]) != _BENDS[kind],
            f"hidden_act {public.get('hidden_act')}",
        ),
        (public.get("attention_bias") or public.get("mlp_bias"), "biases"),
        (rope.get("rope_type", "default") != "default", f"rope_type {rope.get('rope_type')}"),
        (width * heads != public["hidden_size"], f"heads of {width} that are wider than the model"),
        (public.get("use_sliding_window"), "a sliding window"),
    ]
    if wrong := [text for holds, text in obstacles if holds]:
        raise DataError(f"this layout has {', '.join(wrong)}, which nothing here can express")
    kv_heads = public.get("num_key_value_heads") or heads
    return {
        "layout": "modern",
        "qk_norm": kind == "qwen3",
        "feed_forward": "relu2" if kind == "arcee" else "swiglu",
        "num_heads": heads,
        "num_kv_heads": None if kv_heads == heads else kv_heads,
        "context": public["max_position_embeddings"],
        "rope_theta": float(rope.get("rope_theta") or public.get("rope_theta") or 10_000.0),
        "norm_eps": public.get("rms_norm_eps", 1e-6),
    }
