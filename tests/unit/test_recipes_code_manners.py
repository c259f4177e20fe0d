"""A base's tokenizer and its way to chat leave with the tuned model, and nothing else of its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot.data.bpe import alone_digits, train_bpe
from surefoot.errors import DataError
from surefoot.nn.adapters import Lora, Pretrained, Writer, adapt
from surefoot.recipes.code import base as bases
from surefoot.recipes.code.base import Base, find_base, random_base
from surefoot.recipes.code.loading import load_base
from surefoot.recipes.code.manners import manners, spoken
from surefoot.recipes.code.speaker import CodeSpeaker

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "sea or shore?"}]
TEXTS = ["<|im_start|>user\nshe  sells<|im_end|>", "ünicode <|tool|> , and ."]
LORA = Lora(2, 4.0, 0.0, ("all",), False, False, False)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer that has manners."""
    place = tmp_path_factory.mktemp("base")
    kept = os.environ.get("SUREFOOT_CACHE")
    os.environ["SUREFOOT_CACHE"] = str(place)
    try:
        bpe = train_bpe(["she sells sea shells on the sea shore; she sells shells"] * 2, 300)
        folder = random_base(bpe, 1).folder
    finally:
        os.environ.pop("SUREFOOT_CACHE")
        os.environ.update({"SUREFOOT_CACHE": kept} if kept else {})
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<|im_start|>",
        eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<|endoftext|>",
        additional_special_tokens=["<|tool|>"], padding_side="left", model_max_length=77,
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.auto_map = {"AutoModelForCausalLM": "somebody/theirs--modeling.Theirs"}
    model.generation_config = transformers.GenerationConfig(eos_token_id=[0, 300], pad_token_id=300)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def base(plain: Path, tmp_path: Path) -> Base:
    """A copy that a test may spoil."""
    folder = tmp_path / "base"
    folder.mkdir()
    for file in plain.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return find_base(str(folder))


def speaker(base: Base, adapted: bool) -> CodeSpeaker:
    where = torch.device("cpu")
    causal = load_base(base.folder, torch.float32, where, four_bit=False, double_quant=False)
    model = Pretrained(adapt(causal, LORA, 1) if adapted else causal, 32)
    models: dict[str, Any] = {"main": model}
    engines: Any = {"main": Writer(model, base.tokenizer.vocab_size)}
    return CodeSpeaker(
        models, base.tokenizer, "", base.tokenizer.boundary, engines, folder=base.folder,
        lora=LORA if adapted else None,
    )  # fmt: skip


def change(file: Path, **more: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | more))


def same_tokenizer(ours: Path, theirs: Path) -> None:
    a, b = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (ours, theirs))
    assert type(a) is type(b)
    read = a(TEXTS, padding=True)
    assert dict(read) == dict(b(TEXTS, padding=True)) and any(
        0 in mask for mask in read["attention_mask"]
    )
    for skip in (False, True):
        texts = [
            [one.decode(ids, skip_special_tokens=skip) for ids in read["input_ids"]]
            for one in (a, b)
        ]
        assert texts[0] == texts[1]
    for asked in (False, True):
        chats = [
            one.apply_chat_template(TALK, tokenize=False, add_generation_prompt=asked)
            for one in (a, b)
        ]
        assert chats[0] == chats[1] and "be brief<|im_end|>" in chats[0]
    assert a.special_tokens_map == b.special_tokens_map and a.chat_template == b.chat_template
    for name in (
        "padding_side",
        "truncation_side",
        "model_max_length",
        "clean_up_tokenization_spaces",
    ):
        assert getattr(a, name) == getattr(b, name)
    assert {n: str(t) for n, t in a.added_tokens_decoder.items()} == {
        n: str(t) for n, t in b.added_tokens_decoder.items()
    }


