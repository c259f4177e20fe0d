import json
from pathlib import Path

import numpy as np
import pytest

from surefoot.data.batch import Data
from surefoot.data.text import Text, TextSource, load_text, windows
from surefoot.data.tokens import TokenFile
from surefoot.errors import DataError

EXCERPT = Path(__file__).parents[1] / "fixtures" / "shakespeare.txt"


def load(path: Path, cache: Path, val_ratio: float = 0.1, vocabulary: str = "char") -> Text:
    return load_text(path, None, val_ratio=val_ratio, vocabulary=vocabulary, cache=cache)


def test_one_file_is_cut_in_two(tmp_path):
    text = load(EXCERPT, tmp_path)
    content = EXCERPT.read_text()
    cut = int(len(content) * 0.9)
    assert (text.train, text.val) == ((0, cut), (cut, len(content)))
    assert text.tokenizer.decode(text.tokens) == content
    assert text.tokenizer.vocab_size == len(set(content))
    assert (text.name, text.origin, text.licence) == (
        "shakespeare.txt",
        "given path",
        "your own text",
    )
    assert text.notes == ()


def test_what_is_said_about_it_is_plain_json(tmp_path):
    text = load(EXCERPT, tmp_path)
    said = text.describe()
    assert json.loads(json.dumps(said)) == said
    assert said["characters"] == len(EXCERPT.read_text())
    assert said["fingerprint"] == text.fingerprint
    line = text.describe_line()
    assert "\n" not in line
    for part in (f"{text.characters:,} characters of 56 kinds", "your own text", str(EXCERPT)):
        assert part in line
    assert "8,559 bytes;" in load(EXCERPT, tmp_path, vocabulary="byte").describe_line()


def test_fingerprints_name_tokens_vocabulary_and_split(tmp_path):
    copy = tmp_path / "copy.txt"
    copy.write_bytes(EXCERPT.read_bytes())
    same = load(EXCERPT, tmp_path).fingerprint
    assert load(copy, tmp_path).fingerprint == same
    assert load(EXCERPT, tmp_path, vocabulary="byte").fingerprint != same
    assert load(EXCERPT, tmp_path, val_ratio=0.2).fingerprint != same
    copy.write_bytes(EXCERPT.read_bytes()[:-2] + b"!\n")
    assert load(copy, tmp_path).fingerprint != same


def test_windows_line_ends_change_nothing_but_a_note(tmp_path):
    copy = tmp_path / "copy.txt"
    copy.write_bytes(EXCERPT.read_bytes().replace(b"\n", b"\r\n"))
    text = load(copy, tmp_path)
    assert text.fingerprint == load(EXCERPT, tmp_path).fingerprint
    assert len(text.notes) == 1


@pytest.mark.parametrize("count", [2, 3, 40])
def test_a_folder_is_split_by_file(tmp_path, count):
    root = tmp_path / "book"
    root.mkdir()
    for i in range(count):
        (root / f"chapter{i:02}.txt").write_text(f"<{i}>" + "abc" * 20)
    text = load(root, tmp_path / "cache")
    sides = [text.tokenizer.decode(text.tokens[slice(*part)]) for part in (text.train, text.val)]
    for i in range(count):
        assert sum(f"<{i}>" in side for side in sides) == 1
    assert all(sides)
    assert text.train[1] == text.val[0]
    assert text.name == "book"


def test_more_files_move_no_file_to_the_other_side(tmp_path):
    def held_out(names):
        root = tmp_path / f"{len(names)}"
        root.mkdir()
        for name in names:
            (root / name).write_text(f"<{name}>")
        text = load(root, tmp_path)
        held = text.tokenizer.decode(text.tokens[slice(*text.val)])
        return {name for name in names if f"<{name}>" in held}

    names = [f"f{i}" for i in range(100)]
    few, many = held_out(names[:60]), held_out(names)
    assert few == many & set(names[:60])
    assert 2 <= len(many) <= 25


def test_without_validation_everything_trains(tmp_path):
    text = load(EXCERPT, tmp_path, val_ratio=0.0)
    assert text.train == (0, text.characters)
    assert list(text.windows(8, 4)) == []
    root = tmp_path / "book"
    root.mkdir()
    (root / "a").write_text("abc")
    (root / "b").write_text("abc")
    assert load(root, tmp_path, val_ratio=0.0).val == (7, 7)


