"""Peaks of a card's memory, foreseen and counted, for adapters on models with random weights.

    PRETENDED_CARD=card.so python -m tests.pretended.peaks    # a line of JSON for each case

The cases are those of tests/gpu/adapters.py, of smaller models.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from tests.pretended import card

import bitsandbytes as bnb  # isort: skip
import torch  # isort: skip
from bitsandbytes.functional import quantize_4bit  # isort: skip
from tests.gpu import adapters  # isort: skip

from surefoot.engine.place import repeatable  # isort: skip
from surefoot.nn.adapters import guard_four_bit  # isort: skip
from surefoot.recipes.code.loading import load_base  # isort: skip

ROW, WORDS = 384, (6000, 128)  # the peak is in the loss, or in a layer
SMALL = {
    "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 16,
    "max_position_embeddings": 2048,
}  # fmt: skip


def load(
    path: Path, dtype: torch.dtype, device: torch.device, *, four_bit: bool, double_quant: bool
) -> Any:
    """Load a model onto the card. In 4 bits it is packed at home: the library knows no such tensors."""
    home = torch.device("cpu")
    model: Any = load_base(path, dtype, home, four_bit=False, double_quant=double_quant).to(device)
    if four_bit:
        head = model.get_output_embeddings()
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if type(child) is torch.nn.Linear and child is not head:
                    setattr(module, name, packed(child, dtype))
        model.is_loaded_in_4bit = True
    guard_four_bit(model)
    return model


def packed(linear: Any, dtype: torch.dtype) -> Any:
    """Return a layer of `bitsandbytes` whose weights lie on the card, in NF4 with quantised constants."""
    small: Any = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=linear.bias is not None, compute_dtype=dtype,
        quant_type="nf4", compress_statistics=True, device="meta",
    )  # fmt: skip
    codes, state = quantize_4bit(
        linear.weight.inner, compress_statistics=True, quant_type="nf4", blocksize=64
    )
    state.to("cuda")
    weight: Any = torch.nn.Parameter(codes.to("cuda"), requires_grad=False)
    weight.quant_state, weight.bnb_quantized, weight.quant_type = state, True, "nf4"
    weight.compress_statistics, weight.blocksize, weight.module = True, 64, small
    small.weight, small.quant_state, small.bias = weight, state, linear.bias
    return small


def main() -> None:
    """Print what was foreseen of each case, and what it took."""
    warnings.simplefilter("ignore")
    adapters.SIZES.update(SMALL)
    adapters.TILED["memory.mlp_tile"] = adapters.LEAN["memory.mlp_tile"] = 128
    adapters.load_base = load
    repeatable(torch.device("cuda"))
    for words in WORDS:
        adapters.SIZES["vocab_size"] = words
        with tempfile.TemporaryDirectory() as folder:
            bases = adapters.random_models(Path(folder))
            for layout, method, more in adapters.CASES:
                config = adapters.settings(bases[layout], method, more, ROW)
                need, taken = adapters.foreseen(config), adapters.taken(config, bases[layout])
                told = {"case": [str(words), layout, method, *more], "foreseen": need.peak}
                print(json.dumps({**told, "taken": taken}), flush=True)


if __name__ == "__main__":
    assert card.HELD.now == 0
    sys.exit(main())
