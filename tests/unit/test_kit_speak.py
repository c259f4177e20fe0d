"""Texts as they grow: stops, borders, characters of several tokens; many at once as one by one."""

import pytest
import torch

from surefoot.config.model import GPTConfig
from surefoot.data.tokenizer import Bytes
from surefoot.engine.kit.speak import Request, TextSpeaker, _Writing
from surefoot.engine.load import narrow
from surefoot.errors import Unsupported
from surefoot.nn.decode import Decoder
from surefoot.nn.gpt import GPT


def speaker(border=None, **changes):
    sizes = {"d_model": 24, "num_layers": 2, "num_heads": 2, "context": 16} | changes
    gpt = GPT(GPTConfig(**sizes), 256, seed=1)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.mul_(8.0 if parameter.dim() > 1 else 1.0)
    return TextSpeaker({"main": gpt}, Bytes(), border=border)


def grown(text, *stops, border=None):
    """Return the pieces that are shown while the bytes of `text` come one by one."""
    writing, pieces = _Writing(Bytes(), border, stops), []
    for token in text.encode():
        pieces.append(writing.push(token))
        if writing.done:
            break
    return [p for p in [*pieces, writing.rest()] if p]


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("plain", (), "plain"),
        ("one. two", (".",), "one"),
        ("aab and ab", ("ab",), "a"),
        ("ends with a part of STO", ("STOP",), "ends with a part of STO"),
        ("first of several", ("several", "of"), "first "),
        ("stop", ("stop",), ""),
        ("ä—😀!", (), "ä—😀!"),
        ("ä—😀!", ("😀",), "ä—"),
    ],
)
def test_a_text_ends_before_a_stop(text, stops, shown):
    assert "".join(grown(text, *stops)) == shown


def test_characters_come_whole_and_nothing_of_a_stop_is_shown_early():
    assert grown("a—b") == ["a", "—", "b"]
    assert grown("a STEP", "STOP") == ["a", " ", "STE", "P"]


class Words:
    """Reads as SentencePiece does: a token brings the space before it, but not at the beginning."""

    def decode(self, ids):
        return "".join(f" {'abc'[n]}" for n in ids).removeprefix(" ")


@pytest.mark.parametrize(("prompt", "shown"), [((), "a b c"), ((2, 1), " a b c")])
def test_spaces_between_tokens_are_kept_where_single_tokens_have_none(prompt, shown):
    writing = _Writing(Words(), None, (), prompt)
    assert "".join([*map(writing.push, (0, 1, 2)), writing.rest()]) == shown


def test_a_thousand_texts_are_written_some_at_a_time(monkeypatch):
    talk, widths = speaker(), []
    real = TextSpeaker._generate
    watch = lambda self, learner, known, *more: (
        widths.append(len(known)) or real(self, learner, known, *more)
    )
    monkeypatch.setattr(TextSpeaker, "_generate", watch)
    requests = [Request("a", 2, seed=n) for n in range(70)]
    found = talk.replies("main", requests)
    assert widths == [64, 6]
    assert found[69] == "".join(talk.reply("main", requests[69]))


def test_the_border_ends_a_text():
    assert grown("one\0two", border=0) == list("one")


def test_many_at_once_are_what_they_are_one_by_one():
    talk = speaker()
    prompts = ["abc", "xyz", "abc", "a longer one", "b"]
    requests = [Request(p, 20, seed=n, top_k=9) for n, p in enumerate(prompts)]
    requests.append(Request("abc", 30, temperature=0.0, stop=("e",)))
    together = talk.replies("main", requests)
    assert together == ["".join(talk.reply("main", request)) for request in requests]
    assert together[0] != together[2], "each has a seed of its own"


def test_a_border_stands_before_every_prompt():
    talk = speaker(border=7)
    assert talk._read("ab").tolist() == [7, 97, 98] and talk._read("").tolist() == [7]


def test_a_prompt_longer_than_the_context_is_remarked_on():
    assert speaker().remark("main", "short") is None
    assert "17 tokens; the model sees the last 16" in speaker().remark("main", "x" * 17)


@pytest.mark.parametrize("layout", ["modern", "gpt2"])
@pytest.mark.parametrize(("dtype", "near"), [("int8", 0.05), ("int4", 0.4)])
def test_packed_weights_say_nearly_the_same(layout, dtype, near):
    wide, slim = (speaker(layout=layout, d_model=64, d_ff=96) for _ in range(2))
    narrow(slim.models, dtype)
    tokens = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        full, less = wide.models["main"](tokens), slim.models["main"](tokens).float()
        decode = Decoder(slim.models["main"])
        last = decode(tokens, decode.empty(1))
    assert 0 < (full - less).abs().max() < near * full.abs().max()
    assert (full[:, -1] - last).abs().max() < near * full.abs().max()
    assert not any(isinstance(m, torch.nn.Linear) for m in slim.models["main"].modules())
    assert "".join(slim.reply("main", Request("ab", 8)))


def test_four_bits_need_rows_in_groups():
    with pytest.raises(Unsupported, match="multiples of 32, not 24"):
        narrow(speaker(d_model=24).models, "int4")


def test_what_is_no_gpt_is_not_packed():
    with pytest.raises(Unsupported, match="toy is no GPT"):
        narrow({"toy": torch.nn.Linear(2, 2)}, "int8")


@pytest.mark.parametrize("layout", ["modern", "gpt2"])
@pytest.mark.parametrize(("dtype", "near"), [("bf16", 0.05), ("fp16", 0.01)])
def test_narrow_weights_say_nearly_the_same(layout, dtype, near):
    wide, slim = speaker(layout=layout), speaker(layout=layout)
    narrow(slim.models, dtype)
    tokens = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        full, less = wide.models["main"](tokens), slim.models["main"](tokens).float()
    assert (full - less).abs().max() < near * full.abs().max()
    assert slim.models["main"].embed.weight.dtype == getattr(
        torch, {"bf16": "bfloat16", "fp16": "float16"}[dtype]
    )
    assert "".join(slim.reply("main", Request("ab", 8)))
