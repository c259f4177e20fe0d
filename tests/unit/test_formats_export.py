"""Export: other programs read the same model, and nothing is left where one does not."""

import errno
import json
import pickle
import stat
import sys
import warnings

import pytest
import torch
from safetensors import SafetensorError

from surefoot import use
from surefoot.config.model import GPTConfig
from surefoot.data.bpe import BPE, train_bpe
from surefoot.data.tokenizer import Characters
from surefoot.engine.adopt import read_folder, read_weights
from surefoot.engine.kit.speak import TextSpeaker
from surefoot.errors import (
    CheckFailed,
    ConfigError,
    DataError,
    OutOfResources,
    RunError,
    Unsupported,
)
from surefoot.formats import export, llama, onnx_file
from surefoot.formats.export import through_llama, write
from surefoot.nn.foreign import gpt_weights
from surefoot.nn.gpt import GPT

SIZES = {"d_model": 64, "num_layers": 2, "num_heads": 4, "context": 48, "d_ff": 96}
KINDS = {
    "qwen3": {},
    "llama": {"qk_norm": False, "num_kv_heads": 2, "rope_theta": 500.0},
    "arcee": {"qk_norm": False, "num_kv_heads": 2, "feed_forward": "relu2"},
    "gpt2": {"layout": "gpt2"},
    "untied": {"tie_embeddings": False, "num_kv_heads": 1, "norm_eps": 1e-6},
}


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(["she sells sea shells on the sea shore; the shells she sells"] * 2, 290)


