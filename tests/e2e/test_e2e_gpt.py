"""The gpt recipe as a person uses it: documents, a vocabulary of its own, bits by byte, samples."""

from __future__ import annotations

import io
import json
import math
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import PINS, QUICK

from surefoot.data.bpe import BPE
from surefoot.engine import journal
from surefoot.formats import llama
from surefoot.track.folder import runs_dir

WORDS = [
    "the",
    "lobster",
    "is",
    "a",
    "crab",
    "that",
    "walks",
    "and",
    "the",
    "crab",
    "is",
    "a",
    "lobster",
    "that",
    "swims",
    "in",
    "the",
    "sea",
]


@pytest.fixture(scope="module")
def wiki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that are named and headed like WikiText's."""
    folder = tmp_path_factory.mktemp("wiki")
    for part, count in (("train", 30), ("valid", 6), ("test", 5)):
        text = ""
        for n in range(count):
            body = " ".join(WORDS[(n * k) % len(WORDS)] for k in range(1, 40))
            text += f" \n = {WORDS[n % 16]} = \n \n {body} . \n"
        (folder / f"wiki.{part}.tokens").write_text(text)
    return folder


def words(path: Path, *more: str | Path, steps: int = 6) -> list[str]:
    settings = [word for name, value in (PINS | QUICK).items() for word in (f"--{name}", value)]
    first = ["train", "gpt", "--preset", "tiny", "--path", path, "--max-steps", steps]
    return [str(word) for word in [*first, *settings, "--context", 16, *more]]


