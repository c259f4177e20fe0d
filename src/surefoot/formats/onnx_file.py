"""ONNX: the graph from tokens to logits, of any batch and length up to the context.

Written by torch's exporter (packages onnx and onnxscript) and read by onnxruntime.
"""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from surefoot.errors import Unsupported
from surefoot.nn.decode import Decoder
from surefoot.nn.gpt import GPT

__all__ = ["logits", "write"]

_NEEDED = ("onnx", "onnxscript", "onnxruntime")


class _Plain(nn.Module):
    """A GPT in operations that have no gradient of their own, which ONNX could not name."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return Decoder(self.model).logits(tokens)


def write(model: GPT, path: Path) -> None:
    """Write `tokens` i64[B, T] -> `logits` f32[B, T, V]. Raises Unsupported without the packages."""
    absent = [name for name in _NEEDED if find_spec(name) is None]
    if absent:
        raise Unsupported(f"ONNX needs {', '.join(absent)}", fix=f"pip install {' '.join(absent)}")
    example = torch.zeros(2, min(model.config.context, 8), dtype=torch.int64)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=model.config.context)
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it remarks on packages that this graph does not need
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about torch's own older parts
            program = torch.onnx.export(
                _Plain(model), (example,), dynamo=True, verbose=False,
                input_names=["tokens"], output_names=["logits"],
                dynamic_shapes={"tokens": {0: batch, 1: length}},
            )  # fmt: skip
            assert program is not None
            program.save(path)
    finally:
        log.setLevel(level)


def logits(path: Path, tokens: Tensor) -> Tensor:
    """Return what onnxruntime computes, f32[B, T, V] for i64[B, T]."""
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"tokens": tokens.numpy()})[0])
