"""The cache of shards: bounded, verified, shared by processes, and whole after any death."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from surefoot.data import shelf as room
from surefoot.data.shelf import Item, Shelf
from surefoot.errors import DataError, OutOfResources

SIZE = 1000


class Far:
    """Ten files elsewhere; `pulled` says which bytes of which were asked for."""

    def __init__(self) -> None:
        self.content = [bytes([n]) * SIZE for n in range(10)]
        self.pulled: list[tuple[int, int, int]] = []

    def item(self, number: int) -> Item:
        sha256 = hashlib.sha256(bytes([number]) * SIZE).hexdigest()

        def pull(start: int, stop: int) -> bytes:
            self.pulled.append((number, start, stop))
            return self.content[number][start:stop]

        return Item(f"train-{number:05}.bin", sha256, SIZE, pull)


@pytest.fixture
def far() -> Far:
    return Far()


def read(shelf: Shelf, item: Item) -> bytes:
    with shelf.open(item) as handle:
        return os.pread(handle, 2 * SIZE, 0)


def test_a_file_is_fetched_once_and_what_was_read_longest_ago_goes(
    tmp_path: Path, far: Far
) -> None:
    shelf = Shelf(tmp_path, 3 * SIZE)
    for number in (0, 1, 2, 0, 3):  # 3 needs room, and 1 was read longest ago
        assert read(shelf, far.item(number)) == bytes([number]) * SIZE
        assert shelf.size() <= 3 * SIZE
    assert [number for number, *_ in far.pulled] == [0, 1, 2, 3]
    for number in (0, 2, 3):
        read(shelf, far.item(number))
    assert len(far.pulled) == 4
    read(shelf, far.item(1))
    assert far.pulled[-1][0] == 1 and shelf.fetched == 5 * SIZE


def test_what_is_being_read_stays(tmp_path: Path, far: Far, monkeypatch: Any) -> None:
    monkeypatch.setattr(room, "_PATIENCE", 0.05)
    shelf = Shelf(tmp_path, 2 * SIZE)
    with shelf.open(far.item(0)) as zero, shelf.open(far.item(1)) as one:
        with pytest.raises(OutOfResources, match=r"no room for train-00002.bin"):
            read(shelf, far.item(2))
        assert (os.pread(zero, 1, 0), os.pread(one, 1, 0)) == (b"\0", b"\1")
        assert shelf.size() == 2 * SIZE
    assert read(shelf, far.item(2)) == bytes([2]) * SIZE


def test_an_interrupted_one_goes_on_where_it_was(
    tmp_path: Path, far: Far, monkeypatch: Any
) -> None:
    monkeypatch.setattr(room, "_PIECE", 300)
    item, shelf = far.item(4), Shelf(tmp_path, 3 * SIZE)

    def dies(start: int, stop: int) -> bytes:
        if start == 600:
            raise KeyboardInterrupt
        return item.pull(start, stop)

    with pytest.raises(KeyboardInterrupt):
        read(shelf, Item(item.title, item.sha256, SIZE, dies))
    (part,) = tmp_path.glob("*.part")
    assert part.stat().st_size == 600 and shelf.size() == SIZE, "it counts as whole"
    far.pulled.clear()
    assert read(Shelf(tmp_path, 3 * SIZE), item) == bytes([4]) * SIZE
    assert [at for _, *at in far.pulled] == [[600, 900], [900, 1000]]
    assert not list(tmp_path.glob("*.part"))


def test_a_torn_part_is_fetched_once_more(tmp_path: Path, far: Far) -> None:
    item = far.item(4)
    (tmp_path / f"{item.sha256}-{SIZE}.part").write_bytes(b"torn" * 100)
    assert read(Shelf(tmp_path, 3 * SIZE), item) == bytes([4]) * SIZE
    assert [at for _, *at in far.pulled] == [[400, 1000], [0, 1000]]


@pytest.mark.parametrize("change", ["flip", "cut", "empty"])
def test_changed_bytes_are_refused_by_name(tmp_path: Path, far: Far, change: str) -> None:
    other = {"flip": b"x" + bytes(SIZE - 1), "cut": bytes([5]) * 500, "empty": b""}
    far.content[5] = other[change]
    with pytest.raises(DataError, match=r"train-00005.bin is not what its manifest says"):
        read(Shelf(tmp_path, 3 * SIZE), far.item(5))
    assert not list(tmp_path.glob("*.*")) or Shelf(tmp_path, SIZE).size() == 0


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_copy_is_fetched_again(tmp_path: Path, far: Far, damage: str) -> None:
    read(Shelf(tmp_path, 3 * SIZE), far.item(6))
    (copy,) = tmp_path.glob("*.bin")
    content = copy.read_bytes()
    copy.write_bytes(b"x" + content[1:] if damage == "flip" else content[:-1])
    assert read(Shelf(tmp_path, 3 * SIZE), far.item(6)) == bytes([6]) * SIZE
    assert len(far.pulled) == 2


def test_two_threads_fetch_a_file_once(tmp_path: Path, far: Far) -> None:
    shelf, begun, go = Shelf(tmp_path, 3 * SIZE), threading.Event(), threading.Event()
    item = far.item(7)

    def slow(start: int, stop: int) -> bytes:
        begun.set()
        assert go.wait(600)
        return item.pull(start, stop)

    found: list[bytes] = []
    one, two = (
        threading.Thread(target=lambda i: found.append(read(shelf, i)), args=(i,))
        for i in (Item(item.title, item.sha256, SIZE, slow), item)
    )
    one.start()
    assert begun.wait(600)
    two.start()
    go.set()
    one.join()
    two.join()
    assert found == [bytes([7]) * SIZE] * 2 and len(far.pulled) == 1


def test_working_ahead_takes_spare_room_and_nothing_expected(tmp_path: Path, far: Far) -> None:
    shelf = Shelf(tmp_path, 3 * SIZE)
    for number in (0, 1):
        read(shelf, far.item(number))
    shelf.expect([far.item(n) for n in (1, 2, 3, 4)])  # 0 is not, and may go
    shelf.settle()
    kept = {path.stem for path in tmp_path.glob("*.bin")}
    assert kept == {far.item(n).sha256 for n in (1, 2, 3)}
    assert shelf.size() == 3 * SIZE
    far.pulled.clear()
    read(shelf, far.item(5))  # what was fetched ahead and not read yet goes last
    assert {path.stem for path in tmp_path.glob("*.bin")} == {far.item(n).sha256 for n in (2, 3, 5)}


def test_what_cannot_be_fetched_ahead_is_told_when_it_is_needed(tmp_path: Path, far: Far) -> None:
    far.content[3] = b""
    shelf = Shelf(tmp_path, 3 * SIZE)
    shelf.expect([far.item(3)])
    shelf.settle()
    with pytest.raises(DataError, match="train-00003"):
        read(shelf, far.item(3))


PROCESS = """
import hashlib, os, random, sys
from pathlib import Path
from surefoot.data.shelf import Item, Shelf
folder, source, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
shelf, draw, most = Shelf(folder, 4000), random.Random(seed), 0
def item(n):
    def pull(start, stop):
        with (source / str(n)).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)
    return Item(str(n), hashlib.sha256(bytes([n]) * 1000).hexdigest(), 1000, pull)
