"""Threads of numpy's products: all of them where they help, and as before afterwards."""

import numpy as np
import pytest

from surefoot.nn.blas import Pool, openblas


class Library:
    def __init__(self, threads):
        self.num_threads = self.now = threads

    def set_num_threads(self, num_threads):
        self.now = num_threads


@pytest.mark.parametrize(
    ("usual", "seconds", "chosen"),
    [
        (2, {1: 4.0, 2: 2.0}, 2),
        (2, {1: 4.0, 2: 3.9}, 1),
        (2, {1: 4.0, 2: 120.0}, 1),
        (8, {1: 4.0, 8: 1.0}, 8),
        (1, {1: 4.0}, 1),
    ],
)
def test_more_threads_must_be_faster_and_are_there_again_afterwards(usual, seconds, chosen):
    library, now = Library(usual), [0.0]

    def product():
        now[0] += seconds[library.now]

    pool = Pool(library, product, lambda: now[0])
    assert library.now == usual, "nothing is left behind by measuring"
    with pool:
        assert library.now == chosen
    assert library.now == usual


def test_threads_change_no_bit_of_a_product_with_one_row():
    if (library := openblas()) is None:
        pytest.skip("numpy's products are not OpenBLAS's")
    draw, usual = np.random.default_rng(0), library.num_threads
    matrices = [draw.standard_normal(s, dtype=np.float32) for s in ((1536, 512), (683, 341))]
    row, found = draw.standard_normal(512, dtype=np.float32), []
    try:
        for threads in (1, 2, 3):
            library.set_num_threads(threads)
            found.append([m.dot(row[: m.shape[1]]).tobytes() for m in matrices])
    finally:
        library.set_num_threads(usual)
    assert found[0] == found[1] == found[2]