@pytest.mark.parametrize(("merge", "adapted"), [(False, True), (True, True), (False, False)])
@pytest.mark.parametrize("inside", [False, True])
def test_the_tokenizer_is_that_of_the_base(
    base: Base, tmp_path: Path, merge: bool, adapted: bool, inside: bool
) -> None:
    if inside:  # as most bases before 2025 have it
        template = base.folder / "chat_template.jinja"
        change(base.folder / "tokenizer_config.json", chat_template=template.read_text())
        template.unlink()
    speaker(base, adapted).export("main", tmp_path / "out", "hf", "f32", merge)
    told = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"
    same_tokenizer(tmp_path / "out", base.folder)
    if merge or not adapted:
        found, wanted = (
            transformers.AutoModelForCausalLM.from_pretrained(at).generation_config
            for at in (tmp_path / "out", base.folder)
        )
        assert found.eos_token_id == wanted.eos_token_id == [0, 300] and found.pad_token_id == 300
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert "auto_map" not in config and "_name_or_path" not in config


def test_nothing_that_names_code_or_a_place_is_taken_along(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {
        "auto_map": {"AutoTokenizer": ["theirs.Theirs", None]}, "tokenizer_class": "Theirs",
        "tokenizer_file": "/etc/hosts", "vocab_file": "../../secret", "name_or_path": "/home/them",
        "trust_remote_code": True, "use_auth_token": "hf_1234", "custom": "x",
    }  # fmt: skip
    change(base.folder / "tokenizer_config.json", **bad)
    ran = tmp_path / "ran"
    for name in ("theirs.py", "tokenizer.pkl", "pytorch_model.bin", "setup.sh"):
        (base.folder / name).write_text(f"open({str(ran)!r}, 'w')")
    (base.folder / "additional_chat_templates").mkdir()
    (base.folder / "additional_chat_templates" / "tools.jinja").write_bytes(b"{{ 1 }}\r\n")
    out = tmp_path / "out"
    speaker(base, False).export("main", out, "hf", "f32", False)
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert files == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja", "additional_chat_templates/tools.jinja",
    }  # fmt: skip
    kept = json.loads((out / "tokenizer_config.json").read_text())
    assert kept["tokenizer_class"] == "PreTrainedTokenizerFast" and kept["model_max_length"] == 77
    assert not (bad.keys() - {"tokenizer_class"}) & kept.keys() and not ran.exists()
    assert (out / "additional_chat_templates" / "tools.jinja").read_bytes() == b"{{ 1 }}\r\n"
    found = transformers.AutoTokenizer.from_pretrained(out, trust_remote_code=True)
    assert found.get_chat_template("tools") == "{{ 1 }}\n" and not ran.exists()


def _leads_out(folder: Path) -> None:
    secret = folder.parent / "secret.jinja"
    secret.write_text("a secret")
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").symlink_to(secret)


def _folder_leads_out(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / "a.jinja").write_text("a secret")
    (folder / "additional_chat_templates").symlink_to(folder.parent / "elsewhere")


def _goes_round(folder: Path) -> None:
    (folder / "added_tokens.json").symlink_to(folder / "added_tokens.json")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "special_tokens_map.json")


def _huge(folder: Path) -> None:
    with (folder / "chat_template.jinja").open("r+b") as file:
        file.truncate(1 << 40)


def _deep(folder: Path) -> None:
    (folder / "generation_config.json").write_text("[" * 200_000)


def _list(folder: Path) -> None:
    (folder / "special_tokens_map.json").write_text("[1]")


