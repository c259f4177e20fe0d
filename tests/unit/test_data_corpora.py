import dataclasses
import hashlib
from pathlib import Path

import pytest

from surefoot.data import corpora as room
from surefoot.data.collection import collect
from surefoot.data.corpora import DEFAULT, FALLBACK, Corpus, corpora, find, get, recognise
from surefoot.data.fetch import Unreachable
from surefoot.data.text import load_text
from surefoot.errors import DataError

TEXT = "To be, or not to be: that is the question.\n" * 20


def corpus_of(text: str, name: str = "demo", pinned: bool = True, reachable: bool = True) -> Corpus:
    def build(cache: Path) -> str:
        if not reachable:
            raise Unreachable("the cable is cut")
        return text

    digest = hashlib.sha256(text.encode()).hexdigest() if pinned else None
    return Corpus(name, "A demo.", "public domain", "package demo 1", build, digest, len(text))


@pytest.fixture
def known(monkeypatch):
    def use(*all_of_them: Corpus) -> None:
        monkeypatch.setattr(room, "_ALL", all_of_them)

    return use


def test_first_a_download_then_the_cache(tmp_path, known):
    known(corpus_of(TEXT))
    first, second = find("demo", tmp_path), find("demo", tmp_path)
    assert (first.origin, second.origin) == ("download", "cache")
    assert first.path == second.path
    assert first.path.read_text() == TEXT
    assert first.notes == ()
    assert get("demo", tmp_path, again=True).origin == "download"


def test_what_cannot_be_reached_is_replaced_and_that_is_said(tmp_path, known):
    known(
        corpus_of(TEXT, "shakespeare9", reachable=False),
        corpus_of("Help.\n" * 99, FALLBACK, pinned=False),
    )
    for _ in range(2):
        found = find(None, tmp_path)
        assert (found.corpus.name, found.origin) == (FALLBACK, "bundled")
        (sentence,) = found.notes
        assert sentence.startswith("shakespeare9 could not be downloaded (the cable is cut), so ")
        assert sentence.count("\n") == 0
    text = load_text(None, None, val_ratio=0.1, vocabulary="char", cache=tmp_path)
    assert (text.name, text.origin, text.notes) == (FALLBACK, "bundled", (sentence,))
    assert text.describe()["notes"] == [sentence]


def test_a_corpus_that_was_asked_for_is_not_replaced(tmp_path, known):
    known(corpus_of(TEXT, reachable=False), corpus_of("Help.\n" * 99, FALLBACK, pinned=False))
    with pytest.raises(DataError, match="demo could not be downloaded") as caught:
        find("demo", tmp_path)
    assert "--corpus pydocs" in str(caught.value.fix)


def test_get_replaces_nothing(tmp_path, known):
    known(corpus_of(TEXT, reachable=False), corpus_of("Help.", FALLBACK, pinned=False))
    with pytest.raises(DataError, match="demo could not be downloaded") as caught:
        get("demo", tmp_path)
    assert caught.value.where == "the cable is cut"


def test_a_text_in_the_cache_needs_no_network(tmp_path, known):
    known(corpus_of(TEXT))
    find("demo", tmp_path)
    known(corpus_of(TEXT, reachable=False))
    assert find("demo", tmp_path).origin == "cache"


def test_a_text_that_is_not_the_pinned_one_is_an_error(tmp_path, known):
    known(dataclasses.replace(corpus_of(TEXT), sha256="0" * 64), corpus_of("Help.", FALLBACK))
    with pytest.raises(DataError, match="is not the pinned one"):
        find("demo", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pinned", [True, False])
def test_a_damaged_text_is_an_error_until_it_is_fetched_again(tmp_path, known, pinned):
    known(corpus_of(TEXT, pinned=pinned))
    path = find("demo", tmp_path).path
    path.write_text(TEXT.replace("be", "bee", 1))
    with pytest.raises(DataError, match="cached text of demo is damaged") as caught:
        find("demo", tmp_path)
    assert caught.value.fix == "surefoot data get demo"
    assert get("demo", tmp_path).path == path
    assert find("demo", tmp_path).path.read_text() == TEXT


def test_a_damaged_download_makes_no_tokens(tmp_path, known):
    """The recipe of documents reads what `find` returns: damage stops it before a vocabulary is made."""
    text = "".join(
        f"To be {n}\n<|endoftext|>\nor not to be {n}\n<|endoftext|>\n" for n in range(20)
    )
    known(corpus_of(text))
    path = find("demo", tmp_path).path
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match="cached text of demo is damaged") as caught:
        collect(None, "demo", vocab_size=270, cache=tmp_path)
    assert caught.value.fix == "surefoot data get demo"
    assert not (tmp_path / "tokens").exists()
    get("demo", tmp_path)
    assert collect(None, "demo", vocab_size=270, cache=tmp_path).train.documents > 1


def test_a_loaded_corpus_says_what_it_is(tmp_path, known):
    known(corpus_of(TEXT))
    text = load_text(None, "demo", val_ratio=0.1, vocabulary="char", cache=tmp_path)
    assert (text.name, text.licence, text.origin) == ("demo", "public domain", "download")
    assert text.where == "package demo 1"
    assert text.characters == len(TEXT)


def test_known_bytes_are_recognised_wherever_they_lie(tmp_path, known):
    known(corpus_of(TEXT, "classic"), corpus_of("x" * len(TEXT), "other"))
    path = tmp_path / "input.txt"
    path.write_text(TEXT)
    found = recognise(path)
    assert found is not None
    assert found.name == "classic"
    text = load_text(path, None, val_ratio=0.1, vocabulary="char", cache=tmp_path)
    assert (text.name, text.licence, text.origin) == ("classic", "public domain", "given path")
    path.write_text(TEXT[:-1] + "!")
    assert recognise(path) is None
    path.write_text(TEXT * 1000)
    assert recognise(path) is None


def test_an_unknown_name_gets_a_suggestion(tmp_path):
    with pytest.raises(DataError) as caught:
        find("shakespear9", tmp_path)
    assert "did you mean shakespeare9?" in str(caught.value.fix)
    assert "pydocs" in str(caught.value.where)


def test_the_list_of_texts():
    known = corpora()
    assert next(iter(known)) == DEFAULT
    assert FALLBACK in known
    for name, corpus in known.items():
        assert corpus.name == name
        assert corpus.licence
        assert corpus.source
        assert (corpus.sha256 is None) == (name == FALLBACK)
        assert (corpus.characters is None) == (name == FALLBACK)


def test_the_fallback_needs_nothing_but_python(tmp_path, monkeypatch):
    monkeypatch.setenv("SUREFOOT_OFFLINE", "1")
    library = tmp_path / "lib"
    library.mkdir()
    (library / "some.py").write_text('"""Documented."""')
    monkeypatch.setattr(room.sysconfig, "get_path", lambda name: str(library))
    found = find(None, tmp_path / "cache")
    assert found.origin == "bundled"
    assert "SUREFOOT_OFFLINE" in found.notes[0]
    text = found.path.read_text("ascii")
    assert text.endswith("some\nDocumented.\n\n\n")
    assert len(text) > 100_000  # the help topics
    assert find("pydocs", tmp_path / "cache").notes == ()
