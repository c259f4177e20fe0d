import numpy as np
import pytest

from surefoot.data.tokenizer import Bytes, Characters, code_points, tokenizer_from_json
from surefoot.errors import DataError


def test_the_smallest_integers_that_fit_are_used():
    assert Characters.train("abc").encode("cab").dtype == np.uint8
    many = "".join(chr(0x4E00 + i) for i in range(257))
    assert Characters.train(many).encode(many[-1]).dtype == np.uint16
    huge = "".join(chr(c) for c in range(1, 0x11000) if not 0xD800 <= c < 0xE000)
    assert Characters.train(huge).encode("a").dtype == np.int32


def test_code_points_use_one_byte_where_they_can():
    assert code_points("é").dtype == np.uint8
    assert code_points("é😀").tolist() == [233, 0x1F600]


def test_unknown_characters_are_named_with_their_place():
    with pytest.raises(DataError) as caught:
        Characters.train("abc ").encode("a cat ☃ cat")
    assert caught.value.what == "the vocabulary has no 't' at position 4, '☃' at position 6"
    assert "4 characters: ' abc'" in str(caught.value)
    assert "byte vocabulary" in str(caught.value.fix)


def test_only_the_first_unknown_characters_are_listed():
    with pytest.raises(DataError, match="and 3 more"):
        Characters.train("z").encode("abcdefgh")


def test_an_alphabet_is_sorted_and_without_repeats():
    for wrong in ("ba", "aa", ""):
        with pytest.raises(ValueError, match="alphabet"):
            Characters(wrong)


def test_an_empty_text_teaches_nothing():
    with pytest.raises(DataError, match="empty text"):
        Characters.train("")


@pytest.mark.parametrize("ids", [[-1], [3], [0.5], np.array([1, 99])])
def test_numbers_that_are_no_tokens_are_refused(ids):
    with pytest.raises(DataError, match="whole numbers from 0 to 2"):
        Characters.train("abc").decode(ids)


def test_nothing_is_nothing():
    chars = Characters.train("abc")
    assert chars.encode("").tolist() == []
    assert chars.decode([]) == chars.decode(np.zeros(0)) == Bytes().decode([]) == ""


def test_half_a_character_has_no_bytes():
    with pytest.raises(DataError, match="position 1 is half a character"):
        Bytes().encode("a\ud800")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "bpe"}', '{"kind": "char"}', "what"])
def test_json_that_is_no_tokenizer_is_refused(text):
    with pytest.raises(DataError, match="no tokenizer that we know"):
        tokenizer_from_json(text)


def test_fingerprints_stay_what_they_were():
    """They are written into checkpoints."""
    assert Characters("ab").fingerprint == "f7e40a0703fe65c651aa1591a8b2e203"
    assert Bytes().fingerprint == "c165b247e08a36558023b67be6d0021f"
