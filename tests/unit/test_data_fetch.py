import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from surefoot.data import fetch
from surefoot.data.fetch import Unreachable, Url, Wheel, cache_dir, is_offline, sha256_of, writing
from surefoot.errors import DataError


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "demo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("demo/b.md", "second")
        wheel.writestr("demo/a.md", "first")
        wheel.writestr("../../escape.txt", "out of the folder")
    return path


class Pip:
    """Stands in for `python -m pip download`; records what it was asked."""

    def __init__(self, brings=(), code=0, stderr="", late=False):
        self.brings, self.code, self.stderr, self.late = brings, code, stderr, late
        self.commands = []

    def __call__(self, command, **options):
        self.commands.append(command)
        if self.late:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        folder = Path(command[command.index("--dest") + 1])
        for path in self.brings:
            (folder / path.name).write_bytes(path.read_bytes())
        return subprocess.CompletedProcess(command, self.code, "", self.stderr)


@pytest.fixture
def pip(monkeypatch):
    monkeypatch.delenv("SUREFOOT_OFFLINE", raising=False)

    def use(**answer):
        stand_in = Pip(**answer)
        monkeypatch.setattr(fetch.subprocess, "run", stand_in)
        return stand_in

    return use


def wheel_of(path: Path) -> Wheel:
    return Wheel("demo", "1.0", sha256_of(path))


def test_a_wheel_is_downloaded_once(tmp_path, archive, pip):
    asked = pip(brings=[archive])
    wheel, cache = wheel_of(archive), tmp_path / "cache"
    path = wheel.fetch(cache)
    assert wheel.fetch(cache) == path
    assert len(asked.commands) == 1
    command = asked.commands[0]
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert command[-1] == "demo==1.0"
    assert {"--no-deps", "--only-binary=:all:", "--no-input"} <= set(command)
    assert wheel.read(path, "demo/a.md") == b"first"
    assert wheel.members(path, ".md") == ["demo/a.md", "demo/b.md"]


def test_a_damaged_wheel_in_the_cache_is_downloaded_again(tmp_path, archive, pip):
    asked = pip(brings=[archive])
    path = wheel_of(archive).fetch(tmp_path / "cache")
    path.write_bytes(b"damaged")
    assert wheel_of(archive).fetch(tmp_path / "cache") == path
    assert sha256_of(path) == sha256_of(archive)
    assert len(asked.commands) == 2


def test_the_wrong_hash_is_an_error_and_nothing_is_kept(tmp_path, archive, pip):
    pip(brings=[archive])
    with pytest.raises(DataError, match=r"demo 1\.0 is not what it should be") as caught:
        Wheel("demo", "1.0", "0" * 64).fetch(tmp_path / "cache")
    assert sha256_of(archive) in str(caught.value.where)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"code": 1, "stderr": "ERROR: No matching distribution"}, "pip: No matching distribution"),
        ({"code": 1, "stderr": "WARNING: x\nERROR: one\nERROR: two\n"}, "pip: two"),
        ({"code": 1, "stderr": "python: No module named pip"}, "this Python has no pip"),
        ({"code": 2}, "pip failed"),
        ({"late": True}, "pip did not finish within 3 s"),
        ({}, "pip brought 0 archives of demo 1.0"),
    ],
)
def test_why_nothing_could_be_reached(tmp_path, pip, answer, reason):
    pip(**answer)
    with pytest.raises(Unreachable, match=reason):
        Wheel("demo", "1.0", "0" * 64).fetch(tmp_path, timeout=3)


def test_nothing_is_asked_when_offline(tmp_path, pip, monkeypatch):
    asked = pip()
    monkeypatch.setenv("SUREFOOT_OFFLINE", "1")
    with pytest.raises(Unreachable, match="SUREFOOT_OFFLINE"):
        Wheel("demo", "1.0", "0" * 64).fetch(tmp_path)
    with pytest.raises(Unreachable, match="SUREFOOT_OFFLINE"):
        Url("file:///etc/hostname", "0" * 64).fetch()
    assert asked.commands == []


@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("true", True), ("0", False), ("no", False), ("", False)]
)
def test_what_counts_as_offline(monkeypatch, value, expected):
    monkeypatch.setenv("SUREFOOT_OFFLINE", value)
    assert is_offline() is expected


def test_members_are_read_and_never_unpacked(tmp_path, archive):
    wheel = wheel_of(archive)
    before = sorted(tmp_path.rglob("*"))
    assert wheel.read(archive, "../../escape.txt") == b"out of the folder"
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(DataError, match="cannot read demo/none"):
        wheel.read(archive, "demo/none")
    archive.write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"cannot read demo/a\.md"):
        wheel.read(archive, "demo/a.md")


def test_a_member_that_would_fill_the_memory_is_refused(archive, monkeypatch):
    monkeypatch.setattr(fetch, "_LARGEST_MEMBER", 3)
    with pytest.raises(DataError, match="larger than"):
        wheel_of(archive).read(archive, "demo/a.md")


def test_a_file_at_an_address(tmp_path, monkeypatch):
    monkeypatch.delenv("SUREFOOT_OFFLINE", raising=False)
    path = tmp_path / "text.txt"
    path.write_bytes(b"hello")
    address = path.as_uri()
    assert Url(address, hashlib.sha256(b"hello").hexdigest()).fetch() == b"hello"
    with pytest.raises(DataError, match="is not what it should be"):
        Url(address, "0" * 64).fetch()
    path.unlink()
    with pytest.raises(Unreachable, match="no answer from"):
        Url(address, "0" * 64).fetch()


def test_a_file_is_seen_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file.bin"
    with writing(path) as file:
        file.write(b"half")
        assert not path.exists()
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    with pytest.raises(KeyError), writing(path) as file:
        file.write({}["interrupted"])
    assert path.read_bytes() == b"half and half"
    assert list(path.parent.iterdir()) == [path]


def test_what_a_killed_writer_left_is_swept_after_a_day(tmp_path):
    old, new, other = (tmp_path / n for n in (".file.bin.old", ".file.bin.new", ".file2.bin.old"))
    for path in (old, new, other):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    os.utime(other, (1, 1))
    with writing(tmp_path / "file.bin"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".file.bin.new",
        ".file2.bin.old",
        "file.bin",
    ]


def test_two_writers_of_one_file_both_succeed(tmp_path):
    path, meet = tmp_path / "file.bin", threading.Barrier(2)
    failures = []

    def work():
        try:
            with writing(path) as file:
                file.write(b"x" * 100_000)
                meet.wait()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert path.read_bytes() == b"x" * 100_000
    assert list(tmp_path.iterdir()) == [path]


def test_a_cache_that_cannot_be_written_is_a_message(tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with (
        pytest.raises(DataError, match="cannot write to the cache") as caught,
        writing(tmp_path / "cache" / "x" / "file.bin"),
    ):
        pass
    assert "SUREFOOT_CACHE" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("system", "environment", "expected"),
    [
        ("linux", {"SUREFOOT_CACHE": "/c"}, "/c"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/surefoot"),
        ("linux", {}, "/home/ann/.cache/surefoot"),
        ("darwin", {}, "/home/ann/Library/Caches/surefoot"),
    ],
)
def test_where_the_cache_is(monkeypatch, system, environment, expected):
    for name in ("SUREFOOT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(fetch.sys, "platform", system)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ann"))
    assert cache_dir() == Path(expected)
