"""What somebody waits for is shown on a terminal, and nowhere else."""

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from surefoot.cli import main
from surefoot.cli.plan import _tiers
from surefoot.cli.waiting import waiting
from surefoot.engine.foresee.tier import Tier


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_each_text_takes_the_place_of_the_last_and_none_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "20")

    def work() -> None:
        with waiting() as show:
            show("loading ...")
            show("playing steps of longer and longer rows")
            raise ValueError("on the way")

    with pytest.raises(ValueError, match="on the way"):
        work()
    clear = "\r\033[K"
    assert screen.getvalue() == f"{clear}loading ...{clear}playing steps of lo{clear}"


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_nothing_is_shown_without_a_terminal(
    kind: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = kind()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "dumb" if kind is Terminal else "xterm")
    with waiting() as show:
        show("loading ...")
    assert screen.getvalue() == ""


def test_a_plan_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    text = Path(__file__).parents[1] / "fixtures" / "shakespeare.txt"
    assert main(["plan", "charlm", "--path", str(text), "--preset", "tiny", "--gpu", "1GB"]) == 0
    texts = screen.getvalue().split("\r\033[K")
    assert texts == ["", "loading what the recipe takes ...", "playing steps ...", ""]
    assert "..." not in capsys.readouterr().out


def test_each_tier_of_rows_is_told_as_soon_as_it_is_known() -> None:
    told: list[str] = []

    def tiers(*_: Any) -> Iterator[Tier]:
        for context, needed in ((4096, 5), (8192, 9)):
            assert (len(told) == 1) == (context == 4096)
            yield Tier(context, needed, 0, 8, None, {}, None)

    recipe: Any = SimpleNamespace(tiers=tiers)
    place: Any = None
    found = _tiers(recipe, None, place, told.append)
    assert [tier.context for tier in found] == [4096, 8192]
    assert told[1:] == [
        "playing steps: rows of 4,096 tokens fit ...",
        "playing steps: rows of 8,192 tokens do not fit ...",
    ]
