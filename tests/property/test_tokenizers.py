"""Text to tokens and back loses nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot.data.tokenizer import Bytes, Characters, tokenizer_from_json
from surefoot.errors import DataError

unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@given(unicode_text)
def test_bytes_bring_any_text_back(text):
    ids = Bytes().encode(text)
    assert ids.tobytes() == text.encode()
    assert Bytes().decode(ids) == text


@given(st.binary())
def test_bytes_decode_anything(content):
    expected = content.decode("utf-8", "replace")
    assert Bytes().decode(np.frombuffer(content, dtype=np.uint8)) == expected


@given(st.binary())
def test_bytes_that_a_terminal_escaped_are_bytes_again(content):
    typed = content.decode("utf-8", "surrogateescape")
    assert Bytes().encode(typed).tobytes() == content


@given(unicode_text.filter(bool))
def test_characters_bring_their_text_back(text):
    chars = Characters.train(text)
    ids = chars.encode(text)
    assert chars.decode(ids) == text
    assert chars.decode(ids.tolist()) == text
    assert chars.vocab_size == len(set(text))
    assert ids.dtype == chars.dtype


@given(unicode_text.filter(bool), unicode_text)
def test_a_tokenizer_survives_json(text, other):
    chars = Characters.train(text)
    again = tokenizer_from_json(chars.to_json())
    assert again.fingerprint == chars.fingerprint
    assert again.encode(text).tolist() == chars.encode(text).tolist()
    if set(other) <= set(text):
        assert again.decode(chars.encode(other)) == other
    else:
        with pytest.raises(DataError, match="the vocabulary has no"):
            again.encode(other)


@given(unicode_text.filter(bool), unicode_text.filter(bool))
def test_fingerprints_tell_alphabets_apart(one, two):
    same = set(one) == set(two)
    assert (Characters.train(one).fingerprint == Characters.train(two).fingerprint) == same
    assert Characters.train(one).fingerprint != Bytes().fingerprint
