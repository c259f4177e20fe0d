"""Write with llama.cpp: a GPT goes there through a GGUF, which is checked and not kept.

Chosen with `surefoot sample --engine llama.cpp`, where the package llama-cpp-python is installed.
Tokens are drawn here, from the logits that it computes, so every setting means the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surefoot.errors import RunError, Unsupported
from surefoot.nn.gpt import Past

__all__ = ["QUANT_OF", "LlamaCpp", "installed", "lent"]

QUANT_OF = {"fp32": "f32", "fp16": "f16", "int8": "q8_0", "int4": "q4_0"}
_FP32 = 0  # llama.cpp's number of the type, for keys and values
_ERRORS = 4  # its level of messages


def installed() -> bool:
    """Tell whether llama-cpp-python is there."""
    return find_spec("llama_cpp") is not None


class LlamaCpp:
    """A GGUF as llama.cpp computes it, one text at a time; like `nn.decode.Decoder`.

    Keys and values are fp32. Matrices stay as they are in the file: with llama.cpp's rearranged
    copies of them, q8_0 stopped the process on a processor with AMX. Raises Unsupported without the
    package, RunError where it refuses the file.
    """

    device = torch.device("cpu")

    def __init__(self, path: Path, context: int) -> None:
        if not installed():
            raise Unsupported(
                "the package llama-cpp-python is missing", fix="pip install llama-cpp-python"
            )
        try:
            import llama_cpp
        except (ImportError, OSError, RuntimeError) as error:  # compiled for another system, mostly
            fix = "pip install --force-reinstall --no-cache-dir llama-cpp-python"
            raise Unsupported(f"llama-cpp-python does not load: {error}", fix=fix) from None

        self.context, self._api = context, llama_cpp
        self._heard: list[str] = []
        self._hear = llama_cpp.llama_log_callback(self._listen)
        llama_cpp.llama_log_set(self._hear, ctypes.c_void_p(0))
        how: Any = llama_cpp.llama_model_default_params()
        how.n_gpu_layers, how.use_extra_bufts = 0, False
        self._model: Any = llama_cpp.llama_model_load_from_file(str(path).encode(), how)
        if not self._model:
            raise RunError(f"llama.cpp refuses {path.name}: {''.join(self._heard).strip()}")
        what: Any = llama_cpp.llama_context_default_params()
        what.n_ctx = what.n_batch = what.n_ubatch = context
        what.n_threads = what.n_threads_batch = torch.get_num_threads()
        what.type_k = what.type_v = _FP32
        what.flash_attn_type = 0  # it would round to fp16
        self._state: Any = llama_cpp.llama_init_from_model(self._model, what)
        self._words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch: Any = llama_cpp.llama_batch_init(context, 0, 1)
        self._read = 0

    def empty(self, batch: int) -> list[Past]:
        """Forget what was read. Only one text is written at a time."""
        assert batch == 1, "llama.cpp is given one text at a time"
        self._api.llama_memory_clear(self._api.llama_get_memory(self._state), True)
        self._read = 0
        return []

    def __call__(self, tokens: Tensor, pasts: list[Past]) -> Tensor:
        """Read i64[1, T] after what was read and return the logits [1, V] of what comes next."""
        self._decode(tokens[0].tolist(), every=False)
        return self._row(-1).unsqueeze(0)

    def logits(self, tokens: Tensor) -> Tensor:
        """Return [B, T, V] for i64[B, T]: rows one after another, all positions."""
        rows = []
        for row in tokens:
            self.empty(1)
            self._decode(row.tolist(), every=True)
            rows.append(torch.stack([self._row(i) for i in range(len(row))]))
        return torch.stack(rows)

    def close(self) -> None:
        """Give its memory back."""
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._state)
        self._api.llama_model_free(self._model)

    def _decode(self, tokens: list[int], every: bool) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, self._read + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = every or i == len(tokens) - 1
        if self._api.llama_decode(self._state, batch):
            raise RunError(f"llama.cpp stopped: {''.join(self._heard).strip()}")
        self._read += len(tokens)

    def _row(self, place: int) -> Tensor:
        found = self._api.llama_get_logits_ith(self._state, place)
        return torch.from_numpy(np.ctypeslib.as_array(found, shape=(self._words,)).copy())

    def _listen(self, level: int, text: bytes, _: Any) -> None:
        if level == _ERRORS:
            self._heard.append(text.decode(errors="replace"))


@contextmanager
def lent(path: Path, context: int) -> Iterator[LlamaCpp]:
    """Lend llama.cpp with the model of the GGUF at `path`."""
    found = LlamaCpp(path, context)
    try:
        yield found
    finally:
        found.close()
