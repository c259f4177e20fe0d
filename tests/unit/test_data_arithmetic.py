"""Problems are a pure function of (seed, i), and what is held out is held out in both orders."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from surefoot.data.arithmetic import Pairs, Problems, Split
from surefoot.data.notation import END, IGNORED, START, Form
from surefoot.errors import DataError


def split(shortest: int = 2, longest: int = 2, seed: int = 1) -> Split:
    return Split(shortest, longest, 0.1, 0.1, seed)


def unordered(a: np.ndarray, b: np.ndarray) -> set[tuple[int, int]]:
    return set(zip(np.minimum(a, b).tolist(), np.maximum(a, b).tolist(), strict=True))


@pytest.mark.parametrize(("shortest", "longest"), [(1, 1), (2, 2), (1, 3), (3, 3), (1, 6)])
def test_no_pair_that_trains_is_held_out_in_either_order(shortest: int, longest: int) -> None:
    parts, form = split(shortest, longest), Form(longest)
    trained = unordered(*Problems(parts, form, 50_000).pairs(np.arange(50_000)))
    val, test = (unordered(*Pairs(parts, form, part, 3000).numbers) for part in (1, 2))
    assert val and test
    assert not (trained & val or trained & test or val & test)


def test_the_split_has_the_size_that_it_says_and_leaves_nothing_out() -> None:
    parts = split(1, 2)
    sizes = [len(parts.listed(part)) for part in (0, 1, 2)]
    assert sum(sizes) == parts.pairs == 100 * 101 // 2
    assert tuple(sizes[1:]) == parts.held_out == (506, 506)


def test_another_seed_holds_out_other_pairs() -> None:
    one, two = (set(split(seed=seed).listed(1).tolist()) for seed in (1, 2))
    assert len(one & two) < len(one) / 2


def test_a_problem_does_not_depend_on_what_is_asked_with_it() -> None:
    source = Problems(split(1, 3), Form(3), 10_000)
    index = np.array([7, 9_999, 0, 7])
    alone = [source.pairs(index[i : i + 1]) for i in range(4)]
    a, b = source.pairs(index)
    assert [(int(x[0]), int(y[0])) for x, y in alone] == list(zip(a.tolist(), b.tolist()))


def test_drawn_lengths_are_even() -> None:
    a, b = Problems(split(1, 3), Form(3), 90_000).pairs(np.arange(90_000))
    lengths = np.char.str_len(a.astype(str)), np.char.str_len(b.astype(str))
    _, counts = np.unique(np.stack(lengths), axis=1, return_counts=True)
    assert len(counts) == 9
    assert np.all(np.abs(counts - 10_000) < 500)


def test_without_replacement_every_ordered_pair_comes_once() -> None:
    source = Problems(split(), Form(2), None, replacement=False)
    a, b = source.pairs(np.arange(len(source)))
    assert len(set(zip(a.tolist(), b.tolist(), strict=True))) == len(source)
    assert set(source.split.listed(0).tolist()) == {x * 10**6 + y for x, y in unordered(a, b)}
    assert source.distinct == 4095 - 410 - 410


def test_more_different_problems_than_there_are_is_an_error_with_the_number() -> None:
    exist = len(Problems(split(), Form(2), None, replacement=False))
    with pytest.raises(DataError, match=f"1,000,000 different .* {exist:,} exist") as error:
        Problems(split(), Form(2), 1_000_000, replacement=False)
    assert f"--num-problems {exist}" in str(error.value.fix)
    with pytest.raises(DataError, match="too many to list"):
        Problems(split(2, 4), Form(4), 10, replacement=False)


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_the_order_of_operands(order: str) -> None:
    source = Problems(split(), Form(2), 1000, order=order)  # type: ignore[arg-type]
    held = Pairs(split(), Form(2), 1, 1000, order)  # type: ignore[arg-type]
    for a, b in (source.pairs(np.arange(1000)), held.numbers):
        assert np.all(a <= b) if order == "ascending" else np.all(a >= b)


FORMS = [Form(3, *flags) for flags in itertools.product((True, False), repeat=3)]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_is_written_reads_as_the_product(form: Form) -> None:
    a = np.array([0, 7, 10, 347, 999, 100])
    b = np.array([5, 0, 82, 82, 999, 1])
    written = form.answer(a, b)
    assert written.shape == (6, form.answer_length)
    assert form.read(np.where(written == IGNORED, END, written)).tolist() == (a * b).tolist()


def test_how_problems_look() -> None:
    a, b = np.array([47]), np.array([6])
    looks = {
        form: (form.text(form.question(a, b)[0].tolist()), form.text(form.answer(a, b)[0].tolist()))
        for form in (
            Form(2), Form(2, reversed=False), Form(2, padding=True), Form(2, work=True)
        )
    }  # fmt: skip
    assert list(looks.values()) == [
        ("74x6.", "282.?"), ("47x.6", "282.?"), ("74x60", "2820"), ("74x6.", "282000282.?"),
    ]  # fmt: skip


def test_an_answer_that_is_no_number_is_none() -> None:
    said = np.array([[END, 1, 2, 3, 4], [1, 10, 2, END, END], [3, END, 10, 10, 10]])
    assert Form(2).read(said).tolist() == [-1, -1, 3]


def test_a_batch_shows_the_answer_one_token_late_and_counts_its_targets() -> None:
    batch = Form(2).batch(np.array([47, 99]), np.array([6, 99]))
    assert batch.fields["targets"].tolist() == [[2, 8, 2, END, IGNORED], [1, 0, 8, 9, END]]
    assert batch.fields["inputs"].tolist() == [[START, 2, 8, 2, END], [START, 1, 0, 8, 9]]
    assert batch.weight == 9


def test_noise_differs_from_epoch_to_epoch_and_not_with_the_neighbours() -> None:
    source = Problems(split(), Form(2), 100, noise=True)
    index, epoch = np.array([5, 5, 6]), np.array([0, 1, 0])
    noise = source.batch(index, epoch, key=3).fields["noise"]
    again = source.batch(index[2:], epoch[2:], key=3).fields["noise"]
    assert noise.shape == (3, 5)
    assert not np.array_equal(noise[0], noise[1])
    assert np.array_equal(noise[2], again[0])
    many = source.batch(np.arange(100), np.zeros(100, dtype=np.int64), 3).fields["noise"]
    assert 0 <= many.min() < 0.05 < 0.95 < many.max() < 1
    assert abs(many.mean() - 0.5) < 0.05
