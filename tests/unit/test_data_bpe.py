"""BPE: every text comes back, equal to the library's own tokens, and learned the same twice."""

import random

import pytest
import tokenizers

from surefoot.data.bpe import BOUNDARY, BPE, train_bpe
from surefoot.data.tokenizer import tokenizer_from_json
from surefoot.errors import DataError

TEXT = "It is the cause, it is the cause, my soul.\nLet me not name it to you, you chaste stars.\n"


@pytest.fixture(scope="module")
def bpe():
    return train_bpe([TEXT] * 3, 300)


def test_tokens_are_the_librarys_whatever_the_text(bpe):
    library = tokenizers.Tokenizer.from_str(bpe.to_json())
    draw = random.Random(0)
    letters = "ab it's 12 é😀ß.!\n\r\t\x1c\x1f\x7f\x85\u00a0\u2028\u3000\u200b\u0301²_`-{"
    for _ in range(1500):
        text = "".join(draw.choice(letters) for _ in range(draw.randint(1, 16)))
        ids = bpe.encode(text)
        assert ids.tolist() == library.encode(text).ids, repr(text)
        assert bpe.decode(ids) == text


def test_learning_twice_gives_the_same(bpe):
    again = train_bpe([TEXT] * 3, 300)
    assert again.to_json() == bpe.to_json() and again.fingerprint == bpe.fingerprint
    assert train_bpe([TEXT] * 3, 290).fingerprint != bpe.fingerprint


def test_a_boundary_in_the_text_is_text(bpe):
    ids = bpe.encode(f"a{BOUNDARY}b")
    assert bpe.boundary not in ids.tolist()
    assert bpe.decode(ids) == f"a{BOUNDARY}b"
    assert bpe.decode([bpe.boundary]) == BOUNDARY


def test_what_it_remembers_is_bounded(bpe, monkeypatch):
    monkeypatch.setattr("surefoot.data.bpe._REMEMBERED", 5)
    words = [f"word{n} " for n in range(50)]
    expected = [bpe.encode(word).tolist() for word in words]
    assert [bpe.encode(word).tolist() for word in words] == expected
    assert len(bpe._known) < 8


def test_a_token_that_others_put_first_is_not_put_before_every_word(bpe):
    library = tokenizers.Tokenizer.from_str(bpe.to_json())
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{BOUNDARY} $A", special_tokens=[(BOUNDARY, bpe.boundary)]
    )
    other = BPE(library.to_str())
    assert other.by_words and library.encode("a b").ids[0] == bpe.boundary
    assert other.encode(TEXT).tolist() == bpe.encode(TEXT).tolist()


def test_a_text_with_little_in_it_gives_fewer_tokens():
    assert train_bpe(["ab ab ab"], 5000).vocab_size < 265


def test_json_brings_it_back(bpe):
    again = tokenizer_from_json(bpe.to_json())
    assert isinstance(again, BPE) and again.fingerprint == bpe.fingerprint


@pytest.mark.parametrize("text", ["", "{}", '{"model": {"type": "BPE"}}'])
def test_what_is_no_tokenizer_is_refused(text):
    with pytest.raises(DataError, match="no tokenizer"):
        BPE(text)
    with pytest.raises(DataError):
        tokenizer_from_json(text)


def test_tokens_that_do_not_exist_are_refused(bpe):
    with pytest.raises(DataError, match="from 0 to"):
        bpe.decode([bpe.vocab_size])
