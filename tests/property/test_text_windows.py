"""Windows cover what they should, once, and training never sees what is held out."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from surefoot.data.batch import Data
from surefoot.data.text import IGNORED, TextSource, windows

shapes = st.tuples(st.integers(1, 17), st.integers(2, 400), st.integers(0, 30), st.integers(0, 30))


def positions(length: int) -> np.ndarray:
    return np.arange(length, dtype=np.int32)  # each token says where it stands


def cut(shape):
    """Return (tokens, context, start, stop) with at least one window between start and stop."""
    context, length, before, after = shape
    length = max(length, context + 1)
    return positions(before + length + after), context, before, before + length


@given(shapes, st.integers(0, 2**40), st.integers(0, 2**62))
def test_an_epoch_shows_every_token_at_most_once_and_nearly_all(shape, epoch, key):
    tokens, context, start, stop = cut(shape)
    source = TextSource(tokens, context, start, stop)
    batch = source.batch(np.arange(len(source)), np.full(len(source), epoch), key)
    seen = batch.fields["x"].ravel()
    assert len(np.unique(seen)) == len(seen) == batch.weight == len(source) * context
    assert start <= seen.min() and seen.max() < stop - 1
    assert stop - start - 1 - len(seen) < context
    assert np.array_equal(batch.fields["y"], batch.fields["x"] + 1)


@given(shapes, st.integers(0, 2**62))
def test_a_window_runs_on_except_across_the_end(shape, key):
    tokens, context, start, stop = cut(shape)
    source = TextSource(tokens, context, start, stop)
    x = source.batch(np.arange(len(source)), np.zeros(len(source), dtype=np.int64), key).fields["x"]
    jumps = np.argwhere(np.diff(x, axis=1) != 1)
    assert len(jumps) <= 1
    for row, column in jumps:
        assert x[row, column] == stop - 2
        assert x[row, column + 1] == start


@given(shapes, st.integers(1, 9), st.integers(0, 9), st.integers(0, 2**40))
def test_training_and_held_out_windows_never_overlap(shape, batch_size, seed, step):
    tokens, context, _, stop = cut(shape)
    fields = Data(TextSource(tokens, context, 0, stop), seed, batch_size).batch(step).fields
    assert max(fields["x"].max(), fields["y"].max()) < stop
    for batch in windows(tokens, context, stop, len(tokens), batch_size):
        real = batch.fields["y"] != IGNORED
        assert batch.fields["x"][real].min() >= stop
        assert batch.fields["y"][real].min() > stop


@given(shapes, st.integers(1, 9))
def test_held_out_windows_have_each_target_once_and_in_sequence(shape, size):
    tokens, context, start, stop = cut(shape)
    batches = list(windows(tokens, context, start, stop, size))
    targets = np.concatenate([batch.fields["y"].ravel() for batch in batches])
    real = targets != IGNORED
    assert targets[real].tolist() == list(range(start + 1, stop))
    assert sum(batch.weight for batch in batches) == stop - start - 1
    inputs = np.concatenate([batch.fields["x"].ravel() for batch in batches])
    assert np.array_equal(inputs[real] + 1, targets[real])
    assert all(batch.fields["x"].shape == batch.fields["y"].shape for batch in batches)
    assert {len(batch.fields["x"]) for batch in batches[:-1]} <= {size}
    assert not inputs[~real].any()


@given(shapes, st.integers(1, 9), st.integers(0, 2**40), st.data())
def test_a_batch_is_the_same_in_any_pieces(shape, batch_size, step, data):
    tokens, context, start, stop = cut(shape)
    source = Data(TextSource(tokens, context, start, stop), 3, batch_size)
    whole = source.batch(step).fields
    middle = data.draw(st.integers(1, batch_size))
    pieces = [source.batch(step, 0, middle)]
    if middle < batch_size:
        pieces.append(source.batch(step, middle))
    for name in ("x", "y"):
        joined = np.concatenate([piece.fields[name] for piece in pieces])
        assert np.array_equal(joined, whole[name])
        assert whole[name].dtype == np.int64
        assert whole[name].flags.c_contiguous


@given(shapes)
def test_boundaries_move_between_epochs(shape):
    tokens, context, start, stop = cut(shape)
    source = TextSource(tokens, context, start, stop)
    first = {int(source.batch(np.zeros(1, dtype=np.int64), np.array([e]), 1).fields["x"][0, 0])
             for e in range(60)}  # fmt: skip
    assert len(first) > 1 or stop - start == 2
