"""A tuned model that writes, and how it is given to other programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from surefoot.config.model import GPTConfig
from surefoot.data.bpe import BPE
from surefoot.engine import TextSpeaker
from surefoot.engine.adopt import read_folder
from surefoot.errors import DataError, RunError, Unsupported
from surefoot.formats.export import Exported, compared, refuse_other, staged, write
from surefoot.nn.adapters import Lora, Pretrained, in_full
from surefoot.nn.foreign import gpt_sizes, gpt_weights
from surefoot.nn.gpt import GPT
from surefoot.recipes.code.base import quiet
from surefoot.recipes.code.loading import load_base
from surefoot.recipes.code.manners import ABOUT, GENERATION, manners, spoken, without_code
from surefoot.track.lock import scratch

__all__ = ["CodeSpeaker"]

_FORMATS = ("hf", "gguf", "ollama")
_ELSE = "--to hf --merge; llama.cpp's convert_hf_to_gguf.py takes that folder"


@dataclass(frozen=True)
class CodeSpeaker(TextSpeaker):
    """A pretrained model from `folder`, with adapters like `lora`, or None where all is tuned.

    `double_quant` is None for a base that is not held in 4 bits.
    """

    folder: Path = Path()
    lora: Lora | None = None
    double_quant: bool | None = None

    def export(self, learner: str, out: Path, to: str, quant: str, merge: bool) -> Exported:
        """Write adapters in the layout of `peft`, or with `merge` a whole model; compare.

        GGUF holds a whole model of the Llama or Qwen3 architecture. Raises RunError where `out`
        exists, Unsupported for other formats, CheckFailed where the logits differ.
        """
        if out.exists():
            raise RunError(f"{out} exists already", fix="another --out, or remove it")
        if to not in _FORMATS:
            raise Unsupported(f"a tuned model is not written as {to}", fix="--to hf or --to gguf")
        model = cast(Pretrained, self.models[learner])
        with quiet():
            whole: Any = in_full(model, _load(self.folder), self.lora)
        reference = Pretrained(whole, min(model.config.context, 512))
        if to == "hf":
            with staged(out) as place:
                if self.lora is not None and not merge:
                    self._write_adapters(whole, place)
                    return self._checked(reference, place, out, self._adapted)
                self._write_whole(self._merged(model), place)
                return self._checked(reference, place, out, _load)
        with scratch() as folder:
            place = folder / "model"
            self._write_whole(self._merged(model), place)
            how = spoken(manners(self.folder))
            return write(*self._as_gpt(place, reference.config.context), out, to, quant, how)

    def _merged(self, model: Pretrained) -> Any:
        """Return the model in fp32, the adapters in its weights."""
        with quiet():
            whole: Any = in_full(model, _load(self.folder), self.lora)
            return whole if self.lora is None else whole.merge_and_unload(safe_merge=True)

    def _adapted(self, place: Path) -> nn.Module:
        """Read adapters as another program would: on top of the base that they were trained on."""
        from peft import PeftModel

        base: Any = _load(self.folder, self.double_quant)
        found: nn.Module = PeftModel.from_pretrained(base, place)
        return found

    def _checked(
        self, reference: Pretrained, place: Path, out: Path, read: Callable[[Path], nn.Module]
    ) -> Exported:
        import transformers

        with quiet():
            twin: Any = read(place).eval()
        by = f"transformers {transformers.__version__}"
        found = compared(reference, lambda tokens: twin(input_ids=tokens).logits, out, by)
        refuse_other(found, "f32")
        return found

    def _write_adapters(self, whole: Any, place: Path) -> None:
        for config in whole.peft_config.values():
            config.base_model_name_or_path = str(self.folder)
            config.inference_mode = True
        with quiet():
            whole.save_pretrained(place)
        self._write_tokenizer(place)
        (place / GENERATION).unlink(missing_ok=True)  # that of the base's folder counts

    def _write_whole(self, causal: Any, place: Path) -> None:
        place.mkdir(parents=True)
        with quiet():
            causal.save_pretrained(place)
        without_code(place / "config.json")
        (place / GENERATION).unlink(missing_ok=True)  # of `load_base`: it names no end
        self._write_tokenizer(place)

    def _write_tokenizer(self, place: Path) -> None:
        bpe = cast(BPE, self.tokenizer)
        (place / "tokenizer.json").write_text(bpe.to_json(), encoding="utf-8")
        end = bpe.decode([bpe.boundary])
        about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end}
        for name, text in {
            ABOUT: json.dumps(about, indent=2) + "\n",
            **manners(self.folder),
        }.items():
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_bytes(text.encode())

    def _as_gpt(self, place: Path, context: int) -> tuple[GPT, BPE]:
        """Return the merged model as our own, which writes GGUF."""
        try:
            tensors, said = read_folder(place)
        except DataError as error:
            what = f"GGUF is written here of Llama and Qwen3 layouts: {error.what}"
            raise Unsupported(what, fix=_ELSE) from None
        weights, _ = gpt_weights(tensors)
        sizes, _ = gpt_sizes(weights, said)
        told = {k: v for k, v in said["config"].items() if k in GPTConfig.model_fields}
        config = GPTConfig(**{**told, **sizes, "context": context})
        gpt = GPT(config, len(weights["embed.weight"]))
        with torch.no_grad():
            for name, parameter in gpt.named_parameters():
                parameter.copy_(weights[name])
        return gpt, cast(BPE, self.tokenizer)


def _load(folder: Path, double_quant: bool | None = None) -> nn.Module:
    """Return the model of a folder in fp32 on the CPU, quantised where `double_quant` says how."""
    return load_base(
        folder, torch.float32, torch.device("cpu"), four_bit=double_quant is not None,
        double_quant=bool(double_quant),
    )  # fmt: skip