for turn in range(300):
    n = draw.randrange(10)
    if turn % 30 == 0:
        shelf.expect([item(draw.randrange(10)) for _ in range(3)])
    with shelf.open(item(n)) as handle:
        assert os.pread(handle, 2000, 0) == bytes([n]) * 1000
        most = max(most, shelf.size())
shelf.settle()
print(most)
"""


def test_processes_share_it_and_none_goes_over_the_limit(tmp_path: Path, far: Far) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number, content in enumerate(far.content):
        (source / str(number)).write_bytes(content)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path / "shelf"), str(source), str(seed)],
            stdout=subprocess.PIPE, text=True,
        )
        for seed in range(3)
    ]  # fmt: skip
    said = [process.communicate(timeout=600)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert all(0 < int(most) <= 4000 for most in said)
    assert not list((tmp_path / "shelf").glob("*.part"))


def test_a_dead_process_leaves_a_part_that_counts_until_room_is_needed(
    tmp_path: Path, far: Far
) -> None:
    dead = far.item(8)
    part = tmp_path / f"{dead.sha256}-{SIZE}.part"
    part.write_bytes(b"\x08" * 10)
    shelf = Shelf(tmp_path, 2 * SIZE)
    read(shelf, far.item(0))
    assert part.exists() and shelf.size() == 2 * SIZE
    with part.open() as held:  # somebody fetches it: the other one has to go
        fcntl.flock(held, fcntl.LOCK_EX)
        read(shelf, far.item(1))
        assert part.exists() and shelf.size() == 2 * SIZE
    os.utime(part, ns=(0, 0))
    read(shelf, far.item(2))
    assert not part.exists() and shelf.size() == 2 * SIZE


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot use the shard cache") as caught:
        Shelf(tmp_path / "file" / "shards", SIZE)
    assert "SUREFOOT_CACHE" in str(caught.value)
