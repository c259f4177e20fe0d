"""Working ahead changes no batch, whatever is asked and by how many threads it is made."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.data.batch import Data
from surefoot.data.prefetch import Prefetch
from surefoot.data.text import TextSource

BATCH = 6
DATA = Data(TextSource(np.arange(5000, dtype=np.uint16), context=8), seed=11, batch_size=BATCH)

requests = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, BATCH - 1), st.integers(1, BATCH)), max_size=30
)


def same(one, two):
    return one.weight == two.weight and all(
        np.array_equal(one.fields[name], two.fields[name]) for name in ("x", "y")
    )


@pytest.mark.parametrize("threads", [0, 1, 2, 4])
@pytest.mark.parametrize("micro", [1, 4, 6])
def test_reading_on_gives_the_same_batches(threads, micro):
    with Prefetch(DATA, threads, depth=3) as ahead:
        for step in range(12):
            for start in range(0, BATCH, micro):
                size = min(micro, BATCH - start)
                assert same(ahead.batch(step, start, size), DATA.batch(step, start, size))


@pytest.mark.parametrize("threads", [0, 1, 2, 4])
@settings(max_examples=25)
@given(asked=requests)
def test_any_jumping_about_gives_the_same_batches(threads, asked):
    with Prefetch(DATA, threads, depth=2) as ahead:
        for step, start, size in asked:
            size = min(size, BATCH - start)
            assert same(ahead.batch(step, start, size), DATA.batch(step, start, size))


@given(st.integers(1, 40), st.integers(0, 50), st.integers(0, 80))
def test_growing_batches_follow_each_other_without_a_gap(size, warmup, step):
    plain = Data(DATA.source, seed=11, batch_size=size)
    data = Data(DATA.source, seed=11, batch_size=size, warmup=warmup)
    assert data.first(step + 1) == data.first(step) + data.size(step)
    assert data.size(step) <= data.size(step + 1) <= size
    assert data.size(warmup) == size and (warmup == 0 or data.size(0) == max(1, size // 8))
    places = [
        np.concatenate([d.address(s)[0] for s in range(n)])
        for d, n in ((data, step + 1), (plain, step + 1))
    ]
    assert np.array_equal(places[0], places[1][: len(places[0])])  # the same examples in order


@pytest.mark.parametrize("threads", [0, 2])
def test_working_ahead_follows_growing_batches(threads):
    data = Data(DATA.source, seed=11, batch_size=8, warmup=5)
    with Prefetch(data, threads, depth=3) as ahead:
        for step in range(9):
            for start in range(0, data.size(step), 4):
                size = min(4, data.size(step) - start)
                assert same(ahead.batch(step, start, size), data.batch(step, start, size))
            assert same(ahead.batch(step), data.batch(step))
