"""Bases that are refused: not whole, of other sizes, no numbers, no model that writes, no tokenizer."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from surefoot.config.fields import changed
from surefoot.data.bpe import train_bpe
from surefoot.engine.foresee.cards import find_place
from surefoot.errors import DataError, Unsupported
from surefoot.nn.adapters import Lora, Pretrained, adapt, in_full
from surefoot.nn.pretend import hollow
from surefoot.recipes.code import recipe
from surefoot.recipes.code.base import _from_hub, find_base, public_config, quiet
from surefoot.recipes.code.loading import load_base
from surefoot.recipes.code.model import arranged, held_in, make
from surefoot.recipes.code.settings import CodeConfig
from surefoot.recipes.code.speaker import CodeSpeaker
from surefoot.recipes.code.tiers import tiers

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

Weights = dict[str, torch.Tensor]


def saved(folder: Path, change: Callable[[Weights, dict[str, Any]], object]) -> Path:
    """A tiny base, its weights and its configuration changed."""
    from safetensors.torch import load_file, save_file

    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=300, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    told = json.loads((folder / "config.json").read_text())
    change(tensors, told)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "tokenizer.json").write_text(train_bpe(["a text"], 300).to_json())
    return folder


def load(folder: Path, four_bit: bool = False) -> Any:
    cpu = torch.device("cpu")
    return load_base(folder, torch.float32, cpu, four_bit=four_bit, double_quant=True)


WRONG: dict[str, tuple[Callable[[Weights, dict[str, Any]], object], str]] = {
    "gone": (lambda w, _: w.pop("model.norm.weight"), "1 weights .* are not there: model.norm"),
    "other": (lambda _, c: c.update(intermediate_size=32), "3 weights .* of other sizes than"),
    "nan": (lambda w, _: w["model.norm.weight"].fill_(float("nan")), "weights that are no numbers"),
    "alien": (lambda _, c: c.update(model_type="martian"), "cannot load .* `martian`"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_base_that_is_not_what_it_says_is_refused(tmp_path: Path, kind: str) -> None:
    change, said = WRONG[kind]
    with pytest.raises(DataError, match=said) as caught:
        load(saved(tmp_path, change))
    assert len(str(caught.value)) < 600  # and not all that a library knows


def test_a_base_that_reads_ahead_is_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=64,
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="reads ahead"):
        load(tmp_path)


def test_a_base_without_fused_attention_is_refused_in_words(tmp_path: Path) -> None:
    config = transformers.BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=64)
    transformers.BloomForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="has no fused attention for") as caught:
        load(tmp_path)
    assert "Llama" in str(caught.value)


def test_a_base_that_cannot_be_computed_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path, lambda *_: None)
    model = transformers.LlamaForCausalLM
    forward = model.forward
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(DataError, match="cannot be computed: ZeroDivisionError"):
            load(folder)

    def louder(*args: Any, **more: Any) -> Any:
        found = forward(*args, **more)
        found.logits = 1.1 * found.logits
        return found

    monkeypatch.setattr(model, "forward", louder)
    with pytest.raises(DataError, match="makes logits in a way that is not known"):
        load(folder)


@pytest.mark.parametrize("four_bit", [False, True])
def test_a_whole_base_is_loaded(tmp_path: Path, four_bit: bool) -> None:
    if four_bit:
        pytest.importorskip("bitsandbytes")
    model = load(saved(tmp_path, lambda *_: None), four_bit)
    found = [m.support_avx512bf16_for_cpu for m in model.modules() if hasattr(m, "quant_state")]
    assert len(found) == 7 * four_bit and not any(found)  # no layer repacks itself


@pytest.mark.parametrize("kind", ["GPT2", "GPTBigCode", "OPT", "BioGpt"])
def test_rows_are_no_longer_than_a_base_has_positions(kind: str, tmp_path: Path) -> None:
    sizes = {"num_attention_heads": 2, "num_hidden_layers": 1, "hidden_size": 16, "vocab_size": 64}
    public = getattr(transformers, f"{kind}Config")(**sizes, max_position_embeddings=48)
    public.save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_config(public)
    asked = changed(CodeConfig(), {"model.base": str(tmp_path), "model.context": 49})
    with pytest.raises(IndexError):
        model(input_ids=torch.zeros(1, 49, dtype=torch.int64))
    with pytest.raises(DataError, match="49 tokens are more than this base has") as failure:
        arranged(asked, model)
    assert failure.value.fix == "--context 48"
    fits = arranged(changed(asked, {"model.context": 48}), model)
    fits(torch.zeros(1, 48, dtype=torch.int64))
    found = list(tiers(recipe, asked, find_place("8GB", tmp_path / "none.json", "auto")))
    assert [(tier.context, tier.number, tier.fits) for tier in found] == [(48, 1, True)]


@pytest.mark.parametrize(("experts", "told"), [(0, 56), (8, 5)])
def test_which_share_is_in_four_bits_is_told_and_foreseen(
    experts: int, told: int, tmp_path: Path
) -> None:
    """Experts that are one tensor stay as they are, in a run and in its plan."""
    pytest.importorskip("bitsandbytes")
    sizes: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 448,
    }  # fmt: skip
    config: Any = transformers.LlamaConfig(**sizes)
    if experts:
        config = transformers.Qwen3MoeConfig(
            num_experts=experts, num_experts_per_tok=2, moe_intermediate_size=128, **sizes
        )
    whole = transformers.AutoModelForCausalLM.from_config(config)
    whole.save_pretrained(tmp_path)
    linear = sum(m.weight.numel() for m in whole.modules() if type(m) is torch.nn.Linear)
    numbers = sum(p.numel() for p in whole.parameters())
    head = whole.lm_head.weight.numel()
    assert told == round(100 * (linear - head) / numbers)
    real = load(tmp_path, four_bit=True)
    for parameter in real.parameters():
        parameter.requires_grad_(False)
    wanted = f"with {told}% of its numbers in 4 bits (nf4), the rest in float32"
    assert held_in(real) == wanted
    with FakeTensorMode(allow_non_fake_inputs=True):
        foreseen = hollow(config, torch.float32, four_bit=True, double_quant=True)
    held = [sum(p.nbytes for p in m.parameters()) for m in (real, foreseen)]
    assert held[0] == held[1]
    assert held_in(whole) == "in float32"


def test_weights_that_lie_the_other_way_round_come_back_from_four_bits(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = transformers.GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=80)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with quiet():
        bits = Pretrained(adapt(load(tmp_path, four_bit=True), Lora(4), 0), 8).eval()
        whole: Any = in_full(bits, load(tmp_path), Lora(4))
    x = torch.arange(8)[None]
    assert torch.allclose(whole(input_ids=x).logits, bits(x), atol=1e-5)
    assert not torch.allclose(Pretrained(load(tmp_path), 8).eval()(x), bits(x), atol=1e-5)


def test_bits_that_cannot_be_computed_here_say_why_and_what_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(CodeConfig(), {"adapter.method": "qlora"})
    place: Any = SimpleNamespace(device=torch.device("mps"))
    with pytest.raises(Unsupported, match="4 bits cannot be computed on mps") as caught:
        make(config, None, place, "fp32")  # type: ignore[arg-type]
    assert "--method lora" in str(caught.value)
    folder = saved(tmp_path, lambda *_: None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(Unsupported, match="bitsandbytes, which is not installed") as caught:
        load(folder, four_bit=True)
    assert "--method lora" in str(caught.value)


def test_a_folder_is_found_again_from_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "base", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    found = find_base("base")
    assert found.pinned == str(tmp_path / "base") and found.folder == tmp_path / "base"
    assert found.name == "base"


def test_what_is_no_base_says_what_it_is(tmp_path: Path) -> None:
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    (adapters / "adapter_config.json").write_text("{}")
    with pytest.raises(DataError, match="holds adapters") as caught:
        find_base(str(adapters))
    assert "--merge" in str(caught.value)
    other = saved(tmp_path / "other", lambda *_: None)
    pieces = {"type": "WordPiece", "unk_token": "?", "vocab": {"?": 0}}
    pieces |= {"continuing_subword_prefix": "#", "max_input_chars_per_word": 9}
    (other / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": pieces}))
    with pytest.raises(DataError, match=r"model\.base: this tokenizer is no BPE") as caught:
        find_base(str(other))
    assert "byte-level BPE" in str(caught.value) and "data.tokenizer" not in str(caught.value)


@pytest.mark.parametrize(
    ("ref", "meant"),
    [
        ("smolm2", "smollm2"), ("SmolLM-2", "smollm2"), ("tinny", "tiny"), ("0042-cod", "0042-code"),
        ("phi-2", None), ("a/folder", None),
    ],
)  # fmt: skip
def test_a_base_that_is_nearly_one_of_ours_is_asked_about(
    ref: str, meant: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUREFOOT_RUNS", str(tmp_path))
    (tmp_path / "0042-code").mkdir()
    (tmp_path / "0042-code" / "run.json").write_text(json.dumps({"id": "x", "recipe": "code"}))
    for find in (find_base, public_config):
        with pytest.raises(DataError) as failure:
            find(ref)
        fix = str(failure.value.fix)
        assert fix.startswith(f"did you mean {meant}? Else give smollm2, tiny") or meant is None
        assert ("did you mean" in fix) == (meant is not None)


@pytest.mark.parametrize(
    ("kind", "offline", "told"),
    [
        ("LocalEntryNotFoundError", False, "the hub is out of reach"),
        ("LocalEntryNotFoundError", True, "HF_HUB_OFFLINE is set"),
        ("HFValidationError", False, "there is no such model"),
        ("OSError", False, "OSError: said"),
    ],
)
def test_why_the_hub_gives_nothing_is_told_in_words(
    monkeypatch: pytest.MonkeyPatch, kind: str, offline: bool, told: str
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    error = getattr(hub.errors, kind, OSError)("said\nand more")

    def refuse(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.delenv("SUREFOOT_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "snapshot_download", refuse)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(DataError, match=told) as failure:
        _from_hub("some/model", ["config.json"])
    assert "Error" not in failure.value.what or kind == "OSError"
    assert failure.value.fix is not None and "a base on this disk" in failure.value.fix


def test_layouts_that_gguf_is_not_written_of_are_told_the_way_there(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    nothing: Any = None
    with pytest.raises(Unsupported, match="Llama and Qwen3 layouts: model_type qwen2") as caught:
        CodeSpeaker({}, nothing)._as_gpt(tmp_path, 64)
    assert caught.value.fix is not None and "--to hf --merge" in caught.value.fix