def awake(bpe, kind):
    """A model whose every parameter matters."""
    model = GPT(GPTConfig(**{**SIZES, **KINDS[kind]}), bpe.vocab_size, seed=1)
    stream = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=stream), alpha=0.1)
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_the_same_model_and_tokenizer(tmp_path, bpe, kind):
    transformers = pytest.importorskip("transformers")
    found = write(awake(bpe, kind), bpe, tmp_path / "out", "hf")
    assert found.positions >= 512 and found.scale > 0.3 and found.agree == 1.0
    assert found.difference < 1e-4 * found.scale and found.by.startswith("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "she sells  sea shells,\n\nand ünicode"
    assert theirs(text)["input_ids"] == bpe.encode(text).tolist()
    assert theirs.eos_token_id == bpe.boundary
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & stat.S_IRGRP


@pytest.mark.parametrize("to", ["hf", "pt"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_transformers_it_is_read_back_here(tmp_path, bpe, kind, to, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    found = write(awake(bpe, kind), bpe, tmp_path / "out", to)
    assert found.difference == 0 and "transformers" not in found.by.replace(
        "(transformers is not", ""
    )


@pytest.mark.parametrize("kind", ["qwen3", "llama", "arcee", "untied"])
@pytest.mark.parametrize(
    ("quant", "near"), [("f32", 1e-5), ("f16", 1e-2), ("q8_0", 0.1), ("q4_0", 0.5)]
)
def test_gguf_holds_the_same_model(tmp_path, bpe, kind, quant, near):
    gguf = pytest.importorskip("gguf")
    found = write(awake(bpe, kind), bpe, tmp_path / "m.gguf", "gguf", quant)
    assert found.difference <= near * found.scale
    assert found.by.startswith("llama.cpp" if llama.installed() else "read back")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    arch = kind if kind in ("llama", "arcee") else "qwen3"
    assert reader.fields["general.architecture"].contents() == arch
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == bpe.vocab_size and tokens[bpe.boundary] == "<|endoftext|>"
    merges = [tuple(m.split(" ")) for m in reader.fields["tokenizer.ggml.merges"].contents()]
    assert merges == [tuple(m) for m in json.loads(bpe.to_json())["model"]["merges"]]
    expected = {"llama": 2, "arcee": 2, "untied": 1}.get(kind, 4)
    assert reader.fields[f"{arch}.attention.head_count_kv"].contents() == expected


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_a_model_that_suffers_from_rounding_is_written_and_another_is_not(
    tmp_path, bpe, kind, monkeypatch
):
    pytest.importorskip("gguf")
    from surefoot.formats import gguf_file

    model = awake(bpe, kind)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter[:, ::32] *= 30  # what is beside them in four bits becomes zero
    found = write(model, bpe, tmp_path / "m.gguf", "gguf", "q4_0")
    assert found.difference > 0.3 * found.scale
    real = gguf_file.public_weights
    wrong = lambda model: {n: t * (1.2 if "up_proj" in n else 1) for n, t in real(model).items()}
    monkeypatch.setattr(gguf_file, "public_weights", wrong)
    with pytest.raises(CheckFailed, match=r"up\.weight was written with other numbers"):
        write(awake(bpe, kind), bpe, tmp_path / "n.gguf", "gguf", "q4_0")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_a_file_that_computes_something_else_from_the_right_weights_is_refused(
    tmp_path, bpe, monkeypatch
):
    pytest.importorskip("gguf")
    if not llama.installed():
        pytest.skip("llama.cpp computes it")
    from surefoot.formats import gguf_file

    model = awake(bpe, "llama")
    found = write(model, bpe, tmp_path / "m.gguf", "gguf", "q8_0")
    assert 0 < found.apart < 0.1
    for name in ("_interleaved", "_half_split"):  # rows as they are: read back, they are right
        monkeypatch.setattr(gguf_file, name, lambda name, tensor, *_: tensor)
    with pytest.raises(CheckFailed, match="computes something else"):
        write(model, bpe, tmp_path / "n.gguf", "gguf", "q8_0")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_ollama_is_told_what_the_model_needs(tmp_path, bpe):
    pytest.importorskip("gguf")
    assert write(awake(bpe, "qwen3"), bpe, tmp_path / "o", "ollama", "f16").difference > 0
    lines = (tmp_path / "o" / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./model.gguf" and (tmp_path / "o" / "model.gguf").exists()
    assert "PARAMETER num_ctx 48" in lines and 'PARAMETER stop "<|endoftext|>"' in lines


def test_onnxruntime_computes_the_same_for_any_length(tmp_path, bpe):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = awake(bpe, "untied")
    assert write(model, bpe, tmp_path / "o", "onnx").by == "onnxruntime"
    assert (tmp_path / "o" / "tokenizer.json").read_text() == bpe.to_json()
    session = runtime.InferenceSession(tmp_path / "o" / "model.onnx")
    for shape in ((1, 1), (3, 48)):
        tokens = torch.randint(0, bpe.vocab_size, shape)
        (found,) = session.run(None, {"tokens": tokens.numpy()})
        with torch.no_grad():
            assert (model(tokens) - torch.from_numpy(found)).abs().max() < 1e-4


def test_onnx_without_its_packages_is_refused(tmp_path, bpe, monkeypatch):
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    with pytest.raises(Unsupported, match="needs onnx, onnxscript, onnxruntime"):
        write(awake(bpe, "qwen3"), bpe, tmp_path / "o", "onnx")
    assert not list(tmp_path.iterdir())


def test_rows_of_a_llama_are_in_the_order_of_llama_cpp(bpe):
    """Row 2i and 2i + 1 of a head are what the halves' rows i are here."""
    from surefoot.formats.gguf_file import _half_split, _interleaved

    rows = torch.arange(16.0).unsqueeze(1)  # two heads of eight
    name = "model.layers.0.self_attn.q_proj.weight"
    found = _interleaved(name, rows, 2, 1)
    assert found[:8, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert torch.equal(_half_split(name, found, 2, 1), rows)


@pytest.mark.parametrize(
    ("kind", "quant", "words"), [("gpt2", "f32", "GELU"), ("qwen3", "q8_0", "do not divide")]
)
def test_what_gguf_cannot_say_is_refused(tmp_path, bpe, kind, quant, words, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.setitem(SIZES, "d_ff", 100)
    with pytest.raises(Unsupported, match=words):
        write(awake(bpe, kind), bpe, tmp_path / "m.gguf", "gguf", quant)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_what_no_public_layout_has_is_kept_by_pt_alone(tmp_path, bpe, to, monkeypatch):
    more = {"softcap": 15.0, "value_embeddings": True, "feed_forward": "relu2"}
    monkeypatch.setitem(KINDS, "rich", more)
    words = "softcap or value_embeddings or relu2 together with qk_norm"
    with pytest.raises(Unsupported, match=words) as caught:
        write(awake(bpe, "rich"), bpe, tmp_path / "out", to)
    assert "--to onnx" in str(caught.value.fix) and "--to pt" in str(caught.value.fix)
    assert not list(tmp_path.iterdir())
    assert write(awake(bpe, "rich"), bpe, tmp_path / "out", "pt").difference == 0


def test_characters_go_to_hf_and_pt_alone(tmp_path, bpe, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: "gguf" if name == "gguf" else None)
    pytest.importorskip("gguf")
    letters = Characters("abc")
    model = GPT(GPTConfig(**SIZES), 3, seed=1)
    for to in ("hf", "pt"):
        write(model, letters, tmp_path / to, to)
        assert json.loads((tmp_path / to / "vocabulary.json").read_text())["alphabet"] == "abc"
    with pytest.raises(Unsupported, match="byte-level BPE"):
        write(model, letters, tmp_path / "m.gguf", "gguf")


def test_another_model_is_not_kept(tmp_path, bpe, monkeypatch):
    real = export.public_weights
    wrong = lambda model: {n: t * 1.01 for n, t in real(model).items()}
    monkeypatch.setattr(export, "public_weights", wrong)
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(CheckFailed, match="something else"):
        write(awake(bpe, "qwen3"), bpe, tmp_path / "out", "hf")
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_never_overwritten(tmp_path, bpe):
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match="exists already"):
        write(awake(bpe, "qwen3"), bpe, tmp_path / "out", "hf")


@pytest.mark.parametrize(
    ("to", "library"),
    [
        ("hf", SafetensorError("I/O error: No space left on device (os error 28)")),
        ("pt", RuntimeError("[enforce fail at inline_container.cc] . unexpected pos")),
        ("pt", OSError("10240 requested and 9360 written")),
    ],
)
def test_a_full_disk_is_said_in_our_words(tmp_path, bpe, to, library, monkeypatch):
    def full(*_, **__):
        raise library

    def refuse(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "save_file", full)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(type(library)):  # there is space: that was something else
        write(awake(bpe, "qwen3"), bpe, tmp_path / "out", to)
    monkeypatch.setattr(type(tmp_path), "write_bytes", refuse)
    with pytest.raises(OutOfResources, match=r"cannot write .*out: No space left") as caught:
        write(awake(bpe, "qwen3"), bpe, tmp_path / "out", to)
    assert "--out" in caught.value.fix and not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_is_said(tmp_path, bpe):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*: (File exists|Not a directory)"):
        write(awake(bpe, "qwen3"), bpe, tmp_path / "file" / "out", "pt")


def test_a_boundary_that_was_added_afterwards_has_its_place_in_gguf(tmp_path, bpe):
    pytest.importorskip("gguf")
    told = json.loads(bpe.to_json())
    vocab, border = told["model"]["vocab"], "<|endoftext|>"
    last = len(vocab) - 1
    name = next(n for n, at in vocab.items() if at == last)
    del vocab[border]
    vocab[name] = bpe.boundary
    told["added_tokens"][0]["id"] = last
    other = BPE(json.dumps(told))
    assert other.boundary == last
    model = GPT(GPTConfig(**SIZES), other.vocab_size, seed=1)
    assert write(model, other, tmp_path / "m.gguf", "gguf").agree == 1.0


def test_a_file_that_may_not_be_read_is_said(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(torch, "load", refused)
    (tmp_path / "a.pt").write_bytes(b"")
    with pytest.raises(DataError, match="cannot read it: Permission denied"):
        read_weights(tmp_path / "a.pt")


def test_a_llama_cpp_that_does_not_load_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(llama, "installed", lambda: True)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(Unsupported, match="does not load") as caught:
        llama.LlamaCpp(tmp_path / "m.gguf", 16)
    assert "reinstall" in caught.value.fix


def test_what_is_no_file_of_weights_is_refused_without_advice_of_libraries(tmp_path):
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(print, protocol=4))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for name in ("evil.pt", "cut.safetensors"):
            with pytest.raises(DataError, match="another format, damaged, or cut short"):
                read_weights(tmp_path / name)
    assert not heard


def test_who_samples_is_not_given_the_flags_of_an_export(tmp_path, bpe):
    pytest.importorskip("gguf")
    private = awake(bpe, "qwen3")
    private.config = private.config.model_copy(update={"value_embeddings": True})
    for model, what in ((awake(bpe, "gpt2"), "GELU"), (private, "value_embeddings")):
        speaker = TextSpeaker({"main": model}, bpe)
        with pytest.raises(Unsupported, match=what) as sampling:
            through_llama(speaker, "fp16")
        assert sampling.value.fix == "without --engine llama.cpp it is computed here"
        with pytest.raises(Unsupported, match=what) as exporting:
            write(model, bpe, tmp_path / "m.gguf", "gguf")
        assert exporting.value.fix.startswith("--to ") and exporting.value.verb == "export"
    with pytest.raises(Unsupported) as mine:
        through_llama(speaker, "bf16")
    assert mine.value.fix == "--dtype fp16, int8 or int4", "flags of the one who asks stay"


@pytest.mark.parametrize("kind", ["qwen3", "llama", "untied"])
def test_a_folder_comes_back_as_it_was(tmp_path, bpe, kind, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    model = awake(bpe, kind)
    write(model, bpe, tmp_path / "out", "hf")
    tensors, said = read_folder(tmp_path / "out")
    weights, _ = gpt_weights(tensors)
    ours = dict(model.named_parameters())
    assert weights.keys() == ours.keys()
    assert all(torch.equal(weights[name], ours[name]) for name in ours)
    for field, value in said["config"].items():
        assert getattr(model.config, field) == value, field
    assert said["tokenizer"].endswith("tokenizer.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "mamba"}, "none of llama, qwen3, arcee"),
        ({"hidden_act": "gelu", "attention_bias": True}, "hidden_act gelu, biases"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type yarn"),
        ({"head_dim": 128}, "wider than the model"),
    ],
)
def test_a_layout_that_is_not_ours_is_refused(tmp_path, bpe, change, words, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    write(awake(bpe, "qwen3"), bpe, tmp_path / "out", "hf")
    place = tmp_path / "out" / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | change))
    with pytest.raises(DataError, match=words):
        read_folder(tmp_path / "out")
    place.write_text("{")
    with pytest.raises(DataError, match="no model"):
        read_folder(tmp_path / "out")


@pytest.mark.parametrize(
    ("word", "format"),
    [("hf", "hf"), ("PyTorch", "pt"), ("llama.cpp", "gguf"), ("safetensors", "hf")],
)
def test_a_format_is_named_by_itself_or_by_its_program(word, format):
    assert use.format_named(word) == format


def test_an_unknown_format_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match="no format tourch") as caught:
        use.export("nowhere", "tourch", tmp_path / "x", runs=tmp_path)
    assert caught.value.problems[0].fix == "did you mean pt?"
