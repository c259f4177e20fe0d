"""Shards elsewhere: written once, read through a bounded cache, the tokens of the text itself."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.storage import Storage

from surefoot.data import manifest, place
from surefoot.data.batch import Data
from surefoot.data.collection import Collection, collect
from surefoot.data.manifest import publish, read_manifest
from surefoot.data.place import Place, Silent
from surefoot.data.remote import FarSource, FarTokens, open_shards
from surefoot.errors import DataError, OutOfResources, Unsupported

TEXT = Path(__file__).parents[1] / "fixtures" / "shakespeare.txt"
SHARD, CONTEXT = 1000, 16  # bytes; tokens


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    cache = tmp_path_factory.mktemp("cache")
    return collect(TEXT, "", val_ratio=0.2, vocab_size=300, test_path=TEXT, cache=cache)


@pytest.fixture(scope="module")
def written(near: Collection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "shards"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "_OVERLAP", 40)
        publish(near, str(folder), SHARD)
    return folder


@pytest.fixture
def storage(written: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    monkeypatch.delenv("SUREFOOT_OFFLINE")
    monkeypatch.setattr(place, "PAUSES", (0.0, 0.0))
    made = Storage()
    made.files = {f"b/s/{path.name}": path.read_bytes() for path in written.iterdir()}
    yield made
    made.close()


def steps(source: Any, count: int = 30) -> Iterator[np.ndarray]:
    data = Data(source, 3, 8)
    for step in range(count):
        fields = data.batch(step).fields
        yield np.concatenate([fields["x"], fields["y"][:, -1:]], axis=1)


def test_batches_are_those_of_the_text(near: Collection, written: Path, tmp_path: Path) -> None:
    far = open_shards(str(written), 5 * SHARD, cache=tmp_path)
    ours, theirs = near.source(CONTEXT), far.source(CONTEXT)
    assert len(ours) == len(theirs)
    for one, other in zip(steps(ours), steps(theirs), strict=True):
        assert np.array_equal(one, other)
    assert isinstance(far.tokens, FarTokens) and far.tokens.shelf.size() <= 5 * SHARD
    for mine, theirs_ in ((near.val, far.val), (near.test, far.test)):
        assert mine is not None and theirs_ is not None and mine.side == theirs_.side
        for a, b in zip(mine.windows(CONTEXT, 4), theirs_.windows(CONTEXT, 4), strict=True):
            assert np.array_equal(a.fields["y"], b.fields["y"])


@pytest.mark.parametrize("width", [1, 41, 42, 700])
def test_windows_of_any_width_at_any_place(
    near: Collection, written: Path, tmp_path: Path, width: int
) -> None:
    """Up to what shards share one is enough; a longer window is put together."""
    tokens = open_shards(str(written), 5 * SHARD, cache=tmp_path).tokens
    begin = np.arange(0, len(tokens) - width, 97)
    expected = np.stack([near.tokens[at : at + width] for at in begin.tolist()])
    assert np.array_equal(tokens.rows(begin, width), expected)
    assert np.array_equal(tokens[5:5], near.tokens[5:5])
    with pytest.raises(IndexError):
        tokens[::2]


def test_shuffled_by_few_each_shard_is_fetched_once_an_epoch(
    near: Collection, written: Path, tmp_path: Path
) -> None:
    far = open_shards(str(written), 4 * SHARD, together=2, cache=tmp_path)
    source = far.source(CONTEXT)
    data, seen = Data(source, 3, 1), []
    assert isinstance(far.tokens, FarTokens)
    for step in range(len(source)):
        index, epoch = data.address(step)
        seen.append(int(index[0]))
        source.batch(index, epoch, data._key)
    assert sorted(seen) == list(range(len(source)))
    whole = sum(path.stat().st_size for path in written.glob("train-*"))
    # Once each, and one more for the window that goes on at the beginning.
    assert whole <= far.tokens.shelf.fetched <= whole + 2 * SHARD + 80


def test_shuffled_by_few_the_windows_of_a_shard_begin_in_it(written: Path, tmp_path: Path) -> None:
    source = open_shards(str(written), 4 * SHARD, together=1, cache=tmp_path).source(CONTEXT)
    order, key = source.order(9), Data(source, 9, 4)._key
    place_ = np.arange(len(source), dtype=np.int64)
    for number in range(3):
        epoch = np.full(len(place_), number, dtype=np.int64)
        begin = source._phase(epoch, key) + order(place_, epoch) * CONTEXT
        shards = np.searchsorted(source._far.ends, begin, "right")
        changes = np.count_nonzero(np.diff(shards))
        assert changes == len(source._far.ends) - 1


def test_what_comes_is_fetched_ahead(written: Path, tmp_path: Path) -> None:
    far = open_shards(str(written), 1 << 20, together=2, cache=tmp_path)
    assert isinstance(far.tokens, FarTokens)
    data = Data(far.source(CONTEXT), 3, 8)
    data.batch(0)
    far.tokens.shelf.settle()
    count = far.tokens.shelf.fetched
    data.batch(1)
    assert far.tokens.shelf.fetched == count > SHARD * 4


def test_fingerprints_name_the_bytes_the_cut_and_the_order(written: Path, tmp_path: Path) -> None:
    def name(context: int = CONTEXT, **more: Any) -> str:
        return (
            open_shards(str(written), 1 << 20, cache=tmp_path, **more).source(context).fingerprint
        )

    names = [name(), name(context=8), name(together=2), name(together=3)]
    assert len(set(names)) == 4 and name() == names[0]


def test_the_digest_knows_where_one_shard_ends(written: Path) -> None:
    """Other tokens of the same bytes would be other windows: a resume on them is refused."""
    good = json.loads((written / "shards.json").read_text())
    moved = json.loads(json.dumps(good))
    one, two = moved["shards"]["train"][:2]
    one["tokens"], one["overlap"] = one["tokens"] + 4, one["overlap"] - 4
    two["tokens"], two["overlap"] = two["tokens"] - 4, two["overlap"] + 4
    digests = {read_manifest(json.dumps(said), "here").digest for said in (good, moved)}
    assert len(digests) == 2


@pytest.mark.parametrize("ranges", [True, False])
def test_over_http_with_a_bad_network(
    near: Collection, storage: Storage, tmp_path: Path, ranges: bool, monkeypatch: Any
) -> None:
    storage.ranges = ranges
    monkeypatch.setattr(place, "PAUSES", (0.0,) * 20)
    far = open_shards(f"{storage.url}/b/s", 5 * SHARD, cache=tmp_path)
    storage.faults.extend(["busy", "cut", "ok", "cut", "busy"] * 4)
    for one, other in zip(steps(near.source(CONTEXT), 8), steps(far.source(CONTEXT), 8)):
        assert np.array_equal(one, other)
    assert not storage.faults


def test_a_server_that_falls_silent_is_asked_again(
    near: Collection, storage: Storage, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(place, "PAUSES", (0.0,) * 50)
    monkeypatch.setattr(place, "_SILENCE", 0.2)
    far = open_shards(f"{storage.url}/b/s", 5 * SHARD, cache=tmp_path)
    storage.faults.extend(["mute", "ok", "mute"])
    for one, other in zip(steps(near.source(CONTEXT), 8), steps(far.source(CONTEXT), 8)):
        assert np.array_equal(one, other)
    assert not storage.faults


def test_from_a_bucket(near: Collection, storage: Storage, tmp_path: Path, bucket: None) -> None:
    made, sent = publish(near, "s3://b/other", SHARD)
    assert publish(near, "s3://b/other", SHARD) == (made, 0)
    far = open_shards("s3://b/other", 5 * SHARD, cache=tmp_path)
    assert sent == sum(len(c) for name, c in storage.files.items() if name.startswith("b/other/"))
    for one, other in zip(steps(near.source(CONTEXT), 8), steps(far.source(CONTEXT), 8)):
        assert np.array_equal(one, other)


@pytest.fixture
def bucket(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    from fsspec.config import conf

    settings = {"key": "k", "secret": "s", "endpoint_url": storage.url, "skip_instance_cache": True}
    monkeypatch.setitem(conf, "s3", settings)


def test_no_answer_says_what_where_and_how_to_go_on(storage: Storage, tmp_path: Path) -> None:
    far = open_shards(f"{storage.url}/b/s", 5 * SHARD, cache=tmp_path)
    storage.close()
    with pytest.raises(Silent, match="no answer after 3 tries") as caught:
        list(steps(far.source(CONTEXT)))
    assert caught.value.exit_code == 1 and f"{storage.url}/b/s/train-" in str(caught.value)
    # What was read before is still here, and what it belongs to is known.
    again = open_shards(f"{storage.url}/b/s", 5 * SHARD, cache=tmp_path)
    assert again.source(CONTEXT).fingerprint == far.source(CONTEXT).fingerprint
    assert any("does not answer" in note for note in again.notes)


def test_offline_nothing_is_asked(storage: Storage, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SUREFOOT_OFFLINE", "1")
    with pytest.raises(Silent, match="SUREFOOT_OFFLINE"):
        open_shards(f"{storage.url}/b/s", 5 * SHARD, cache=tmp_path)
    assert not storage.asked


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://user:secret@host/a", "no user, password or signature"),
        ("https://host/a?X-Signature=secret", "no user, password or signature"),
        ("nosuch://host/a", "no address"),
        ("/nowhere/at/all", "there is no such file"),
    ],
)
def test_addresses_that_cannot_be(url: str, says: str, tmp_path: Path) -> None:
    with pytest.raises((DataError, Unsupported), match=says) as caught:
        open_shards(url, 1 << 20, cache=tmp_path)
    assert "secret" not in str(caught.value)


def test_a_server_that_refuses_is_asked_once(storage: Storage) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        Place(f"{storage.url}/b").pull("nothing")


@pytest.mark.parametrize("name", ["shards.json", "tokenizer.json"])
def test_damaged_descriptions_are_refused(
    written: Path, tmp_path: Path, name: str, storage: Storage
) -> None:
    storage.files[f"b/s/{name}"] = storage.files[f"b/s/{name}"][:-40] + b"}"
    with pytest.raises(DataError, match=rf"{name} is"):
        open_shards(f"{storage.url}/b/s", 1 << 20, cache=tmp_path)


def test_every_word_of_the_manifest_is_checked(written: Path) -> None:
    good = json.loads((written / "shards.json").read_text())
    assert read_manifest(json.dumps(good), "here").digest
    for change in (
        {"format": 2}, {"sides": {}}, {"dtype": "?!"}, {"more": 1}, {"shards": {"train": [{}]}},
        {"sides": good["sides"] | {"train": good["sides"]["train"] | {"tokens": 1}}},
    ):  # fmt: skip
        with pytest.raises(DataError, match=r"shards.json is"):
            read_manifest(json.dumps(good | change), "here")
    for change in (
        {"name": "../../etc/passwd"}, {"name": ".."}, {"name": "a\\b"}, {"name": ""},
        {"sha256": "../" * 9 + "etc/passwd"}, {"sha256": "/etc/passwd"}, {"sha256": 1},
        {"overlap": -1}, {"overlap": 0.5},
    ):  # fmt: skip
        evil = json.loads(json.dumps(good))
        evil["shards"]["train"][0] |= change
        with pytest.raises(DataError, match="damaged"):
            read_manifest(json.dumps(evil), "here")
    for change in ({"dtype": "O"}, {"dtype": "<f4"}, {"shards": good["shards"] | {"more": []}}):
        with pytest.raises(DataError, match="damaged"):
            read_manifest(json.dumps(good | change), "here")


def test_a_damaged_manifest_says_how_to_write_one_anew(near: Collection, tmp_path: Path) -> None:
    (tmp_path / "shards.json").write_text("{", "utf-8")
    with pytest.raises(DataError, match="damaged") as caught:
        publish(near, str(tmp_path), SHARD)
    assert "remove shards.json" in str(caught.value.fix)


def test_a_file_of_this_machine_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:3])
        raise KeyboardInterrupt

    place_here = Place(str(tmp_path))
    place_here.push("shards.json", b"before")
    monkeypatch.setattr(Path, "write_bytes", torn)
    with pytest.raises(KeyboardInterrupt):
        place_here.push("shards.json", b"afterwards")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


@pytest.mark.parametrize("full", [False, True])
def test_a_folder_that_takes_nothing_says_so_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    def write(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    url, kind, says = tmp_path / "file" / "x", DataError, "Not a directory"
    (tmp_path / "file").touch()
    if full:
        monkeypatch.setattr(Path, "write_bytes", write)
        url, kind, says = tmp_path, OutOfResources, "No space"
    monkeypatch.setattr(place.time, "sleep", lambda _: pytest.fail("a disk is asked once"))
    with pytest.raises(kind, match=f"cannot write x: {says}"):
        Place(str(url)).push("x", b"")


def test_the_root_of_all_files_is_not_where_we_are() -> None:
    for url in ("/", "file:///"):
        assert Place(url)._path("x").lstrip("/") == "x"
    for url in ("", "  "):
        with pytest.raises(DataError, match="an empty address"):
            Place(url)


def test_writing_goes_on_where_it_was_interrupted(
    near: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push, names = Place.push, []

    def dies(self: Place, name: str, content: bytes) -> None:
        if len(names) == 4:
            raise KeyboardInterrupt
        names.append(name)
        push(self, name, content)

    monkeypatch.setattr(Place, "push", dies)
    with pytest.raises(KeyboardInterrupt):
        publish(near, str(tmp_path / "s"), SHARD)
    assert not (tmp_path / "s" / "shards.json").exists()
    again: list[str] = []
    monkeypatch.setattr(Place, "push", lambda s, n, c: (again.append(n), push(s, n, c)))
    publish(near, str(tmp_path / "s"), SHARD)
    assert not set(again) & set(names) and again[-1] == "shards.json"


def test_other_shards_at_the_address_are_not_replaced(
    near: Collection, written: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="other shards lie at this address"):
        publish(near, str(written), 2 * SHARD)


def test_what_a_small_cache_means_is_said(written: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="hold no shard of 1,080"):
        open_shards(str(written), 500, cache=tmp_path)
    notes = open_shards(str(written), 3 * SHARD, cache=tmp_path).notes
    assert any("of all windows fetch a shard" in note for note in notes)
    notes = open_shards(str(written), 3 * SHARD, together=2, cache=tmp_path).notes
    assert any("less than twice 2 shards" in note for note in notes)
    notes = open_shards(str(written), 1 << 20, cache=tmp_path).notes
    assert not any("cache" in note for note in notes)


def test_a_source_far_away_has_an_order_of_its_own(written: Path, tmp_path: Path) -> None:
    source = open_shards(str(written), 1 << 20, cache=tmp_path).source(CONTEXT)
    assert isinstance(source, FarSource)
    place_ = np.arange(len(source), dtype=np.int64)
    one = Data(source, 3, 4).address(0, 0, 4)[0]
    assert np.array_equal(source.order(3)(place_[:4], place_[:4] * 0), one)
