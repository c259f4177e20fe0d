"""GGUF, the format of llama.cpp: Llama, Qwen3 and Arcee layouts with a byte-level BPE.

Matrices may be narrowed to f16, or to q8_0 or q4_0 (blocks of 32 numbers with a scale); norms stay in fp32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surefoot.data.bpe import BPE
from surefoot.data.tokenizer import Tokenizer
from surefoot.errors import Unsupported
from surefoot.nn.gpt import GPT
from surefoot.nn.public import public_config, public_weights

__all__ = ["read", "special", "write"]

_TOP = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
_INNER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
_PAIRED = ("llama", "arcee")  # llama.cpp turns neighbours in these, and halves in others
_NORMAL, _CONTROL, _ADDED = 1, 3, 4  # types of tokens
_BLOCK = 32  # numbers of a row that q8_0 and q4_0 take together


def write(model: GPT, tokenizer: Tokenizer, path: Path, quant: str, how: Mapping[str, Any]) -> None:
    """Write the model with its vocabulary, used as `how` says (see `export.write`). Raises Unsupported for what the format cannot say."""
    import gguf

    config = model.config
    bpe = _fits(model, tokenizer, quant)
    public = public_config(config, model.vocab_size, bpe.boundary)
    kind = gguf.GGMLQuantizationType[quant.upper()]
    out = gguf.GGUFWriter(path, public["model_type"])
    out.add_name(f"surefoot-{config.d_model}x{config.num_layers}")
    out.add_context_length(config.context)
    out.add_embedding_length(config.d_model)
    out.add_block_count(config.num_layers)
    out.add_feed_forward_length(config.ff_width)
    out.add_head_count(config.num_heads)
    out.add_head_count_kv(public["num_key_value_heads"])
    out.add_key_length(public["head_dim"])
    out.add_value_length(public["head_dim"])
    out.add_rope_dimension_count(public["head_dim"])
    out.add_rope_freq_base(config.rope_theta)
    out.add_layer_norm_rms_eps(config.norm_eps)
    out.add_vocab_size(model.vocab_size)
    out.add_file_type(gguf.LlamaFileType[{"f32": "ALL_F32"}.get(quant, f"MOSTLY_{quant.upper()}")])
    _add_tokenizer(out, bpe, how)
    for name, tensor in public_weights(model).items():
        if public["model_type"] in _PAIRED:
            tensor = _interleaved(name, tensor, config.num_heads, public["num_key_value_heads"])
        array = tensor.cpu().float().numpy()
        wide = gguf.GGMLQuantizationType.F32 if array.ndim == 1 else kind
        out.add_tensor(_named(name), gguf.quantize(array, wide), raw_dtype=wide)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors in fp32 under the names of Llama and Qwen3."""
    import gguf

    reader = gguf.GGUFReader(path)
    kind = reader.fields["general.architecture"].contents()
    paired = kind in _PAIRED
    heads = reader.fields[f"{kind}.attention.head_count"].contents() if paired else 0
    kv_heads = reader.fields[f"{kind}.attention.head_count_kv"].contents() if paired else 0
    back = {theirs: ours for ours, theirs in (_TOP | _INNER).items()}
    found: dict[str, Tensor] = {}
    for tensor in reader.tensors:
        stem, _, part = tensor.name.rpartition(".")
        *block, inner = stem.split(".")
        name = f"layers.{block[1]}.{back[inner]}.{part}" if block else f"{back[inner]}.{part}"
        name = name if inner == "output" else f"model.{name}"
        value = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        found[name] = _half_split(name, value, heads, kv_heads) if paired else value
    return found


def _fits(model: GPT, tokenizer: Tokenizer, quant: str) -> BPE:
    config = model.config
    if config.layout == "gpt2":
        raise Unsupported(
            "GGUF has the gpt2 layout with another GELU than this model's",
            fix="--to hf keeps it exactly",
            verb="export",
        )
    if not isinstance(tokenizer, BPE) or tokenizer.splits is None:
        raise Unsupported(
            "of vocabularies, only byte-level BPE that splits as GPT-2 or SmolLM does can be written to GGUF",
            fix="--to hf or --to pt",
            verb="export",
        )
    widths = {config.d_model, config.ff_width}
    if quant.startswith("q") and any(width % _BLOCK for width in widths):
        raise Unsupported(
            f"{quant} takes {_BLOCK} numbers together, which do not divide {sorted(widths)}",
            fix="--quant f16",
            verb="export",
        )
    return tokenizer


def special(bpe: BPE, how: Mapping[str, Any], kind: str) -> int:
    """Return the token that `how` names for `kind` (bos, eos, pad, unk), or the boundary."""
    said = how.get(f"{kind}_token")
    found = bpe.token(str(said["content"] if isinstance(said, Mapping) else said))
    return bpe.boundary if found is None else found


def _add_tokenizer(out: Any, bpe: BPE, how: Mapping[str, Any]) -> None:
    told = json.loads(bpe.to_json())
    model, added = told["model"], told.get("added_tokens", ())
    vocab = model["vocab"] | {token["content"]: token["id"] for token in added}
    tokens = sorted(vocab, key=vocab.get)
    out.add_tokenizer_model("gpt2")
    assert bpe.splits is not None  # or it would not be written
    out.add_tokenizer_pre(bpe.splits)
    out.add_token_list(tokens)
    kinds = {token["id"]: _CONTROL if token.get("special") else _ADDED for token in added}
    kinds[bpe.boundary] = _CONTROL
    out.add_token_types([kinds.get(n, _NORMAL) for n in range(len(tokens))])
    out.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    out.add_bos_token_id(bos := special(bpe, how, "bos"))
    out.add_eos_token_id(special(bpe, how, "eos"))
    if how.get("pad_token"):
        out.add_pad_token_id(special(bpe, how, "pad"))
    out.add_add_bos_token(not how or bpe.begins_with(bos) or bool(how.get("add_bos_token")))
    if isinstance(chat := how.get("chat_template"), str):
        out.add_chat_template(chat)


def _named(name: str) -> str:
    stem, _, kind = name.removeprefix("model.").rpartition(".")
    if not stem.startswith("layers."):
        return f"{_TOP[stem]}.{kind}"
    _, number, inner = stem.split(".", 2)
    return f"blk.{number}.{_INNER[inner]}.{kind}"


def _interleaved(name: str, tensor: Tensor, heads: int, kv_heads: int) -> Tensor:
    """Bring the rows of q and k into the order in which llama.cpp turns pairs of a Llama."""
    count = _turned(name, heads, kv_heads)
    return tensor.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2) if count else tensor


def _half_split(name: str, tensor: Tensor, heads: int, kv_heads: int) -> Tensor:
    count = _turned(name, heads, kv_heads)
    return tensor.unflatten(0, (count, -1, 2)).transpose(1, 2).flatten(0, 2) if count else tensor


def _turned(name: str, heads: int, kv_heads: int) -> int:
    return heads if "q_proj" in name else kv_heads if "k_proj" in name else 0
