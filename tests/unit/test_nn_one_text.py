"""One text by numpy: the numbers of torch's decoder, wherever the weights lie."""

from __future__ import annotations

import pytest
import torch

from surefoot.config.model import GPTConfig
from surefoot.engine.kit.sample import generate
from surefoot.engine.load import narrow
from surefoot.engine.place import reads_past_mkl
from surefoot.nn.blas import openblas
from surefoot.nn.decode import Decoder
from surefoot.nn.gpt import GPT
from surefoot.nn.one_text import side_by_side

if openblas() is None:
    pytest.skip("numpy's products are not OpenBLAS's", allow_module_level=True)

WORDS, CONTEXT = 29, 12
LAYOUTS = [
    {},
    {"num_kv_heads": 2},
    {"qk_norm": False},
    {"tie_embeddings": True, "num_kv_heads": 1},
    {"feed_forward": "relu2", "softcap": 5.0, "value_embeddings": True},
]


def model(**changes):
    sizes = {"d_model": 32, "num_layers": 2, "num_heads": 4, "context": CONTEXT}
    gpt = GPT(GPTConfig(**{**sizes, "tie_embeddings": False, **changes}), WORDS, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in gpt.parameters():  # zeros and ones would hide a weight that is not read
            parameter.add_(torch.randn(parameter.shape, generator=generator) / 8)
    return gpt.eval()


def logits(decode, tokens):
    """Return [T - 1, V]: what comes after each token but the first, one token at a time."""
    pasts = decode.empty(1)
    decode(tokens[:, :2], pasts)
    return torch.cat([decode(tokens[:, i : i + 1], pasts) for i in range(2, tokens.size(1))])


def text(length=CONTEXT):
    return torch.randint(0, WORDS, (1, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("changes", LAYOUTS, ids=str)
def test_logits_are_those_of_the_whole_pass(changes):
    gpt = model(**changes)
    decode = Decoder(gpt, past_mkl=True)
    assert decode.one is not None
    with torch.no_grad():
        whole = gpt(text())[0, 2:]
    assert whole.std() > 0.1
    assert torch.allclose(logits(decode, text()), whole, atol=2e-5)


@pytest.mark.parametrize("changes", LAYOUTS, ids=str)
def test_greedy_tokens_are_the_same_also_past_the_context(changes):
    gpt = model(**changes)
    how = {"temperature": 0.0, "repetition_penalty": 1.5}
    found, plain = (
        torch.cat(list(generate(Decoder(gpt, own), text(3), 3 * CONTEXT, **how)))
        for own in (True, False)
    )
    assert torch.equal(found, plain)
    assert len(found.unique()) > 3, "a constant text would prove little"


def test_texts_in_turn_do_not_disturb_each_other():
    decode, tokens = Decoder(model(), past_mkl=True), text()
    alone, pasts = logits(decode, tokens), [decode.empty(1) for _ in range(2)]
    for one in pasts:
        decode(tokens[:, :2], one)
    found = [[decode(tokens[:, i : i + 1], one) for one in pasts] for i in range(2, tokens.size(1))]
    for row, pair in zip(alone, found):
        assert torch.equal(pair[0][0], row) and torch.equal(pair[1][0], row)


def test_weights_side_by_side_are_the_same_weights():
    gpt = model(tie_embeddings=True)
    before = {n: t.clone() for n, t in gpt.state_dict().items()}
    apart = logits(Decoder(gpt, past_mkl=True), text())
    side_by_side(gpt)
    decode = Decoder(gpt, past_mkl=True)
    assert all(torch.equal(t, before[n]) for n, t in gpt.state_dict().items())
    assert gpt.head.weight is gpt.embed.weight
    assert len(decode.one.layers[0].rise) == 1, "gate and up are read as one matrix"
    assert torch.allclose(logits(decode, text()), apart, atol=2e-5)


def test_threads_change_no_bit():
    library = openblas()
    usual, found = library.num_threads, []
    try:
        for threads in (1, 3):
            library.set_num_threads(threads)
            gpt = model(d_model=384, d_ff=1001, num_layers=1, context=160)
            side_by_side(gpt)
            decode = Decoder(gpt, past_mkl=True)
            decode.one.pool.threads = threads  # however long they took just now
            found.append(logits(decode, text(160)))
    finally:
        library.set_num_threads(usual)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_weights_without_room_behind_them_are_read_by_one_thread():
    library, gpt = openblas(), model(d_ff=37)
    usual = library.num_threads
    try:
        library.set_num_threads(3)
        assert Decoder(gpt, past_mkl=True).one.pool.threads == 1
        assert library.num_threads == 3
    finally:
        library.set_num_threads(usual)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "int8", "int4"])
@pytest.mark.parametrize("changes", LAYOUTS, ids=str)
def test_narrow_weights_say_what_they_say_by_torch(changes, dtype):
    gpt = model(**changes, d_ff=96)
    narrow({"main": gpt}, dtype)
    decode = Decoder(gpt, past_mkl=True)
    assert decode.one is not None
    plain = logits(Decoder(gpt), text())
    assert (logits(decode, text()) - plain).abs().max() < 0.03 * plain.abs().max()


def test_other_layouts_are_left_to_torch():
    assert Decoder(model(), past_mkl=True).one is not None
    assert Decoder(model(layout="gpt2"), past_mkl=True).one is None


def test_a_model_that_was_read_is_arranged_for_this_processor():
    gpt = model()
    narrow({"main": gpt}, "fp32")
    one = Decoder(gpt, past_mkl=True).one
    assert (len(one.layers[0].rise) == 1) == reads_past_mkl()


def test_weights_can_still_be_given_up_after_a_text():
    """A process that holds whole weights only while it writes frees them by changing their size."""
    gpt = model()
    decode = Decoder(gpt, past_mkl=True)
    assert decode.one is not None
    logits(decode, text())
    assert all(p.untyped_storage().resizable() for p in gpt.parameters())