def _no_text(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_leads_out, "leads out"), (_folder_leads_out, "leads out"), (_goes_round, "cannot be read"),
        (_pipe, "is no file"), (_huge, "is larger than 16 MB"), (_deep, "is no JSON"),
        (_list, "holds no settings"), (_no_text, "is no text"),
    ],
)  # fmt: skip
def test_a_hostile_folder_is_refused_in_words(
    base: Base, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(base.folder)
    with pytest.raises(DataError, match=said) as caught:
        manners(base.folder)
    assert str(base.folder) in str(caught.value.where)


def test_the_cache_of_the_hub_links_to_its_own_store_and_nowhere_else(tmp_path: Path) -> None:
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    folder.mkdir(parents=True)
    (blobs / "a").write_text(TEMPLATE)
    (folder / "chat_template.jinja").symlink_to("../../blobs/a")
    assert manners(folder) == {"chat_template.jinja": TEMPLATE}
    (tmp_path / "b").write_text("a secret")
    (blobs / "a").unlink()
    (blobs / "a").symlink_to(tmp_path / "b")
    with pytest.raises(DataError, match="leads out"):
        manners(folder)


def test_a_gguf_splits_texts_as_the_base_does_and_so_does_what_is_made_of_it(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path / "cache"))
    file = base.folder / "tokenizer.json"
    change(file, pre_tokenizer=json.loads(alone_digits().__getstate__()))
    told = json.loads(file.read_text())  # spaces in a row are a token, which "  1" is to begin with
    last = max(told["model"]["vocab"].values())
    for text, at in (("ĠĠ", last), ("Ġ1", last - 1)):
        gone = next(t for t, n in told["model"]["vocab"].items() if n == at)
        del told["model"]["vocab"][gone]
        told["model"]["vocab"][text] = at
        told["model"]["merges"] = [m for m in told["model"]["merges"] if "".join(m) != gone]
        told["model"]["merges"].append([text[0], text[1]])
    file.write_text(json.dumps(told))
    base, text = find_base(str(base.folder)), "x =  1, 23\n  4"
    assert base.tokenizer.splits == "smollm"
    wanted = base.tokenizer.encode(text).tolist()
    assert last in wanted and last - 1 not in wanted
    speaker(base, False).export("main", tmp_path / "m.gguf", "gguf", "f32", False)
    again = bases._gguf(tmp_path / "m.gguf")
    assert again.tokenizer.splits == "smollm" and again.tokenizer.encode(text).tolist() == wanted
    api = pytest.importorskip("llama_cpp")
    program = api.Llama(str(tmp_path / "m.gguf"), vocab_only=True, verbose=False)
    assert program.tokenize(text.encode(), add_bos=False) == wanted


@pytest.mark.parametrize("to", ["gguf", "ollama"])
def test_a_gguf_knows_how_to_chat_and_where_a_turn_ends_and_becomes_a_base_again(
    base: Base, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "m.gguf"
    speaker(base, True).export("main", out, to, "f32", False)
    if to == "ollama":
        lines = (out / "Modelfile").read_text()
        assert "<|im_start|>{{ .Role }}" in lines and "{{ .Prompt }}" not in lines
        assert 'PARAMETER stop "<|im_end|>"' in lines and 'stop "<|endoftext|>"' in lines
        out = out / "model.gguf"
    tokenizer, reader = base.tokenizer, gguf.GGUFReader(out)
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert said["tokenizer.chat_template"] == TEMPLATE
    for kind, name in (("bos", "<|im_start|>"), ("eos", "<|im_end|>"), ("padding", "<|im_end|>")):
        assert said[f"tokenizer.ggml.{kind}_token_id"] == tokenizer.token(name)
    assert said["tokenizer.ggml.add_bos_token"] is False
    types = said["tokenizer.ggml.token_type"]
    assert all(types[tokenizer.token(n) or 0] == 3 for n in ("<|tool|>", "<|im_start|>"))
    if to == "gguf":
        again = bases._gguf(out).folder
        told = spoken(manners(again))
        assert told["chat_template"] == TEMPLATE and told["eos_token"] == "<|im_end|>"
        chat = transformers.AutoTokenizer.from_pretrained(again)
        assert chat.apply_chat_template(TALK, tokenize=False).endswith("shore?<|im_end|>\n")


def test_a_template_of_another_kind_is_left_to_ollama() -> None:
    from surefoot.formats.export import _template

    assert _template("[INST]{{ messages[0]['content'] }}[/INST]") == []
    assert _template(None) == ['TEMPLATE """{{ .Prompt }}"""']
