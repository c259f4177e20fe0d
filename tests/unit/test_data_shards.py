"""Shards: made once, by any number of processes, across interruptions; verified every time."""

import json

import numpy as np
import pytest

from surefoot.data import shards as room
from surefoot.data.bpe import train_bpe
from surefoot.data.documents import Reading, find_documents
from surefoot.data.shards import shards, survey

WORDS = ["alpha", "beta", "gamma", "delta"]


@pytest.fixture
def files(tmp_path):
    rows = [f"{WORDS[n % 4]} {n} " * (n % 7 + 1) for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in rows))
    return find_documents(tmp_path / "rows.jsonl")[0]


@pytest.fixture(scope="module")
def bpe():
    return train_bpe([" ".join(WORDS)] * 2, 270)


def make(files, bpe, cache, shard=256, **more):
    seen = survey(files, Reading(), cache)
    return shards(files, Reading(), bpe, 0.2, seen.size, cache, shard=shard, **more)


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.setattr(room, "_cores", lambda: 1)


def same(one, other):
    assert one.digest == other.digest and (one.train, one.held) == (other.train, other.held)
    assert np.array_equal(one.tokens[:], other.tokens[:])


def test_every_document_is_on_one_side_whole(tmp_path, files, bpe, alone):
    made = make(files, bpe, tmp_path)
    assert made.train.documents + made.held.documents == 60
    assert made.train.tokens + made.held.tokens == len(made.tokens)
    assert 0 < made.held.documents < 30
    texts = [json.loads(line)["text"] for line in files[0].path.read_text().splitlines()]
    parts = bpe.decode(made.tokens[:]).split("<|endoftext|>")[1:]
    assert sorted(parts) == sorted(texts)
    held = bpe.decode(made.tokens[made.train.tokens :]).split("<|endoftext|>")[1:]
    assert made.held.size == sum(map(len, held))
    assert made.held.words == sum(len(text.split()) for text in held)


def test_how_it_is_cut_changes_no_token(tmp_path, files, bpe, alone):
    one, many = make(files, bpe, tmp_path, 1 << 20), make(files, bpe, tmp_path, 64)
    assert np.array_equal(one.tokens[:], many.tokens[:])
    rows = many.tokens.rows(np.array([0, 55, 200]), 90)
    assert np.array_equal(rows, [one.tokens[at : at + 90] for at in (0, 55, 200)])


def test_an_interrupted_one_goes_on(tmp_path, files, bpe, alone, monkeypatch):
    whole = make(files, bpe, tmp_path / "whole")
    written, real = [], room._write_one

    def dies(plan, number, *rest):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(number)
        real(plan, number, *rest)

    monkeypatch.setattr(room, "_write_one", dies)
    with pytest.raises(KeyboardInterrupt):
        make(files, bpe, tmp_path / "cut")
    again = []
    monkeypatch.setattr(
        room, "_write_one", lambda p, n, *rest: (again.append(n), real(p, n, *rest))
    )
    same(make(files, bpe, tmp_path / "cut"), whole)
    assert again and not set(again) & set(written)


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "description"])
def test_a_damaged_shard_is_made_again_alone(tmp_path, files, bpe, alone, monkeypatch, damage):
    first = make(files, bpe, tmp_path)
    expected = first.tokens[:]
    (folder,) = (tmp_path / "tokens").glob("bpe-*")
    path = folder / "00001.train.bin"
    content = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    elif damage == "description":
        (folder / "00001.json").write_text("{")
    else:
        content[5] ^= 1
        path.write_bytes(content if damage == "flip" else content[:-2])
    again, real = [], room._write_one
    monkeypatch.setattr(
        room, "_write_one", lambda p, n, *rest: (again.append(n), real(p, n, *rest))
    )
    made = make(files, bpe, tmp_path)
    assert again == [1] and made.digest == first.digest
    assert np.array_equal(made.tokens[:], expected)


def test_several_processes_make_the_same(tmp_path, files, bpe, monkeypatch):
    monkeypatch.setattr(room, "_cores", lambda: 1)
    alone = make(files, bpe, tmp_path / "alone", 1024)
    monkeypatch.setattr(room, "_cores", lambda: 2)
    here, told = [], []
    monkeypatch.setattr(room, "_write_one", lambda *_: here.append(1))
    together = make(
        files, bpe, tmp_path / "both", 1024, progress=lambda done, count: told.append((done, count))
    )
    same(together, alone)
    assert not here, "the other processes made all of it"
    assert told[0][0] == 0 and {count for _, count in told} == {told[0][1]}


def test_the_second_survey_reads_nothing(tmp_path, files, monkeypatch):
    first = survey(files, Reading(), tmp_path)
    monkeypatch.setattr(room, "documents", None)
    assert survey(files, Reading(), tmp_path) == first
    assert first.documents == 60 and 0 < first.least < 0.2
