import threading

import numpy as np
import pytest

from surefoot.data.batch import Batch
from surefoot.data.prefetch import Prefetch


class Counted:
    """Data that records which addresses were made and by which threads; some are faulty."""

    batch_size = 4

    def __init__(self, faulty=()):
        self.made, self.threads, self.faulty = [], set(), set(faulty)

    def size(self, step):
        return self.batch_size

    def batch(self, step, start=0, size=None):
        self.made.append((step, start, size))
        self.threads.add(threading.current_thread().name)
        if step in self.faulty:
            raise KeyError(step)
        return Batch({"x": np.full(size or 4, step)}, weight=1)


def test_batches_are_made_ahead_and_once():
    data = Counted()
    with Prefetch(data, threads=2, depth=3) as ahead:
        for step in range(10):
            assert ahead.batch(step).fields["x"][0] == step
    assert sorted(set(data.made)) == sorted(data.made)
    assert {step for step, _, _ in data.made} >= set(range(10))
    assert any(name.startswith("prefetch") for name in data.threads)


def test_a_caller_may_change_what_it_was_given():
    with Prefetch(Counted(), threads=1) as ahead:
        ahead.batch(0)
        ahead.batch(1).fields["x"][:] = -1
        assert ahead.batch(1).fields["x"].tolist() == [1, 1, 1, 1]


def test_an_error_arrives_at_the_one_who_asks_and_not_before():
    with Prefetch(Counted(faulty=[2]), threads=2, depth=4) as ahead:
        ahead.batch(0)
        ahead.batch(1)
        with pytest.raises(KeyError, match="2"):
            ahead.batch(2)
        assert ahead.batch(3).fields["x"][0] == 3


def test_what_waits_is_bounded():
    with Prefetch(Counted(), threads=1, depth=2) as ahead:
        for step in range(0, 1000, 10):
            ahead.batch(step)
        assert len(ahead._waiting) <= 8


def test_close_joins_the_threads_and_can_be_repeated():
    before = set(threading.enumerate())
    ahead = Prefetch(Counted(), threads=3)
    ahead.batch(0)
    begun = set(threading.enumerate()) - before
    assert any(thread.name.startswith("prefetch") for thread in begun)
    ahead.close()
    ahead.close()
    assert not any(thread.is_alive() for thread in begun if thread.name.startswith("prefetch"))
    assert ahead.batch(5).fields["x"][0] == 5


def test_no_threads_means_no_threads():
    data = Counted()
    with Prefetch(data, threads=0) as ahead:
        ahead.batch(0)
    assert data.threads == {threading.current_thread().name}
    assert len(data.made) == 1


@pytest.mark.parametrize(("threads", "depth"), [(-1, 1), (1, 0)])
def test_impossible_numbers_are_refused(threads, depth):
    with pytest.raises(ValueError, match="threads must be"):
        Prefetch(Counted(), threads, depth)


def test_it_has_the_batch_size_of_its_data():
    assert Prefetch(Counted(), threads=0).batch_size == 4
