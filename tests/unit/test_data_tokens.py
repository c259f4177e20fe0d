import gc
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from surefoot.data.text import TextSource
from surefoot.data.tokens import TokenFile
from surefoot.errors import DataError


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "tokens.bin"
    np.arange(1000, dtype=np.uint16).tofile(path)
    return TokenFile(path, np.dtype(np.uint16))


def test_it_reads_like_an_array(tokens):
    same = np.arange(1000, dtype=np.uint16)
    assert len(tokens) == 1000
    for where in (slice(None), slice(3, 9), slice(-5, None), slice(7, 3), slice(990, 2000)):
        assert np.array_equal(tokens[where], same[where])
        assert tokens[where].dtype == np.uint16
    with pytest.raises(IndexError, match="in sequence"):
        tokens[::2]


def test_rows_begin_where_they_are_asked_to(tokens):
    rows = tokens.rows(np.array([5, 0, 990]), 10)
    assert rows.shape == (3, 10)
    assert rows[:, 0].tolist() == [5, 0, 990]
    assert tokens.rows([], 10).shape == (0, 10)


def test_threads_do_not_disturb_each_other(tokens):
    def read(start):
        return tokens.rows([start] * 20, 50)

    with ThreadPoolExecutor(4) as pool:
        for start, rows in zip(range(900), pool.map(read, range(900)), strict=True):
            assert (rows == np.arange(start, start + 50)).all()


def test_a_source_is_the_same_from_memory_and_from_a_file(tokens):
    array = np.arange(1000, dtype=np.uint16)
    one, two = TextSource(tokens, 7, 100, 905), TextSource(array, 7, 100, 905)
    assert one.fingerprint == two.fingerprint
    index = np.arange(len(one))
    for epoch in range(5):
        arguments = (index, np.full(len(one), epoch), 3)
        for name in ("x", "y"):
            assert np.array_equal(
                one.batch(*arguments).fields[name], two.batch(*arguments).fields[name]
            )


def test_a_file_that_is_cut_short_is_noticed(tokens):
    os.truncate(tokens.path, 100)
    assert tokens[:50].tolist() == list(range(50))
    with pytest.raises(DataError, match="cut short"):
        tokens.rows([0, 45], 10)


def test_the_file_is_closed_with_its_last_user(tmp_path):
    (tmp_path / "tokens.bin").write_bytes(b"abc")
    tokens = TokenFile(tmp_path / "tokens.bin", np.dtype(np.uint8))
    number = tokens._file
    assert os.fstat(number).st_size == 3
    del tokens
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_a_deleted_file_still_reads(tokens):
    tokens.path.unlink()
    assert tokens[10:12].tolist() == [10, 11]