def test_a_text_too_short_is_refused_with_the_arithmetic(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("x" * 412)
    text = load(path, tmp_path)
    with pytest.raises(DataError) as caught:
        text.source(256)
    assert caught.value.what == (
        "data.path: notes.txt has 412 characters; context 256 needs at least 2,561 "
        "to split off validation"
    )
    assert caught.value.where == ("the validation part has 42 characters, one window takes 257")
    assert caught.value.fix == "--context 32, or more text"
    assert len(text.source(41)) == 9


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("context", [1, 8, 64])
def test_the_length_that_is_asked_for_is_enough_and_needed(tmp_path, ratio, context):
    path = tmp_path / "a.txt"
    path.write_text("ab")
    with pytest.raises(DataError) as caught:
        load(path, tmp_path, ratio).source(max(context, 2))
    needed = int(caught.value.what.split("at least ")[1].split()[0].replace(",", ""))
    path.write_text("x" * needed)
    load(path, tmp_path, ratio).source(max(context, 2))
    path.write_text("x" * (needed - 1))
    with pytest.raises(DataError):
        load(path, tmp_path, ratio).source(max(context, 2))


def test_suggested_context_fits(tmp_path):
    path = tmp_path / "a.txt"
    for size in (21, 30, 170, 330, 650):
        path.write_text("x" * size)
        text = load(path, tmp_path)
        with pytest.raises(DataError) as caught:
            text.source(1000)
        context = int(str(caught.value.fix).split()[1].rstrip(","))
        text.source(context)
        with pytest.raises(DataError):
            text.source(2 * context)


def test_a_text_of_one_character_only_says_more_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x")
    with pytest.raises(DataError) as caught:
        load(path, tmp_path).source(4)
    assert caught.value.fix == "more text"


def test_a_large_text_stays_on_disk_and_gives_the_same_batches(tmp_path, monkeypatch):
    small = load(EXCERPT, tmp_path)
    monkeypatch.setattr("surefoot.data.encoded.IN_MEMORY", 0)
    large = load(EXCERPT, tmp_path)
    assert isinstance(large.tokens, TokenFile)
    assert large.fingerprint == small.fingerprint
    assert large.source(16).fingerprint == small.source(16).fingerprint
    one, two = (Data(text.source(16), 1, 64) for text in (small, large))
    for step in range(40):
        for name in ("x", "y"):
            assert np.array_equal(one.batch(step).fields[name], two.batch(step).fields[name])
    for here, there in zip(small.windows(16, 5), large.windows(16, 5), strict=True):
        assert np.array_equal(here.fields["y"], there.fields["y"])


def test_a_source_names_its_range_and_cut():
    tokens = np.arange(200, dtype=np.uint8)
    names = {
        TextSource(tokens, context, 0, stop).fingerprint for context in (4, 8) for stop in (90, 99)
    }
    assert len(names) == 4
    assert TextSource(tokens[:90], 4).fingerprint == TextSource(tokens, 4, 0, 90).fingerprint
    assert TextSource(tokens.astype(np.uint16), 4).fingerprint != TextSource(tokens, 4).fingerprint
    known = TextSource(tokens, 4, digest="d")
    assert known.fingerprint != TextSource(tokens, 4, digest="e").fingerprint
    assert known.fingerprint != TextSource(tokens, 4, 0, 90, digest="d").fingerprint


def test_a_range_without_a_window_is_refused():
    tokens = np.arange(10, dtype=np.uint8)
    with pytest.raises(DataError, match="mine has 8 tokens; a window of context 8 needs 9"):
        TextSource(tokens, 8, 0, 8, name="mine")
    assert len(TextSource(tokens, 8, 0, 9)) == 1
    for start, stop, context in ((0, 11, 2), (-1, 5, 2), (5, 4, 2), (0, 5, 0)):
        with pytest.raises(ValueError, match="no windows"):
            TextSource(tokens, context, start, stop)


def test_nothing_held_out_gives_no_batches():
    tokens = np.arange(10, dtype=np.uint8)
    assert list(windows(tokens, 4, 10, 10, 2)) == list(windows(tokens, 4, 9, 10, 2)) == []


def test_batches_are_fresh_arrays():
    tokens = np.arange(100, dtype=np.uint8)
    source = TextSource(tokens, 4)
    batch = source.batch(np.arange(3), np.zeros(3, dtype=np.int64), 1)
    batch.fields["x"][:] = 0
    for held in windows(tokens, 4, 50, 100, 3):
        held.fields["y"][:] = 0
    assert tokens.tolist() == list(range(100))


def test_the_windows_of_a_seed_are_fixed_for_ever():
    """Runs that were begun with an earlier version must find the same windows."""
    data = Data(TextSource(np.arange(10_000, dtype=np.uint16), 10), seed=7, batch_size=3)
    starts = [data.batch(step).fields["x"][:, 0].tolist() for step in (0, 500, 10**9)]
    assert starts == [[8464, 2135, 1075], [7745, 3305, 4345], [2653, 5583, 1903]]
