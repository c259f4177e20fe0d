"""Give a trained GPT to other programs, and check on the spot that it is the same model.

    write(model, ..., to="hf")   a folder for `transformers`: Llama, Qwen3, Arcee or GPT-2 layout
    write(model, ..., to="pt")   a state dict of torch and the tokenizer, as two files
    write(model, ..., to="gguf") one file for llama.cpp; see gguf_file.py
    write(model, ..., to="ollama") that file and a Modelfile
    write(model, ..., to="onnx") a graph for onnxruntime; see onnx_file.py, and the tokenizer

What is written is read again by the library that it is for, where that is installed, and compared
on 512 positions. Nothing is left behind when something fails.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from surefoot.data.bpe import BPE
from surefoot.data.tokenizer import Tokenizer
from surefoot.engine.adopt import read_weights
from surefoot.engine.kit.sample import Decodes
from surefoot.engine.kit.speak import Speaker, TextSpeaker
from surefoot.errors import CheckFailed, OutOfResources, RunError, Unsupported
from surefoot.formats import llama, onnx_file
from surefoot.nn.foreign import gpt_weights
from surefoot.nn.gpt import GPT
from surefoot.nn.public import public_config, public_weights
from surefoot.seeds import derive
from surefoot.track.lock import scratch

__all__ = [
    "QUANTISED",
    "QUANTS",
    "Exported",
    "Exporter",
    "compared",
    "refuse_other",
    "staged",
    "through_llama",
    "write",
]

QUANTISED = ("gguf", "ollama")
QUANTS = {"f32": 1e-4, "f16": 1e-2}
"""Largest difference, relative to the logits."""
_APART = 0.5  # of q8_0 and q4_0 from rounded weights: llama.cpp rounds inputs of products, too
_ROUNDED = {"q8_0": 1 / 200, "q4_0": 1 / 7.5}  # of the largest of 32 numbers: what rounding changes
_POSITIONS = 512
_WEIGHTS, _TOKENIZER = "tiny_gpt_best.pt", "tokenizer_bpe_best.json"
_CHATML = """TEMPLATE \"\"\"{{ range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
\"\"\""""

Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its logits are from the original's on some positions.

    `difference` is the largest, `scale` the largest logit; `agree` is the share of positions with
    the same most probable token. `apart` is the root mean square of differences, of that of logits around
    their mean at a position: 1.4 where two models have nothing in common. `by` computed the logits of what
    was written.
    """

    path: Path
    positions: int
    difference: float
    scale: float
    agree: float
    apart: float
    by: str


@runtime_checkable
class Exporter(Protocol):
    """A speaker that writes its models for other programs itself."""

    def export(self, learner: str, out: Path, to: str, quant: str, merge: bool) -> Exported:
        """Like `write`, for the model of `learner`; `merge` makes adapters part of the weights."""
        ...


def write(
    model: GPT, tokenizer: Tokenizer, out: Path, to: str, quant: str = "f32",
    how: Mapping[str, Any] | None = None,
) -> Exported:  # fmt: skip
    """Write `model` to `out`, which must not exist yet, and compare.

    `how` texts begin and end and how a chat is written goes into a GGUF, in the words of
    tokenizer_config.json; without it, texts stand between two boundaries.

    Raises RunError where `out` exists, Unsupported where a package is missing or the format cannot
    say it, CheckFailed where what was written is another model.
    """
    if out.exists():
        raise RunError(f"{out} exists already", fix="another --out, or remove it")
    model = model.float().eval()
    with staged(out) as place:
        if to == "hf":
            by, logits = _write_hf(model, tokenizer, place)
        elif to == "pt":
            by, logits = _write_pt(model, tokenizer, place)
        elif to == "onnx":
            by, logits = _write_onnx(model, tokenizer, place)
        elif to == "ollama":
            by, logits = _write_ollama(model, tokenizer, place, quant, how or {})
        else:
            by, logits = _write_gguf(model, tokenizer, place, quant, how or {})
        found = compared(model, logits, out, by)
        if to in QUANTISED and quant in _ROUNDED:
            twin = _rounded(model, place if to == "gguf" else place / "model.gguf", quant, by)
            refuse_other(compared(twin, logits, out, by), quant)
        else:
            refuse_other(found, quant if to in QUANTISED else "f32")
    return found


def _rounded(model: GPT, path: Path, quant: str, by: str) -> GPT:
    """Return the model with the weights in a GGUF, which must be those of `model`, rounded.

    How much rounding changes what is computed depends on the model, and small ones suffer most, so
    that logits alone would not tell a rounded model from another one.
    """
    from surefoot.formats import gguf_file

    twin = _refilled(model, gguf_file.read(path))
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters()):
        size = 32 if ours.dim() > 1 else 1
        rows = ours.detach().cpu().reshape(-1, size)
        away = (rows - theirs.detach().reshape(-1, size)).abs().amax(1)
        if (away > rows.abs().amax(1) * _ROUNDED[quant] + 1e-6).any():
            what = f"{name} was written with other numbers than {quant} explains"
            raise CheckFailed(what, where=by, fix="report this; nothing was kept")
    return twin


def refuse_other(found: Exported, quant: str) -> None:
    """Raise CheckFailed where what was written is another model, more than `quant` explains."""
    far = found.apart > _APART
    if found.difference > QUANTS[quant] * found.scale if quant in QUANTS else far:
        raise CheckFailed(
            f"what was written computes something else: logits up to {found.scale:.2f} differ "
            f"by {found.difference:.2g}",
            where=found.by, fix="report this; nothing was kept",
        )  # fmt: skip


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Lend a place beside `out` that becomes it when all went well, and else disappears."""
    place = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove(place)
        yield place
        place.rename(out)
    except (OSError, RuntimeError, SafetensorError) as error:
        stopped = error if isinstance(error, OSError) and error.errno else _refusal(out)
        if stopped is None:
            raise
        kind = OutOfResources if stopped.errno in (errno.ENOSPC, errno.EDQUOT) else RunError
        fix = "another --out, with free space, that you may write to"
        raise kind(f"cannot write {out}: {stopped.strerror}", fix=fix) from None
    finally:
        with suppress(OSError):
            _remove(place)


