"""Documents: found in files of many kinds, and divided where they say so."""

import gzip
import json

import pytest

from surefoot.data import documents as room
from surefoot.data.documents import Reading, documents, find_documents
from surefoot.errors import DataError, Unsupported


def read(path, **settings):
    """Return the documents at `path`, whole, and what was met."""
    reading, found = Reading(**settings), []
    for piece in documents(find_documents(path)[0], reading):
        if piece.begins:
            found.append("")
        found[-1] += piece.text
    return found, reading


def put(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_the_marker_divides_and_disappears(tmp_path):
    path = put(tmp_path, "a.txt", "one\n<|endoftext|>\ntwo\nlines<|endoftext|>three")
    assert read(path)[0] == ["one\n", "two\nlines", "three"]


def test_headings_of_wikitext_divide(tmp_path):
    text = " \n = Lobster = \n\n Claws . \n = = Diet = = \n Crabs . \n = Crab = \n\n Small . \n"
    found, reading = read(put(tmp_path, "wiki.txt", text))
    assert [t.count("=") for t in found] == [6, 2] and "".join(found) == text
    assert "WikiText headings" in " ".join(reading.remarks())


def test_a_single_text_is_cut_at_empty_lines(tmp_path):
    text = "".join(f"paragraph {n} " + "word " * 100 + "\n\n" for n in range(20))
    found, _ = read(put(tmp_path, "novel.txt", text))
    assert "".join(found) == text and len(found) > 3
    assert all(t.startswith("paragraph") for t in found)


@pytest.mark.parametrize(
    "text", ["a line of words\n" * 900 + "\n", "word " * 9000, "\u4e16" * 9000]
)
def test_a_single_text_without_an_empty_line_is_cut_at_lines_or_words(tmp_path, text):
    found, reading = read(put(tmp_path, "log.txt", text))
    assert "".join(found) == text and len(found) > 1
    assert all(1000 < len(t.encode()) <= (1 << 14) + 8 for t in found[:-1])
    assert not any(t.endswith("wor") for t in found)
    assert "ends of lines" in " ".join(reading.remarks())


def test_what_is_packed_must_be_text_as_well(tmp_path):
    packed = gzip.compress(b"abc\0\1\2" * 99)
    with pytest.raises(DataError, match=r"what is packed in .*a\.tar\.gz is no text"):
        read(put(tmp_path, "a.tar.gz", packed))
    put(tmp_path, "f/a.tar.gz", packed)
    put(tmp_path, "f/b.txt", "one")
    found, reading = read(tmp_path / "f")
    assert found == ["one"] and "hold no text, left out: 1" in " ".join(reading.remarks())


def test_in_a_folder_each_file_is_one(tmp_path):
    put(tmp_path, "f/a.txt", "one\n\n" * 900)
    put(tmp_path, "f/b.txt", "two")
    assert [t[:3] for t in read(tmp_path / "f")[0]] == ["one", "two"]


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_lines_of_json_packed_or_not(tmp_path, packed):
    rows = "".join(
        json.dumps({"text": t, "body": t * 2}) + "\n" for t in ("a\r\nb", " ", "ü\ud800")
    )
    content = rows.encode()
    if packed == ".gz":
        content = gzip.compress(content)
    if packed == ".zst":
        content = pytest.importorskip("zstandard").compress(content)
    path = put(tmp_path, f"rows.jsonl{packed}", content)
    found, reading = read(path)
    assert found == ["a\nb", "ü\ufffd"]
    assert reading.counts == {"empty": 1, "bad": 1, "returns": 1}
    assert read(path, text_field="body")[0][0] == "a\nba\nb"


@pytest.mark.parametrize(
    ("line", "words"),
    [('{"text": 3}', "field 'text'.*"), ("nonsense", "no JSON"), ("[1]", "field 'text'")],
)
def test_a_wrong_line_is_named(tmp_path, line, words):
    path = put(tmp_path, "rows.jsonl", f'{{"text": "a"}}\n{line}\n')
    with pytest.raises(DataError, match=words) as caught:
        read(path)
    assert str(caught.value.where).endswith("rows.jsonl:2")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_file_is_refused_and_not_half_read(tmp_path, suffix, damage):
    text = " ".join(map(str, range(20_000))).encode()
    zstd = pytest.importorskip("zstandard") if suffix == ".zst" else gzip
    content = bytearray(zstd.compress(text))
    if damage == "cut":
        del content[-9:]
    else:
        content[len(content) // 2 :] = bytes(len(content) // 2)
    path = put(tmp_path, f"a.txt{suffix}", bytes(content))
    with pytest.raises(DataError, match="cannot read"):
        read(path)


def test_two_frames_are_one_text(tmp_path):
    zstd = pytest.importorskip("zstandard")
    path = put(tmp_path, "a.txt.zst", zstd.compress(b"one ") + zstd.compress(b"two"))
    assert read(path)[0] == ["one two"]


def test_a_missing_package_says_what_to_do(tmp_path, monkeypatch):
    path = put(tmp_path, "a.txt.zst", b"(\xb5/\xfd")
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(Unsupported, match="zstandard is missing"):
        read(path)


def test_bytes_that_are_no_utf8_are_counted_or_refused(tmp_path):
    path = put(tmp_path, "a.txt", b"good\n\xff bad\n")
    found, reading = read(path)
    assert found == ["good\n\ufffd bad\n"] and reading.counts["bad"] == 1
    assert read(put(tmp_path, "b.txt", b"\xef\xbf\xbd \xff \xff\n"))[1].counts["bad"] == 2
    assert "not UTF-8" in " ".join(reading.remarks())
    with pytest.raises(DataError, match="byte 5"):
        read(path, bad_utf8="refuse")


@pytest.mark.parametrize("text", ["äöü ß" * 99, "ä" * 99, "a line\n" * 40, "x" * 64])
def test_long_texts_come_in_pieces_that_lose_nothing(tmp_path, monkeypatch, text):
    monkeypatch.setattr(room, "_PIECE", 16)
    path = put(tmp_path, "a.txt", "\ufeff" + text)
    pieces = list(documents(find_documents(path)[0], Reading()))
    assert "".join(p.text for p in pieces) == text
    assert [p.begins for p in pieces] == [True] + [False] * (len(pieces) - 1)
    assert len(pieces) > 3 and len({p.rank for p in pieces}) == 1


def test_equal_documents_have_equal_ranks(tmp_path):
    rows = "".join(json.dumps({"text": t}) + "\n" for t in ("a", "b", "a"))
    ranks = [
        p.rank for p in documents(find_documents(put(tmp_path, "r.jsonl", rows))[0], Reading())
    ]
    assert ranks[0] == ranks[2] != ranks[1]
    assert all(0 <= rank < 1 for rank in ranks)
