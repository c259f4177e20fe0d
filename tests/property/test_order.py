"""The order of examples is a permutation of every epoch, computed and not stored."""

import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.data.order import Permutation, keyed_hash

sizes = st.one_of(st.integers(1, 80), st.integers(900, 1200), st.integers(1, 5000))
keys = st.integers(0, 2**63 - 1)
epochs = st.integers(0, 2**50)


def order_of(n: int, key: int, epoch: int) -> np.ndarray:
    return Permutation(n, key)(np.arange(n), np.full(n, epoch))


def normal(counts: np.ndarray) -> float:
    """Chi-square of `counts` against equal ones, as standard deviations from its mean."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


@given(sizes, keys, epochs)
def test_each_epoch_is_a_bijection(n, key, epoch):
    assert np.array_equal(np.sort(order_of(n, key, epoch)), np.arange(n))


@given(st.integers(1, 2**62 - 1), keys, epochs, st.data())
def test_any_size_maps_into_itself_without_collisions(n, key, epoch, data):
    drawn = data.draw(st.lists(st.integers(0, n - 1), unique=True, min_size=1, max_size=50))
    place = np.array(drawn, dtype=np.int64)
    found = Permutation(n, key)(place, np.full(len(place), epoch))
    assert found.dtype == np.int64
    assert found.min() >= 0
    assert found.max() < n
    assert len(np.unique(found)) == len(place)


@given(sizes, keys, st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 9)), min_size=1))
def test_it_is_pure_whatever_is_asked_together(n, key, asked):
    place = np.array([p % n for p, _ in asked])
    epoch = np.array([e for _, e in asked])
    together = Permutation(n, key)(place, epoch)
    alone = [order_of(n, key, e)[p] for p, e in zip(place, epoch, strict=True)]
    assert together.tolist() == alone


def test_the_arguments_are_left_as_they_were():
    for n in (7, 100, 5000):
        place, epoch = np.arange(7), np.arange(7)
        Permutation(n, 1)(place, epoch)
        assert place.tolist() == epoch.tolist() == list(range(7))


@given(st.integers(50, 3000), keys, epochs)
def test_epochs_and_keys_differ(n, key, epoch):
    here = order_of(n, key, epoch)
    assert not np.array_equal(here, order_of(n, key, epoch + 1))
    assert not np.array_equal(here, order_of(n, key + 1, epoch))


@pytest.mark.parametrize("n", [2, 5, 13, 48, 49, 64, 100, 257, 1000])
def test_every_place_is_equally_likely_and_so_is_every_neighbour(n):
    rounds = 300_000 // n
    place, epoch = np.tile(np.arange(n), rounds), np.repeat(np.arange(rounds), n)
    orders = Permutation(n, key=n)(place, epoch).reshape(rounds, n)
    places = np.bincount((orders + np.arange(n) * n).ravel(), minlength=n * n)
    assert abs(normal(places)) < 5
    if n > 2:
        steps = np.bincount((np.diff(orders, axis=1) % n).ravel(), minlength=n)[1:]
        assert abs(normal(steps)) < 5
    if 2 < n <= 100:
        pairs = np.bincount((orders[:, :-1] * n + orders[:, 1:]).ravel(), minlength=n * n)
        assert abs(normal(pairs.reshape(n, n)[~np.eye(n, dtype=bool)])) < 5
    fixed = (orders[1:] == orders[:-1]).sum() / (rounds - 1)
    assert 0.8 < fixed < 1.2  # two independent permutations agree in one place on average


@pytest.mark.parametrize("n", [17_691, 10**6, 10**9])
def test_one_epoch_looks_random_inside(n):
    many = min(n, 200_000)
    order = Permutation(n, key=3)(np.arange(many), np.zeros(many, dtype=np.int64))
    for times in (1, 2, 3):  # differences of differences find polynomials
        bins = (np.diff(order, times) % n) * 499 // n
        assert abs(normal(np.bincount(bins, minlength=499))) < 5
    coarse = order * 64 // n
    for lag in (1, 2, 12, 131, 1000):
        pairs = np.bincount(coarse[:-lag] * 64 + coarse[lag:], minlength=64 * 64)
        assert abs(normal(pairs)) < 6


def calls_made(order: Permutation, first: int) -> int:
    """Count calls into Python and C while 64 positions from `first` on are computed."""
    epoch, place = np.divmod(np.arange(first, first + 64), order.n)
    made = 0

    def count(frame, event, argument):
        nonlocal made
        made += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        order(place, epoch)
    finally:
        sys.setprofile(None)
    return made


def test_position_costs_the_same_early_and_late():
    order = Permutation(10**12, key=5)  # a * b = n exactly: no value ever walks
    calls_made(order, 0)
    assert calls_made(order, 1000 * 64) == calls_made(order, 10**9 * 64) < 100


def test_memory_does_not_grow_with_the_data():
    tracemalloc.start()
    order = Permutation(10**12, key=5)
    order(np.arange(64), np.zeros(64, dtype=np.int64))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000  # bytes


@pytest.mark.parametrize("n", [0, -1, 2**62])
def test_impossible_sizes_are_refused(n):
    with pytest.raises(ValueError, match="permutation needs"):
        Permutation(n, 1)


@given(keys, st.lists(st.integers(0, 2**63 - 1), unique=True, min_size=2))
@settings(max_examples=50)
def test_hashes_of_different_numbers_differ(key, numbers):
    assert len(set(keyed_hash(np.array(numbers), key).tolist())) == len(numbers)


def test_the_order_is_fixed_for_ever():
    """Runs that were begun with an earlier version must find the same examples."""
    found = [
        Permutation(n, 42)(np.arange(4), np.array([0, 0, 1, 7])).tolist() for n in (20, 900, 10**6)
    ]
    assert found == [[4, 9, 4, 15], [452, 59, 248, 758], [41516, 471320, 152595, 698770]]