def _refusal(out: Path) -> OSError | None:
    """Return what keeps anything from being written beside `out`; libraries say it in their own words."""
    probe = out.with_name(f".{out.name}.probe")
    try:
        probe.write_bytes(bytes(1 << 16))
    except OSError as error:
        return error
    finally:
        with suppress(OSError):
            probe.unlink()
    return None


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


@torch.no_grad()
def compared(model: Any, logits: Logits, out: Path, by: str) -> Exported:
    """Return how far `logits` are from those of `model` on some positions drawn at random."""
    device = next(model.parameters()).device
    length = min(model.config.context, _POSITIONS)
    rows = -(-_POSITIONS // length)
    stream = torch.Generator().manual_seed(derive(0, "export"))
    tokens = torch.randint(0, model.vocab_size, (rows, length), generator=stream)
    ours, theirs = model(tokens.to(device)).cpu(), logits(tokens)
    agree = (ours.argmax(-1) == theirs.argmax(-1)).double().mean()
    off, scale = ours - theirs, ours.abs().max()
    spread = (ours - ours.mean(-1, keepdim=True)).square().mean().sqrt()
    apart = float(off.square().mean().sqrt() / spread)
    difference = float(off.abs().max())
    return Exported(out, tokens.numel(), difference, float(scale), float(agree), apart, by)


def _write_hf(model: GPT, tokenizer: Tokenizer, place: Path) -> tuple[str, Logits]:
    place.mkdir()
    border = tokenizer.boundary if isinstance(tokenizer, BPE) else None
    config = public_config(model.config, model.vocab_size, border)
    tensors = {n: t.cpu().contiguous() for n, t in public_weights(model).items()}
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    _json(place / "config.json", config)
    (place / "model.safetensors").chmod((place / "config.json").stat().st_mode)
    if isinstance(tokenizer, BPE):
        end = tokenizer.decode([tokenizer.boundary])
        (place / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        about = {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end,
            "model_max_length": model.config.context, "clean_up_tokenization_spaces": False,
        }  # fmt: skip
        _json(place / "tokenizer_config.json", about)
        ends = {"bos_token_id": border, "eos_token_id": border}
        _json(place / "generation_config.json", ends)
    else:
        (place / "vocabulary.json").write_text(tokenizer.to_json(), encoding="utf-8")
    if find_spec("transformers") is None:
        tensors, _ = read_weights(place / "model.safetensors")
        return "read back here (transformers is not installed)", _refilled(model, tensors)
    return _public(place)


def _public(place: Path) -> tuple[str, Logits]:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    twin = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    return f"transformers {transformers.__version__}", lambda tokens: twin(tokens).logits


def _write_pt(model: GPT, tokenizer: Tokenizer, place: Path) -> tuple[str, Logits]:
    place.mkdir()
    held = {
        "model": {name: p.detach().cpu().clone() for name, p in model.named_parameters()},
        "config": {**model.config.model_dump(), "vocab_size": model.vocab_size},
    }
    torch.save(held, place / _WEIGHTS)
    name = _TOKENIZER if isinstance(tokenizer, BPE) else "vocabulary.json"
    (place / name).write_text(tokenizer.to_json(), encoding="utf-8")
    tensors, _ = read_weights(place / _WEIGHTS)
    return "torch.load(weights_only=True)", _refilled(model, tensors)


def _write_gguf(
    model: GPT, tokenizer: Tokenizer, place: Path, quant: str, how: Mapping[str, Any]
) -> tuple[str, Logits]:
    if find_spec("gguf") is None:
        raise Unsupported("the package gguf is missing", fix="pip install gguf")
    from surefoot.formats import gguf_file

    gguf_file.write(model, tokenizer, place, quant, how)
    if llama.installed():
        return f"llama.cpp, as {quant}", partial(_by_llama, place, model.config.context)
    return f"read back here with gguf, as {quant}", _refilled(model, gguf_file.read(place))


def _write_ollama(
    model: GPT, tokenizer: Tokenizer, place: Path, quant: str, how: Mapping[str, Any]
) -> tuple[str, Logits]:
    place.mkdir()
    found = _write_gguf(model, tokenizer, place / "model.gguf", quant, how)
    from surefoot.formats import gguf_file

    assert isinstance(tokenizer, BPE)  # or there were no GGUF
    ends = {tokenizer.boundary, gguf_file.special(tokenizer, how, "eos")}
    lines = [
        "FROM ./model.gguf",
        *_template(how.get("chat_template")),
        f"PARAMETER num_ctx {model.config.context}",
        "PARAMETER temperature 0.8",
        "PARAMETER top_p 0.95",
        *(f"PARAMETER stop {json.dumps(tokenizer.decode([end]))}" for end in sorted(ends)),
    ]
    (place / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return found


def _template(chat: Any) -> list[str]:
    """Return how Ollama, whose language for templates is another, is to write a chat.

    Where the template is not of the kind that most are, none: it looks for one like that in the GGUF.
    """
    if not chat:
        return ['TEMPLATE """{{ .Prompt }}"""']
    return [_CHATML] if all(mark in str(chat) for mark in ("<|im_start|>", "<|im_end|>")) else []


def _write_onnx(model: GPT, tokenizer: Tokenizer, place: Path) -> tuple[str, Logits]:
    place.mkdir()
    onnx_file.write(model, place / "model.onnx")
    name = "tokenizer.json" if isinstance(tokenizer, BPE) else "vocabulary.json"
    (place / name).write_text(tokenizer.to_json(), encoding="utf-8")
    return "onnxruntime", partial(onnx_file.logits, place / "model.onnx")


def _by_llama(path: Path, context: int, tokens: Tensor) -> Tensor:
    """Return what llama.cpp computes from a GGUF."""
    with llama.lent(path, context) as computer:
        return computer.logits(tokens)


def _refilled(model: GPT, tensors: Mapping[str, Tensor]) -> GPT:
    """Return a fresh model with weights that were read from a file."""
    weights, _ = gpt_weights(tensors)
    twin = GPT(model.config, model.vocab_size)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(weights[name])
    return twin.eval()


def _json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def through_llama(speaker: Speaker, dtype: str) -> TextSpeaker:
    """Return `speaker` with llama.cpp to compute in place of its models, whose weights go.

    The way there is a GGUF, compared as any export and then removed. Raises RunError where this is
    no language model, Unsupported where GGUF has no such layout, vocabulary or type.
    """
    if not isinstance(speaker, TextSpeaker):
        raise RunError("llama.cpp writes text, and this recipe does not")
    if dtype not in llama.QUANT_OF:
        raise Unsupported(f"llama.cpp is not given {dtype}", fix="--dtype fp16, int8 or int4")
    engines: dict[str, Decodes] = {}
    for name, model in speaker.models.items():
        if not isinstance(model, GPT):
            raise RunError(f"{name} is no language model that llama.cpp knows")
        with scratch() as place:
            path = place / "model.gguf"
            try:
                write(model, speaker.tokenizer, path, "gguf", llama.QUANT_OF[dtype])
            except Unsupported as error:
                if error.verb == "export":  # whose flags are not those of who asks
                    error.fix = "without --engine llama.cpp it is computed here"
                raise
            engines[name] = llama.LlamaCpp(path, model.config.context)
        model.to("meta")
    return replace(speaker, engines=engines)
