"""Lines of a text that is being written: broken between words, and nothing lost."""

import pytest

from surefoot.cli import folded as module
from surefoot.cli.folded import folded, hanging


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("one two three", 20, "one two three"),
        ("one two three", 8, "one two \nthree"),
        ("one two three", 7, "one two\nthree"),
        ("one two three", 6, "one \ntwo \nthree"),
        ("a\n\n b", 8, "a\n\n b"),
        ("abcdefgh", 3, "abc\ndef\ngh"),
        ("x abcdef", 3, "x \nabc\ndef"),
        ("漢字漢字", 4, "漢字\n漢字"),
        ("", 4, ""),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 99])
def test_lines_are_broken_between_words_whatever_the_pieces(text, width, shown, size):
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert "".join(folded(pieces, width)) == shown


def test_a_word_is_shown_when_it_is_whole():
    said = []

    def pieces():
        for piece in ("on", "e t", "wo"):
            said.append(piece)
            yield piece

    lines = folded(pieces(), 40)
    assert next(lines) == "one" and said == ["on", "e t"]
    assert "".join(lines) == " two"


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (99, "fits   one two  three-four"),
        (17, "fits   one two\n       three-four"),
        (5, "fits\n       one\n       two\n       three-four"),
    ],
)
def test_what_a_terminal_has_no_room_for_hangs_below_its_beginning(monkeypatch, columns, shown):
    monkeypatch.setattr(module, "room", lambda: columns)
    assert hanging("fits   one two  three-four", 7) == shown


def test_nothing_is_broken_in_a_pipe(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    assert hanging("word " * 100 + "end", 2) == "word " * 100 + "end"
