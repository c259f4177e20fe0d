import os
import sys
from pathlib import Path

import pytest

from surefoot.data.files import (
    TextFile,
    characters_of,
    find_files,
    held_out_rank,
    looks_like,
    sized,
)
from surefoot.errors import DataError

needs_links = pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")


def read(path: Path, kind: str = "char", remarks: set[str] | None = None) -> str:
    (file,), _ = find_files(path)
    return "".join(characters_of(file, kind, set() if remarks is None else remarks))


def refused(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        find_files(path)
    assert caught.value.exit_code == 2
    return caught.value


def test_a_file_is_found_with_its_hash(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("hello")
    (file,), remarks = find_files(path)
    assert (file.name, file.size, remarks) == ("a.txt", 5, [])
    path.write_text("hallo")
    (other,), _ = find_files(path)
    assert other.digest != file.digest


def test_line_ends_and_marks_are_read_as_editors_do(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    for kind in ("char", "byte"):
        remarks: set[str] = set()
        assert read(path, kind, remarks) == "one\ntwo\nthree\n"
        assert remarks == {r"line ends \r\n or \r are read as \n"}
    path.write_bytes(b"one\ntwo")
    assert read(path, "char", remarks := set()) == "one\ntwo"
    assert not remarks


def test_a_line_end_may_lie_across_two_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("surefoot.data.files._BLOCK", 3)
    path = tmp_path / "a.txt"
    path.write_bytes("äö\r\nü\r\n".encode())
    assert read(path) == "äö\nü\n"
    assert read(path, "byte").encode("latin-1").decode() == "äö\nü\n"


@pytest.mark.parametrize("block", [1, 2, 3, 1 << 20])
@pytest.mark.parametrize(
    ("content", "offset", "value", "line"),
    [
        (b"ab\ncaf\xe9 x", 6, 0xE9, 2),
        ("aä€".encode() + b"\n\n\xff", 8, 0xFF, 3),
        (b"cut \xe2\x82", 4, 0xE2, 1),  # ends inside a character
        ("€€".encode() + b"\x80", 6, 0x80, 1),
    ],
)
def test_the_first_byte_that_is_not_utf8_is_named(
    tmp_path, monkeypatch, block, content, offset, value, line
):
    monkeypatch.setattr("surefoot.data.files._BLOCK", block)
    path = tmp_path / "latin.txt"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert f"{path} is not UTF-8: byte {offset} (0x{value:02x}, line {line})" in caught.value.what
    assert "--vocabulary byte" in str(caught.value.fix)
    assert read(path, "byte").encode("latin-1") == content


def test_binary_files_are_refused_with_the_place(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"a" * 70_000 + b"\0")
    assert "byte 70,000 is NUL" in refused(path).what


def test_utf16_is_recognised(tmp_path):
    path = tmp_path / "windows.txt"
    path.write_text("hello", encoding="utf-16")
    error = refused(path)
    assert "UTF-16" in error.what
    assert "iconv -f UTF-16 -t UTF-8" in str(error.fix)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.txt").touch()
    assert "is empty" in refused(tmp_path / "a.txt").what


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(tmp_path / "pipe").what


def test_a_missing_file_names_its_neighbours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "Shakespeare.txt").write_text("x" * 1_115_394)
    error = refused(Path("data/shakspeare.txt"))
    assert error.what == "data.path: no file data/shakspeare.txt".replace("/", os.sep)
    fix = str(error.fix)
    assert "did you mean" in fix
    assert "Shakespeare.txt (1.1 MB)? It is in " in fix
    assert str((tmp_path / "data").resolve()) in fix
    assert "surefoot data list" in fix
    assert str(tmp_path) in str(error.where)


def test_neighbours_are_looked_for_here_when_the_folder_is_missing_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    assert "the folder corpus" in str(looks_like(Path("nowhere/corpsu")))
    assert looks_like(Path("nothing-like-it.csv")) is None
    Path("loop").symlink_to("loop")
    assert "did you mean loop (a link that leads nowhere)" in str(looks_like(Path("loop")))
    assert "did you mean" not in str(refused(Path("nothing-like-it.csv")).fix)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "secret.txt"
    path.write_text("hush")
    path.chmod(0)
    assert "cannot read" in refused(path).what


def test_a_read_error_is_a_message(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("hello")
    file = TextFile(path, "a.txt", 5, "")
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read .*a\.txt"):
        list(characters_of(file, "char", set()))


def make_tree(root: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/b/c.py", ".hidden", ".git/config", "__pycache__/x.txt",
                 "node_modules/y.txt", "venv/lib.txt", "empty.txt"):  # fmt: skip
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if name == "empty.txt" else f"text of {name}\n")
    (root / "venv" / "pyvenv.cfg").touch()
    (root / "runs" / "one").mkdir(parents=True)
    for name in ("run.json", "config.yaml", "samples.jsonl"):
        (root / "runs" / "one" / name).write_text("a run\n")
    (root / "a" / "picture.png").write_bytes(b"\x89PNG\0")
    (root / "late.dat").write_bytes(b"x" * 10_000 + b"\0")


def test_a_folder_is_walked_in_name_order_without_the_rest(tmp_path):
    make_tree(tmp_path)
    files, remarks = find_files(tmp_path)
    assert [file.name for file in files] == ["a/b/c.py", "a/z.md", "b.txt"]
    assert len(remarks) == 1
    assert remarks[0].startswith("left out binary files (2): ")
    assert "a/picture.png" in remarks[0]
    assert "late.dat" in remarks[0]


def test_a_binary_file_itself_is_bytes(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"\x89PNG\0\xff")
    assert "--vocabulary byte" in str(refused(path).fix)
    (file,), _ = find_files(path, kind="byte")
    assert "".join(characters_of(file, "byte", set())).encode("latin-1") == path.read_bytes()


@needs_links
def test_links_in_a_folder_are_never_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "own.txt").write_text("own")
    (inside / "file.txt").symlink_to(outside / "secret.txt")
    (inside / "folder").symlink_to(outside)
    (inside / "loop").symlink_to(inside)
    (inside / "broken.txt").symlink_to(tmp_path / "nowhere")
    files, remarks = find_files(inside)
    assert [file.name for file in files] == ["own.txt"]
    assert remarks[0].startswith("left out links (4): ")


@needs_links
def test_a_link_that_is_given_by_name_is_meant(tmp_path):
    (tmp_path / "real.txt").write_text("real")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    assert read(tmp_path / "link.txt") == "real"


def test_a_folder_without_text_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\0")
    error = refused(tmp_path)
    assert "has no text files" in error.what
    assert "left out binary files (1): a.png" in str(error.where)


def test_ranks_depend_on_the_name_alone_and_spread():
    ranks = [held_out_rank(f"file{i}.txt") for i in range(2000)]
    assert all(0 <= rank < 1 for rank in ranks)
    assert 150 < sum(rank < 0.1 for rank in ranks) < 250
    assert held_out_rank("a/b.txt") == 0.6154614085670231  # splits must not move


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (999_999, "1.0 MB"),
     (2_570_000, "2.6 MB"), (10**12, "1000.0 GB")],
)  # fmt: skip
def test_sizes_are_readable(size, text):
    assert sized(size) == text
