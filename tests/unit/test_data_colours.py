"""Lists of colours, who is held out, how names are written, and how different colours look."""

from __future__ import annotations

import numpy as np
import pytest

from surefoot.data import colours as c
from surefoot.data.colours import Colours, Names, load
from surefoot.data.delta_e import delta_e, delta_e_lab, lab
from surefoot.errors import DataError

WIKIPEDIA = load("wikipedia", 0.1)


def test_the_lists_are_whole() -> None:
    assert len(WIKIPEDIA.names) == 878
    assert WIKIPEDIA.names[0] == "Absolute Zero"
    assert np.round(WIKIPEDIA.rgb[0], 2).tolist() == pytest.approx([0.0, 0.28, 0.73])
    large = load("large", 0.1)
    assert len(large.names) == len(set(large.names)) == 31_881
    assert c.hex_code(large.rgb[large.names.index("Absolute Zero")]) == "#0048ba"
    assert all(c.check(name) for name in large.folded), "every listed name can be written"


@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_names_of_one_colour_are_never_parted(ratio: float) -> None:
    colours = load("wikipedia", ratio)
    held = {bytes(v) for v in colours.values[colours.rows(held_out=True)]}
    kept = {bytes(v) for v in colours.values[colours.rows(held_out=False)]}
    assert not held & kept
    assert len(colours.rows(True)) + len(colours.rows(False)) == 878
    assert colours.held_out.mean() == pytest.approx(ratio, abs=0.04)


def test_the_split_depends_on_the_names_alone() -> None:
    order = np.arange(878)[::-1]
    turned = Colours(
        "turned", tuple(WIKIPEDIA.names[i] for i in order), WIKIPEDIA.values[order], 0.1
    )
    assert (turned.held_out[order] == WIKIPEDIA.held_out).all()


def test_fewer_names_train_and_the_same_are_held_out() -> None:
    some, more = load("wikipedia", 0.1, 50), load("wikipedia", 0.1, 100)
    assert len(Names(some)) == 50
    assert set(some.rows(held_out=False)) < set(more.rows(held_out=False))
    assert (some.rows(held_out=True) == WIKIPEDIA.rows(held_out=True)).all()
    assert Names(some).fingerprint != Names(more).fingerprint


def test_a_batch_is_places_that_train() -> None:
    source = Names(WIKIPEDIA)
    row = source.batch(np.arange(len(source)), np.zeros(len(source), dtype=np.int64), 1).fields
    assert not WIKIPEDIA.held_out[row["row"]].any()
    assert source.fingerprint != Names(load("wikipedia", 0.2)).fingerprint


def test_names_are_written_and_read_back() -> None:
    written = c.symbols(WIKIPEDIA.folded)
    assert [c.read(row) for row in written] == WIKIPEDIA.folded
    vectors = c.vectors(written)
    assert vectors.shape == (878, 128) and vectors.max() <= 1
    assert (vectors[:, c.PLACES :] == 0).all()


def test_pieces_tell_names_apart() -> None:
    pieces = c.grams(WIKIPEDIA.folded, 8192)
    assert len({row.tobytes() for row in pieces}) == 878
    assert pieces.max() < 8192
    blue, navy = c.grams(["blue"], 8192)[0], c.grams(["navy blue"], 8192)[0]
    assert set(blue.tolist()) < set(navy.tolist()), "a word has the same pieces wherever it stands"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("", "empty"), ("  ", "empty"), ("тест", "does not know"), ("a" * 42, "42 characters")],
)
def test_names_that_cannot_be_read(name: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        c.check(name)


@pytest.mark.parametrize(
    ("text", "complaint", "fix"),
    [
        ("0,72,186", "count to 255", "--rgb 0,0.2824,0.7294"),
        ("0,0.5", "not three numbers", "#0048ba"),
        ("red", "not three numbers", "#0048ba"),
        ("0,0.5,nan", "not three numbers", "#0048ba"),
        ("-0.1,0,0", "from 0 to 1", "#0048ba"),
        ("0,0,300", "from 0 to 1", "#0048ba"),
        ("#12345", "six hexadecimal digits", "#0048ba"),
        ("#12345g", "six hexadecimal digits", "#0048ba"),
    ],
)
def test_colours_that_cannot_be_read(text: str, complaint: str, fix: str) -> None:
    with pytest.raises(DataError, match=complaint) as error:
        c.parse_rgb(text)
    assert fix in str(error.value.fix)


def test_colours_are_read_in_two_ways() -> None:
    assert c.hex_code(c.parse_rgb("#0048ba")) == c.hex_code(c.parse_rgb(" 0, 0.282,0.729 "))


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [  # of the test data that Sharma, Wu and Dalal publish with the formula
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 3.1571, -77.2803), (50, 0, -82.7485), 2.8615),
        ((50, 0, 0), (50, -1, 2), 2.3669),
        ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
        ((50, -0.001, 2.49), (50, 0.0009, -2.49), 4.8045),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_ciede2000(first: tuple[float, ...], second: tuple[float, ...], wanted: float) -> None:
    there, back = np.array(first, dtype=float), np.array(second, dtype=float)
    assert delta_e_lab(there, back) == pytest.approx(wanted, abs=5e-5)
    assert delta_e_lab(back, there) == pytest.approx(wanted, abs=5e-5)


def test_white_is_white_and_the_nearest_is_itself() -> None:
    assert lab(np.ones(3)) == pytest.approx([100, 0, 0])
    assert (delta_e(WIKIPEDIA.rgb, WIKIPEDIA.rgb) == 0).all()
    name, code, off = WIKIPEDIA.nearest(c.parse_rgb("#0048ba"), 3)[0]
    assert (name, code) == ("Absolute Zero", "#0048ba") and off < 1e-4


def test_a_table_of_words_knows_colours() -> None:
    told = c.nearest_word(WIKIPEDIA)
    held = WIKIPEDIA.rows(held_out=True)
    assert np.isnan(told[WIKIPEDIA.rows(held_out=False)]).all()
    constant = WIKIPEDIA.rgb[WIKIPEDIA.rows(held_out=False)].mean(0)
    error = [np.abs(guess - WIKIPEDIA.rgb[held]).mean() for guess in (told[held], constant)]
    assert error[0] < 0.8 * error[1]
