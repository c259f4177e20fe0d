import json
import threading

import numpy as np
import pytest

from surefoot.data import encoded
from surefoot.data.encoded import encode
from surefoot.data.files import find_files
from surefoot.data.tokens import TokenFile
from surefoot.errors import DataError

TEXT = "O Romeo, Romeo!\r\nwherefore art thou Romeo? — ¿por qué? 😀\n" * 50


@pytest.fixture
def play(tmp_path):
    path = tmp_path / "play.txt"
    path.write_bytes(TEXT.encode())
    return find_files(path)[0]


@pytest.mark.parametrize("kind", ["char", "byte"])
@pytest.mark.parametrize("in_memory", [0, 1 << 20])
def test_tokens_bring_the_text_back(tmp_path, play, kind, in_memory):
    made = encode(play, [], kind, tmp_path / "cache", in_memory)
    assert made.tokenizer.decode(made.tokens[:]) == TEXT.replace("\r\n", "\n")
    assert made.boundary == len(made.tokens)
    assert made.remarks == (r"line ends \r\n or \r are read as \n",)
    assert isinstance(made.tokens, TokenFile) == (in_memory == 0)
    assert made.tokens.dtype == np.uint8


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_memory_and_file_hold_the_same(tmp_path, monkeypatch, play, kind):
    whole = encode(play, [], kind, tmp_path / "cache")
    monkeypatch.setattr("surefoot.data.files._BLOCK", 7)
    pieces = encode(play, [], kind, tmp_path / "cache", in_memory=0)
    assert whole.digest == pieces.digest
    assert np.array_equal(whole.tokens[:], pieces.tokens[:])
    assert whole.tokenizer.fingerprint == pieces.tokenizer.fingerprint


def test_nothing_is_written_for_a_small_text(tmp_path, play):
    encode(play, [], "char", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_second_time_nothing_is_encoded(tmp_path, monkeypatch, play):
    first = encode(play, [], "char", tmp_path, in_memory=0)
    monkeypatch.setattr(encoded, "_write", None)
    again = encode(play, [], "char", tmp_path, in_memory=0)
    assert again.digest == first.digest
    assert again.boundary == first.boundary
    assert again.remarks == first.remarks
    assert np.array_equal(again.tokens[:], first.tokens[:])


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "json", "no json", "foreign json"])
def test_damaged_tokens_are_made_again(tmp_path, play, damage):
    first = encode(play, [], "char", tmp_path, in_memory=0)
    expected = first.tokens[:]
    del first
    (kept,) = (tmp_path / "tokens").glob("*.bin")
    about = kept.with_suffix(".json")
    content = bytearray(kept.read_bytes())
    if damage == "flip":
        content[100] ^= 1
        kept.write_bytes(content)
    elif damage == "cut":
        kept.write_bytes(content[:-3])
    elif damage == "delete":
        kept.unlink()
    elif damage == "json":
        about.write_text(about.read_text()[:-5])
    elif damage == "no json":
        about.unlink()
    else:
        about.write_text(json.dumps({"format": 1}))
    assert np.array_equal(encode(play, [], "char", tmp_path, in_memory=0).tokens[:], expected)
    assert sorted(path.suffix for path in (tmp_path / "tokens").iterdir()) == [".bin", ".json"]


def test_a_large_alphabet_takes_two_bytes(tmp_path):
    path = tmp_path / "han.txt"
    path.write_text("".join(chr(0x4E00 + i) for i in range(400)), encoding="utf-8")
    files, _ = find_files(path)
    for in_memory in (0, 1 << 20):
        made = encode(files, [], "char", tmp_path / "cache", in_memory)
        assert made.tokens.dtype == np.uint16
        assert made.tokens[:].tolist() == list(range(400))


def test_files_are_joined_by_a_newline_and_kept_apart_by_side(tmp_path):
    (tmp_path / "in").mkdir()
    for name, text in (("a", "one"), ("b", "two\n"), ("c", "six")):
        (tmp_path / "in" / name).write_text(text)
    files, _ = find_files(tmp_path / "in")
    made = encode(files[:2], files[2:], "char", tmp_path)
    assert made.tokenizer.decode(made.tokens[: made.boundary]) == "one\ntwo\n"
    assert made.tokenizer.decode(made.tokens[made.boundary :]) == "six"


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_a_mark_alone_is_no_text(tmp_path, kind):
    path = tmp_path / "bom.txt"
    path.write_bytes(b"\xef\xbb\xbf")
    with pytest.raises(DataError, match="no characters"):
        encode(find_files(path)[0], [], kind, tmp_path)


def test_a_text_that_fails_half_way_leaves_nothing_behind(tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes(b"good " * 100_000 + b"\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        encode(find_files(path)[0], [], "char", tmp_path / "cache", in_memory=0)
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_two_at_once_get_the_same(tmp_path, play):
    made = []
    meet = threading.Barrier(4)

    def work():
        meet.wait()
        made.append(encode(play, [], "byte", tmp_path, in_memory=0))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.digest for one in made}) == 1
    assert all(np.array_equal(one.tokens[:], made[0].tokens[:]) for one in made)
    assert len(list((tmp_path / "tokens").iterdir())) == 2
