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