@pytest.fixture(scope="module")
def runs(wiki: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from surefoot.cli import main

    folder = tmp_path_factory.mktemp("gpt") / "runs"
    source = wiki / "wiki.train.tokens"
    assert main([*words(source, "--runs", folder, "--name", "a", "--quiet", "--new")]) == 0
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_layers_that_are_computed_again_change_no_bit_of_a_run(
    wiki: Path, tmp_path: Path, precision: str
) -> None:
    from surefoot.cli import main

    more = [
        "--quiet", "--new", "--dropout", "0.2", "--micro-batch-size", "2", "--context-warmup", "4",
        "--batch-warmup", "4", "--document-masks", "yes", "--machine.precision", precision, "--ops.within",
        "sdpa", "--ops.orthogonalise", "bf16",
    ]  # fmt: skip
    left = []
    for again in ("no", "yes"):
        asked = ["--runs", tmp_path, "--name", again, "--checkpointing", again]
        assert main(words(wiki / "wiki.train.tokens", *more, *asked)) == 0
        run = tmp_path / again
        (last,) = run.glob("checkpoints/step-*6/main.model.safetensors")
        records = (run / "journal").read_bytes()[journal._SIZE :]  # the header names the run
        left.append((records, last.read_bytes()))
    assert len(left[0][0]) >= 6 * journal._SIZE and left[0] == left[1]


def rows(runs: Path, kind: str) -> list[dict[str, Any]]:
    text = (runs / "a" / "metrics.jsonl").read_text()
    return [row for row in map(json.loads, text.splitlines()) if row["kind"] == kind]


def test_losses_by_token_by_byte_and_by_word_say_the_same(runs: Path, wiki: Path) -> None:
    row = rows(runs, "eval")[-1]
    text = (wiki / "wiki.valid.tokens").read_text()
    bpe = BPE((runs / "a" / "tokenizer.json").read_text())
    tokens = len(bpe.encode(text)) + 5  # boundaries; the first is given
    nats = row["val_loss"] * tokens
    assert row["val_bits_per_byte"] == pytest.approx(
        nats / math.log(2) / len(text.encode()), rel=1e-3
    )
    by_word = len(text.split()) + text.count("\n")
    assert row["val_word_ppl"] == pytest.approx(math.exp(nats / by_word), rel=1e-2)


def test_what_is_said_about_the_data(surefoot: Any, runs: Path) -> None:
    told = surefoot("show", "a", "--runs", runs, "--json").ok().json
    data = json.loads((runs / "a" / "run.json").read_text())["data"]
    assert told["name"] == "a"
    assert [data[part]["documents"] for part in ("train", "val", "test")] == [30, 6, 5]
    assert data["vocab_size"] == BPE((runs / "a" / "tokenizer.json").read_text()).vocab_size


def test_it_writes_without_its_documents(surefoot: Any, runs: Path) -> None:
    asked = ("sample", "a", "--runs", runs, "--tokens", 12, "--json", "--device", "cpu")
    first = surefoot(*asked, "--prompt", "the crab").ok().json["text"]
    assert first and first == surefoot(*asked, "--prompt", "the crab").ok().json["text"]
    assert surefoot(*asked).ok().json["text"] != first


def test_the_test_set_is_measured_on_demand(surefoot: Any, runs: Path) -> None:
    found = surefoot("evaluate", "a", "--runs", runs, "--json", "--device", "cpu").ok().json
    scores = found["metrics"]["main"]
    assert {"val_loss", "test_loss", "test_bits_per_byte", "test_word_ppl"} <= set(scores)


def test_mistakes_are_said_before_anything_is_made(surefoot: Any, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "only one"}\n')
    for more, code in ((["--vocab-size", "100"], 2), ([], 2)):
        answer = surefoot(*words(tmp_path / "one.jsonl", "--runs", tmp_path / "runs", *more))
        assert answer.code == code, answer.err
    assert not (tmp_path / "runs").exists()


def test_several_texts_at_once_are_the_ones_alone(
    surefoot: Any, runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts").write_text("the crab\nthe sea\n")
    asked = (
        "sample",
        "a",
        "--runs",
        runs,
        "--tokens",
        9,
        "--json",
        "--device",
        "cpu",
        "--min-p",
        0.01,
    )
    found = surefoot(*asked, "--prompts", tmp_path / "prompts", "--samples", 2).ok().json["texts"]
    assert [(t["prompt"], t["seed"]) for t in found] == [
        (p, s) for p in ("the crab", "the sea") for s in (0, 1)
    ]
    last = surefoot(*asked, "--prompt", "the sea", "--seed", 1).ok().json["text"]
    assert found[-1]["text"] == last


def test_it_goes_on_with_what_is_typed(
    surefoot: Any, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("the crab\nthe sea\n"))
    asked = ("sample", "a", "--runs", runs, "--tokens", 5, "--device", "cpu", "--repl")
    lines = surefoot(*asked, "--dtype", "bf16", "--stream").ok().out
    assert lines.startswith("the crab") and "\nthe sea" in lines


def test_llama_cpp_writes_the_same(surefoot: Any, runs: Path) -> None:
    asked = ("sample", "a", "--runs", runs, "--tokens", 40, "--json", "--device", "cpu")
    found = surefoot(*asked, "--engine", "llama.cpp", "--temperature", 0.7)
    if llama.installed():
        assert found.ok().json["text"] == surefoot(*asked, "--temperature", 0.7).ok().json["text"]
    else:
        assert found.code == 3 and "pip install llama-cpp-python" in found.err


def test_a_gguf_completes_a_prompt_by_itself(surefoot: Any, runs: Path, tmp_path: Path) -> None:
    package = pytest.importorskip("llama_cpp")
    model = tmp_path / "mine.gguf"
    surefoot("export", "a", "--runs", runs, "--to", "gguf", "--quant", "f16", "--out", model).ok()
    computer = package.Llama(str(model), n_ctx=16, n_threads=1, verbose=False)
    said = computer("the crab", max_tokens=6, temperature=0)["choices"][0]["text"]
    computer.close()
    asked = ("sample", "a", "--runs", runs, "--tokens", 6, "--json", "--device", "cpu")
    told = surefoot(*asked, "--prompt", "the crab", "--temperature", 0).ok().json["text"]
    assert said == told


def test_another_tokenizer_is_refused(surefoot: Any, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "a", tmp_path / "runs" / "a")
    kept = tmp_path / "runs" / "a" / "tokenizer.json"
    held = json.loads(kept.read_text())
    words = held["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    kept.write_text(json.dumps(held))
    asked = ("sample", "a", "--runs", tmp_path / "runs", "--tokens", 5, "--device", "cpu")
    found = surefoot(*asked)
    assert found.code == 2 and "it was trained with" in found.err
    for text, word in ((None, "missing"), ("{}", "damaged")):
        kept.unlink() if text is None else kept.write_text(text)
        found = surefoot(*asked)
        assert found.code == 2 and f"tokenizer.json is {word}" in found.err
        assert "surefoot resume" in found.err
    surefoot("resume", "a", "--runs", tmp_path / "runs", "--max-steps", 7).ok()
    assert kept.read_bytes() == (runs / "a" / "tokenizer.json").read_bytes()
    surefoot(*asked).ok()


def test_training_goes_on_with_its_own_tokenizer_alone(
    surefoot: Any, runs: Path, wiki: Path, tmp_path: Path
) -> None:
    given = tmp_path / "given.json"
    own = (runs / "a" / "tokenizer.json").read_text()
    given.write_text(own)
    more = ("--runs", tmp_path / "runs", "--name", "b", "--tokenizer", given)
    surefoot(*words(wiki / "wiki.train.tokens", *more, steps=3)).ok()
    held = json.loads(own)
    vocab = held["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    given.write_text(json.dumps(held))
    asked = ("resume", "b", "--runs", tmp_path / "runs", "--max-steps", 4, "--json")
    found = surefoot(*asked)
    assert found.code == 2 and "the data or their tokenizer changed since this run" in found.err
    found = surefoot("evaluate", "b", "--runs", tmp_path / "runs", "--device", "cpu")
    assert found.code == 2 and "it was trained with" in found.err and "--tokenizer" in found.err
    given.write_text(own)
    assert surefoot(*asked).ok().json["step"] == 4


def test_a_prompt_longer_than_the_context_is_said(surefoot: Any, runs: Path) -> None:
    prompt = "the crab walks and swims in the sea with a lobster " * 4
    found = surefoot("sample", "a", "--runs", runs, "--prompt", prompt, "--tokens", 3, "--device", "cpu")  # fmt: skip
    assert "the model sees the last 16" in found.ok().err


def test_what_the_data_cannot_give_is_said_and_kept(surefoot: Any, tmp_path: Path) -> None:
    texts = [" ".join(WORDS[n * k % 18] for k in range(1, 40)) for n in range(30)]
    kept = "".join(json.dumps({"text": text}) + "\n" for text in ["", *texts, " "])
    (tmp_path / "a.jsonl").write_bytes(kept.replace("sea", "s\udcffa").encode("utf-8", "surrogateescape"))  # fmt: skip
    more = ("--runs", tmp_path / "runs", "--name", "a", "--vocab-size", 4096, "--val-ratio", 0.1)
    said = surefoot(*words(tmp_path / "a.jsonl", *more, steps=3)).ok()
    notes = json.loads((tmp_path / "runs" / "a" / "run.json").read_text())["data"]["notes"]
    for words_of_it in (
        ", not 4,096",
        "empty documents, left out: 2",
        "not UTF-8, read as U+FFFD",
    ):
        assert words_of_it in said.out + said.err
        assert any(words_of_it in note for note in notes)


def test_a_layout_without_a_public_name_is_said_twice(
    surefoot: Any, wiki: Path, tmp_path: Path
) -> None:
    more = ("--runs", tmp_path / "runs", "--name", "a", "--softcap", 15)
    said = surefoot(*words(wiki / "wiki.train.tokens", *more, steps=3)).ok()
    assert "ONNX and pt will keep it" in said.out + said.err
    for to in ("hf", "gguf"):
        found = surefoot(
            "export", "a", "--runs", tmp_path / "runs", "--to", to, "--out", tmp_path / to
        )
        assert found.code == 3 and "softcap" in found.err, found.err
        assert "--to onnx" in found.err and "--to pt" in found.err
        assert not (tmp_path / to).exists()


def test_flags_that_do_not_go_together_are_refused(surefoot: Any, runs: Path) -> None:
    for more in (
        ["--repl", "--json"], ["--prompt", "a", "--repl"], ["--stop", ""], ["--stream", "--json"],
        ["--stream", "--samples", 2], ["--engine", "llama.cpp", "--device", "cuda"],
    ):  # fmt: skip
        assert surefoot("sample", "a", "--runs", runs, *more).code == 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--tokens", "1e3"], "'1e3': expected a whole number from 1 to 1,000,000"),
        (["--tokens", "1000000000000"], "expected a whole number from 1 to"),
        (["--samples", "0"], "expected a whole number from 1 to"),
        (["--temperature", "nan"], "expected 0 (always the likeliest) or more"),
        (["--temperature", "warm"], "'warm': expected 0"),
        (["--top-p", "0"], "a share above 0"),
        (["--min-p", "1.5"], "a share from 0 to 1"),
        (["--repetition-penalty", "inf"], "a factor above 0"),
        (["--prompts", "."], "Is a directory"),
        (["--prompt", "ab\udcff", "--device", "cpu"], "at position 2 is half a character"),
    ],
)
def test_what_cannot_be_asked_for_is_said(
    surefoot: Any, runs: Path, more: list[str], words: str
) -> None:
    found = surefoot("sample", "a", "--runs", runs, *more)
    assert found.code == 2 and words in found.err, found.err
    assert "Traceback" not in found.err and "_count" not in found.err


@pytest.mark.parametrize("device", ["tpu", ""])
def test_a_device_that_nobody_knows_is_refused(surefoot: Any, runs: Path, device: str) -> None:
    found = surefoot("sample", "a", "--runs", runs, "--device", device)
    assert found.code == 3 and "no such device" in found.err and "cuda:N" in found.err


def test_what_gguf_cannot_say_is_known_before_training_and_to_the_engine(
    surefoot: Any, wiki: Path, tmp_path: Path
) -> None:
    more = ("--runs", tmp_path / "runs", "--name", "a", "--layout", "gpt2", "--context-warmup", 9)
    said = surefoot(*words(wiki / "wiki.train.tokens", *more, "--corpus", "pydocs", steps=3)).ok()
    told = said.out + said.err
    assert "data.corpus pydocs is not read" in told
    assert "GGUF has it with another GELU" in told
    assert "data.context_warmup lasts 9 steps, and training ends at 3" in told
    asked = ("sample", "a", "--runs", tmp_path / "runs", "--engine", "llama.cpp", "--tokens", 3)
    found = surefoot(*asked)
    assert (found.code == 3 and "without --engine llama.cpp" in found.err) or not llama.installed()


@pytest.mark.filterwarnings("ignore")
def test_out_and_in_again_and_training_goes_on(
    surefoot: Any, runs: Path, wiki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUREFOOT_RUNS", str(tmp_path / "runs"))
    asked = ("--tokens", 9, "--json", "--device", "cpu", "--prompt", "the crab", "--checkpoint")
    expected = surefoot("sample", "a", "--runs", runs, *asked, "best").ok().json["text"]
    for to in ("hf", "pt"):
        found = surefoot(
            "export", "a", "--runs", runs, "--to", to, "--out", tmp_path / to, "--json"
        )
        assert found.ok().json["positions"] >= 512 and found.json["agree"] == 1.0
    given = ("--path", wiki / "wiki.train.tokens", "--preset", "tiny", "--max-steps", 4)
    settings = [word for name, value in (PINS | QUICK).items() for word in (f"--{name}", value)]
    surefoot("import", tmp_path / "hf", *given, *settings, "--name", "b").ok()
    kept = tmp_path / "pt" / "tokenizer_bpe_best.json"
    pt = ("adopt", tmp_path / "pt" / "tiny_gpt_best.pt", "--recipe", "gpt", "--tokenizer", kept)
    surefoot(*pt, *given, *settings, "--name", "c").ok()
    for name in ("b", "c"):
        assert surefoot("sample", name, *asked, "last").ok().json["text"] == expected
        assert surefoot("resume", name, "--json").ok().json["step"] == 4


@pytest.mark.filterwarnings("ignore")
def test_weights_without_their_vocabulary_are_refused_and_told_how_to_come_to_it(
    surefoot: Any, runs: Path, wiki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    folder = tmp_path / "my words"
    surefoot("export", "a", "--runs", runs, "--to", "hf", "--out", folder).ok()
    whole = (folder / "tokenizer.json").rename(tmp_path / "kept.json")
    given = ("import", folder, "--path", wiki / "wiki.train.tokens", "--runs", tmp_path / "runs")
    asked = ("sample", "--runs", tmp_path / "runs", "--tokens", 9, "--prompt", "the crab", "--json")

    def refused() -> str:
        found = surefoot(*given)
        assert found.code == 2 and "only their own tokenizer says what" in found.err
        assert str(folder) in found.err and not (tmp_path / "runs").exists()
        return str(found.err)

    assert "copy the one that belongs to them" in refused()
    (folder / "tokenizer.model").touch()
    assert "transformers with sentencepiece can write one from tokenizer.model" in refused()
    (folder / "tokenizer.model").unlink()
    (folder / "vocabulary.json").touch()
    assert "its vocabulary is one of characters: --recipe charlm" in refused()
    (folder / "vocabulary.json").unlink()
    told = json.loads(whole.read_text("utf-8"))["model"]
    merges = (m if isinstance(m, str) else " ".join(m) for m in told["merges"])
    (folder / "vocab.json").write_text(json.dumps(told["vocab"]), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    kind = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    _, _, command = refused().partition("from vocab.json: ")
    *_, code, place = shlex.split(command.splitlines()[0])
    (tmp_path / "code.py").write_text(code)
    monkeypatch.setattr(sys, "argv", ["-c", place])
    settings = tmp_path / "tokenizer.yaml"
    settings.write_text(f"data:\n  tokenizer: {json.dumps(str(whole))}\n")
    surefoot(*given, "-c", settings, "--name", "b").ok()
    runpy.run_path(str(tmp_path / "code.py"))  # what the command does writes the same words
    surefoot(*given, "--name", "c").ok()
    texts = [surefoot(asked[0], name, *asked[1:]).ok().json["text"] for name in ("b", "c")]
    assert texts[0] == texts[1]


def test_no_export_without_a_known_format(surefoot: Any, runs: Path, tmp_path: Path) -> None:
    for more in (["--to", "hf"], ["--to", "exl2", "--out", "x"], ["--to", "hf", "--quant", "f16"]):
        assert surefoot("export", "a", "--runs", runs, *more).code == 2


@pytest.mark.parametrize("more", [("--document-masks", "yes"), ("--context-warmup", "9")])
def test_what_a_token_sees_changes_what_is_learned(
    wiki: Path, surefoot: Any, more: tuple[str, str]
) -> None:
    for name, flags in (("plain", ()), ("other", more)):
        surefoot(*words(wiki / "wiki.train.tokens", "--name", name, *flags, steps=3)).ok()
    losses = []
    for name in ("plain", "other"):
        lines = (runs_dir() / name / "metrics.jsonl").read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        losses.append([row["loss"] for row in rows if row["kind"] == "train"])
    assert losses[0] and losses[0] != losses[1]
