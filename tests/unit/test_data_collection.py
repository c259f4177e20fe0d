"""Collections: split by document, cut into windows, every held-out byte once."""

import json
from pathlib import Path

import numpy as np
import pytest

from surefoot.data.collection import collect
from surefoot.errors import DataError

PLAY = Path(__file__).resolve().parents[1] / "fixtures" / "shakespeare.txt"


def rows(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_every_byte_is_held_out_or_learned_and_counted_once(tmp_path):
    made = collect(PLAY, "", vocab_size=300, val_ratio=0.2, cache=tmp_path)
    assert made.train.size + made.val.side.size == PLAY.stat().st_size
    batches = list(made.val.windows(32, 4))
    targets = np.concatenate([b.fields["y"][b.fields["y"] != -100] for b in batches])
    assert np.array_equal(targets, made.val.tokens[made.val.start + 1 : made.val.stop])
    text = made.tokenizer.decode(targets).replace("<|endoftext|>", "")
    assert len(text.encode()) == made.val.side.size and text in PLAY.read_text()


def test_the_same_again_from_another_cache(tmp_path):
    one, two = (collect(PLAY, "", vocab_size=300, cache=tmp_path / name) for name in "ab")
    assert one.source(16).fingerprint == two.source(16).fingerprint
    other = collect(PLAY, "", vocab_size=290, cache=tmp_path / "a")
    assert one.source(16).fingerprint != other.source(16).fingerprint


def test_something_is_always_held_out(tmp_path):
    made = collect(
        rows(tmp_path / "r.jsonl", ["one " * 40, "two " * 40]), "", val_ratio=0, cache=tmp_path
    )
    assert made.val.side.documents == made.train.documents == 1
    with pytest.raises(DataError, match="has one document, and some"):
        collect(rows(tmp_path / "s.jsonl", ["one"]), "", cache=tmp_path)


def test_copies_of_one_document_leave_nothing_to_train_on(tmp_path):
    made = collect(rows(tmp_path / "r.jsonl", ["one " * 40] * 9), "", cache=tmp_path)
    with pytest.raises(DataError, match=r"all 9 documents of r\.jsonl are held out"):
        made.source(8)


@pytest.mark.parametrize("as_folder", [False, True])
def test_names_of_files_say_what_is_held_out(tmp_path, as_folder):
    folder = tmp_path / "wiki"
    folder.mkdir()
    for name, word in (("train", "a"), ("valid", "b"), ("test", "c")):
        (folder / f"wiki.{name}.tokens").write_text(f" \n = {word} = \n\n {word} word word \n" * 9)
    made = collect(folder if as_folder else folder / "wiki.train.tokens", "", cache=tmp_path)
    assert made.train.documents == made.val.side.documents == made.test.side.documents == 9
    assert made.val.side.words == 9 * (3 + 3 + 4)
    assert any("val is wiki.valid.tokens" in note for note in made.notes)


def test_files_can_be_named_outright(tmp_path):
    train, val = rows(tmp_path / "a.jsonl", ["x y"] * 3), rows(tmp_path / "b.jsonl", ["z"])
    made = collect(train, "", val_path=val, cache=tmp_path)
    assert (made.train.documents, made.val.side.documents, made.test) == (3, 1, None)


def test_a_vocabulary_the_text_cannot_fill_is_said(tmp_path):
    made = collect(PLAY, "", vocab_size=60_000, cache=tmp_path)
    assert made.tokenizer.vocab_size < 60_000
    assert any("not 60,000" in note for note in made.notes)


def test_what_is_wrong_with_each_part_is_counted_and_said(tmp_path):
    texts = ["the crab walks", "", " \n", "the lobster swims", "they meet"] * 9
    path, held = rows(tmp_path / "train.jsonl", texts), tmp_path / "held.txt"
    held.write_bytes(b"good\n\n\xff bad\n\ngood again\n")
    made = collect(path, "", val_path=held, vocab_size=270, cache=tmp_path)
    assert made.train.documents == 27
    assert "empty documents, left out: 18" in made.notes
    assert "val: places that are not UTF-8, read as U+FFFD: 1" in made.notes
    with pytest.raises(DataError, match=r"held\.txt"):
        collect(path, "", val_path=held, vocab_size=270, cache=tmp_path / "b", bad_utf8="refuse")


def test_a_given_tokenizer_is_used_and_a_broken_one_refused(tmp_path):
    first = collect(PLAY, "", vocab_size=300, cache=tmp_path)
    kept = tmp_path / "tokenizer.json"
    kept.write_text(first.tokenizer.to_json())
    again = collect(PLAY, "", vocab_size=999, tokenizer=kept, cache=tmp_path)
    assert again.tokenizer.fingerprint == first.tokenizer.fingerprint
    kept.write_text("{")
    with pytest.raises(DataError, match="no tokenizer"):
        collect(PLAY, "", tokenizer=kept, cache=tmp_path)
    with pytest.raises(DataError, match="cannot read"):
        collect(PLAY, "", tokenizer=tmp_path / "none.json", cache=tmp_path)


def test_too_little_text_for_a_window_says_so(tmp_path):
    made = collect(PLAY, "", vocab_size=300, cache=tmp_path)
    with pytest.raises(DataError, match="one window of context 9999 takes"):
        made.source(9999)
