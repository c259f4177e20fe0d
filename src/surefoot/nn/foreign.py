"""Weights of a GPT that somebody else saved: their names become ours, their shapes the sizes.

Known are our own names, those of GPT-2 as nanoGPT and the public checkpoints write them, and those
of Llama and Qwen3.
Nothing here reads a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from surefoot.config.suggest import nearest
from surefoot.errors import DataError

__all__ = ["gpt_sizes", "gpt_weights"]

_WRAPPERS = ("_orig_mod.", "module.", "transformer.")  # of torch.compile, of DDP, of GPT-2
_GPT2 = {
    "wte": "embed", "wpe": "positions", "ln_f": "norm", "lm_head": "head",
    "h": "blocks", "ln_1": "norm1", "ln_2": "norm2",
    "c_attn": "qkv", "attn.c_proj": "out", "c_fc": "up", "mlp.c_proj": "down",
}  # fmt: skip
_LLAMA = {
    "embed_tokens": "embed", "lm_head": "head", "layers": "blocks", "self_attn": "attn",
    "o_proj": "out", "gate_proj": "gate", "up_proj": "up", "down_proj": "down",
    "input_layernorm": "norm1", "post_attention_layernorm": "norm2",
}  # fmt: skip
_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # a causal mask that was saved, too
_BIASED = re.compile(r"(.*(?:norm\d?|qkv|out|up|down))\.weight")
_HEADS = ("n_head", "num_heads", "num_attention_heads")


def gpt_weights(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return `tensors` under the names of `nn.gpt.GPT`, and what was done to them, in words."""
    bare = {_unwrapped(name): tensor for name, tensor in tensors.items()}
    notes: list[str] = []
    if any(name.endswith("attn.c_attn.weight") for name in bare):
        bare = _from_gpt2(bare, notes)
    elif any(name.endswith("self_attn.q_proj.weight") for name in bare):
        bare = _from_llama(bare, notes)
    head, embed = bare.get("head.weight"), bare.get("embed.weight")
    if head is not None and embed is not None and torch.equal(head, embed):
        del bare["head.weight"]  # one tensor under two names
    return bare, notes


def _unwrapped(name: str) -> str:
    for prefix in _WRAPPERS:
        name = name.removeprefix(prefix)
    return name


def _from_gpt2(bare: Mapping[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    notes.append("names of GPT-2")
    first = next(t for n, t in bare.items() if n.endswith("attn.c_attn.weight"))
    across = first.dim() == 2 and first.size(1) == 3 * first.size(0)  # [in, out], as published
    if across:
        notes.append("matrices are transposed, as in the published checkpoints")
    found: dict[str, Tensor] = {}
    for name, tensor in bare.items():
        if not _MASK.fullmatch(name):
            turned = across and re.search(r"\.c_\w+\.weight$", name)
            found[_ours(name)] = tensor.T.contiguous() if turned else tensor
    without = [m[1] for name in found if (m := _BIASED.fullmatch(name))]
    without = [f"{stem}.bias" for stem in without if f"{stem}.bias" not in found]
    for bias in without:
        found[bias] = torch.zeros(found[f"{bias.removesuffix('bias')}weight"].size(0))
    if without:
        notes.append(f"{len(without)} biases that the file does without begin as zeros")
    return found


def _from_llama(bare: Mapping[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    notes.append("names of Llama and Qwen3")
    found: dict[str, Tensor] = {}
    for name, tensor in bare.items():
        parts = [_LLAMA.get(part, part) for part in name.removeprefix("model.").split(".")]
        if "q_proj" in parts:
            pieces = [bare[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            found[".".join(parts).replace("q_proj", "qkv")] = torch.cat(pieces)
        elif not {"k_proj", "v_proj", "rotary_emb"}.intersection(parts):
            found[".".join(parts)] = tensor
    return found


def _ours(name: str) -> str:
    parts = name.split(".")
    pairs = zip(["", *parts], parts)
    return ".".join(_GPT2.get(f"{above}.{part}", _GPT2.get(part, part)) for above, part in pairs)


def gpt_sizes(
    weights: Mapping[str, Tensor], said: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the fields of GPTConfig that `weights` (with our names) decide, and the open ones.

    An open field comes with the reason why no shape tells. `said` is what else the file holds,
    where the number of heads may be written. Raises DataError where this is no GPT.
    """
    embed, out = _shape(weights, "embed.weight"), _shape(weights, "blocks.0.attn.out.weight")
    numbers = [int(m[1]) for name in weights if (m := re.match(r"blocks\.(\d+)\.", name))]
    found: dict[str, Any] = {
        "layout": "gpt2" if "positions.weight" in weights else "modern",
        "d_model": embed[1],
        "num_layers": 1 + max(numbers),
        "d_ff": _shape(weights, "blocks.0.mlp.up.weight")[0],
        "tie_embeddings": "head.weight" not in weights,
    }
    open_: dict[str, str] = {}
    if found["layout"] == "gpt2":
        found["context"] = _shape(weights, "positions.weight")[0]
    else:
        open_["context"] = "rotary positions leave no trace in the shapes"
        found["qk_norm"] = "blocks.0.attn.q_norm.weight" in weights
        if "blocks.0.mlp.gate.weight" not in weights:
            found["feed_forward"] = "relu2"
        if "values.weight" in weights:
            found["value_embeddings"] = True
    rows = _shape(weights, "blocks.0.attn.qkv.weight")[0] - out[1]
    if found.get("qk_norm"):
        width = _shape(weights, "blocks.0.attn.q_norm.weight")[0]
        found |= {"num_heads": out[1] // width, "num_kv_heads": rows // 2 // width}
    elif heads := _said(said):
        found |= {"num_heads": heads, "num_kv_heads": rows // 2 * heads // out[1]}
    else:
        open_["num_heads"] = "heads leave no trace in the shapes"
        if rows != 2 * out[1]:
            open_["num_kv_heads"] = "nor do groups of heads"
    if found.get("num_kv_heads") == found.get("num_heads"):
        found.pop("num_kv_heads", None)
    return found, open_


def _shape(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    tensor = weights.get(name)
    if tensor is None or not tensor.dim():
        near = nearest(name, weights)
        hint = f"; did you mean {near}?" if near else ""
        some = ", ".join(list(weights)[:4])
        raise DataError(
            f"this is no GPT that we know: {name} is missing{hint}",
            fix=f"names of GPT-2, nanoGPT, Llama, Qwen3 or Surefoot are known; the file has {some}, ...",
        )
    return tuple(tensor.shape)


def _said(said: Mapping[str, Any]) -> int | None:
    """Return the number of heads that the file names beside its tensors."""
    places = [said, *(value for value in said.values() if isinstance(value, Mapping))]
    for place in places:
        for name in _HEADS:
            if isinstance(place.get(name), int):
                return int(place[name])
    return None
