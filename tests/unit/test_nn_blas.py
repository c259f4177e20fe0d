"""Threads of numpy's products: all of them where they help, and as before afterwards."""

import pytest

from surefoot.nn.blas import Pool


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

    pool = Pool(library, product, clock=lambda: now[0])
    assert library.now == usual, "nothing is left behind by measuring"
    with pool:
        assert library.now == chosen
    assert library.now == usual


def test_no_more_threads_than_are_allowed():
    library = Library(4)
    pool = Pool(library, lambda: None, most=1)
    with pool:
        assert library.now == 1
    assert library.now == 4
