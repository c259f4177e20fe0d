"""What processes of a group leave for the one that launched them."""

from __future__ import annotations

from pathlib import Path

import pytest

from surefoot.cli import main
from surefoot.cli.launch import _ended
from surefoot.errors import Diverged
from surefoot.track import exits
from surefoot.track.exits import NOTES, note


def left(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_code_that_ended_an_earlier_start_does_not_outlive_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(NOTES, str(tmp_path))
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "3")
    assert note(1) == 1 and note(5) == 0, "1 is tried again"
    assert left(tmp_path) == {"1": "5"}
    monkeypatch.setenv("RANK", "2")  # begun again, it may have another
    assert main(["--version"]) == 0 and left(tmp_path) == {}
    assert main(["train", "no-such-recipe"]) == 0 and left(tmp_path) == {"1": "2"}


def test_what_is_no_code_is_no_note(tmp_path: Path) -> None:
    """A process may be killed while it writes."""
    for name, text in (("0", ""), ("2", "75"), ("10", "5"), ("3.new", "2"), ("4", "7x")):
        (tmp_path / name).write_text(text)
    assert exits.left(tmp_path) == [75, 5]


def test_an_error_that_would_come_again_is_final_whatever_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(NOTES, str(tmp_path))
    monkeypatch.setenv("RANK", "0")

    def diverge(verb: str, words: list[str]) -> int:
        raise Diverged("10 non-finite steps in a row")

    monkeypatch.setattr("surefoot.cli.train.run", diverge)
    assert main(["train", "charlm"]) == 0 and left(tmp_path) == {"0": "1"}


@pytest.mark.parametrize(
    ("found", "noted", "told", "code"),
    [
        (0, [], False, 0),
        (0, [5, 5], False, 5),
        (0, [75, 75], False, 75),  # a signal to one of them
        (1, [75], False, 1),  # torchrun stopped it, because another was killed
        (1, [75], True, 75),
        (1, [], True, 75),
        (1, [75, 2], False, 2),
        (4, [], False, 4),
    ],
)
def test_the_code_of_a_group(found: int, noted: list[int], told: bool, code: int) -> None:
    assert _ended(found, noted, told) == code
