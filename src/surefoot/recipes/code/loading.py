"""Load the model of a base, whole and able to learn to write, or say what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surefoot.errors import DataError, Unsupported
from surefoot.nn.adapters import Pretrained, Writer, guard_four_bit
from surefoot.recipes.code.base import EXTRA, in_a_line, quiet

__all__ = ["load_base", "require_bits"]

_ALIKE = 1e-4  # of the difference of a token itself, what it may make to those before it


def load_base(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    *,
    four_bit: bool,
    double_quant: bool,
) -> nn.Module:
    """Return the model in `folder` on `device`, its linear layers in 4 bits if asked.

    Raises DataError for weights that do not fit, Unsupported where 4 bits cannot be computed.
    """
    import transformers

    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa"}
    if four_bit:
        options |= {"quantization_config": _bits(dtype, double_quant), "device_map": str(device)}
    with quiet():
        try:
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, trust_remote_code=False,
                output_loading_info=True, ignore_mismatched_sizes=True, **options,
            )  # fmt: skip
        except Exception as error:
            if "scaled_dot_product_attention" in str(error):
                what = f"model.base: transformers has no fused attention for {folder}"
                raise DataError(what, fix="a base that has, like Llama or Qwen") from None
            what = f"model.base: cannot load {folder}: {in_a_line(error)}"
            raise DataError(what, fix="a whole model for text that transformers knows") from None
    model, told = loaded
    _whole(folder, told)
    guard_four_bit(model)
    model.generation_config = transformers.GenerationConfig()
    found: nn.Module = model if four_bit else model.to(device)
    _causal(folder, found)
    return found


def _whole(folder: Path, told: Mapping[str, Any]) -> None:
    """Raise DataError where weights are missing: the library would make them up."""
    other = [name for name, *_ in sorted(told["mismatched_keys"])]
    for names, how in (
        (other, "of other sizes than config.json says"),
        (told["missing_keys"], "not there"),
    ):
        if names:
            first = ", ".join(sorted(names)[:3])
            what = f"model.base: {len(names)} weights of {folder} are {how}: {first}"
            raise DataError(what, fix="a whole model for text that transformers knows")


def _causal(folder: Path, model: Any) -> None:
    """Raise DataError where what the model makes of a token depends on later ones, or is no number.

    Nor is a model taken that cannot be computed, or whose logits come about in a way of its own.
    """
    device = model.get_input_embeddings().weight.device
    x = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]], device=device)
    ours, what = Pretrained(model, x.size(1)), None
    write = Writer(ours)
    try:
        with torch.no_grad():  # one by one, so that equal tokens are computed alike
            one, other = (ours.hidden(row.unsqueeze(0))[0][0] for row in x)
            apart = (one - other).float().abs().amax(-1)  # by token
            wanted = model(input_ids=x[:1], use_cache=False).logits[0].float()
            found = ours.logits(one)
            write(x[:1], write.empty(1))
    except Exception as error:  # of any kind, from layers that we do not know
        what = f"cannot be computed: {in_a_line(error)}"
    else:
        far = 4 * torch.finfo(one.dtype).eps * float(wanted.abs().max())
        if not bool(torch.isfinite(one).all()):
            what = "has weights that are no numbers"
        elif float(apart[:3].max()) > _ALIKE * float(apart[3]):
            what = "reads ahead, so it cannot learn to say what comes next"
        elif float((wanted - found).abs().max()) > far:
            what = "makes logits in a way that is not known here"
    if what is not None:
        raise DataError(f"model.base: {folder} {what}", fix="a model that writes text")


def require_bits() -> None:
    """Raise Unsupported where a base cannot be held in 4 bits."""
    if find_spec("bitsandbytes") is None:
        raise Unsupported(
            "bases of 4 bits take bitsandbytes, which is not installed",
            fix=f"{EXTRA}, or --method lora",
        )


def _bits(dtype: torch.dtype, double_quant: bool) -> Any:
    require_bits()
    import transformers

    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=dtype,
    )  # fmt: skip
