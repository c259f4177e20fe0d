"""The page of a recipe's settings."""

from __future__ import annotations

import re

import pytest

from surefoot.cli import main
from surefoot.config.fields import leaves, sections
from surefoot.config.flags import spelling
from surefoot.recipes.charlm import CharConfig


def page(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["train", "charlm", "--help", *argv]) == 0
    return capsys.readouterr().out


def test_every_setting_has_its_flag_meaning_and_value(capsys: pytest.CaptureFixture[str]) -> None:
    text = page(capsys)
    words = " ".join(text.split())
    for leaf in leaves(CharConfig).values():
        flag = spelling(leaf.path, CharConfig)
        assert (f"--[no-]{flag[2:]} " if leaf.boolean else f"{flag} ") in words
        assert leaf.doc in words
    for name in sections(CharConfig):
        assert re.search(rf"^{name}  \w", text, re.MULTILINE)
    assert "--d-model N Width of the residual stream. [128]" in words


def test_values_are_those_of_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    words = " ".join(page(capsys, "--preset", "tiny").split())
    assert "--d-model N Width of the residual stream. [32]" in words
    assert main(["train", "charlm", "--help", "--preset", "tny"]) == 2
    assert "did you mean tiny?" in capsys.readouterr().err


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_lines_fit_the_terminal(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    body = page(capsys).split("settings", 1)[1].splitlines()
    flags = [line for line in body if line.startswith("  -")]
    assert max(map(len, flags)) <= max(int(columns), 60)


def test_colour_is_for_terminals_that_want_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "\033[" not in page(capsys)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    painted = page(capsys)
    assert "\033[1mmodel\033[0m" in painted
    monkeypatch.setenv("NO_COLOR", "1")
    plain = page(capsys)
    assert "\033[" not in plain
    assert re.sub(r"\033\[\d*m", "", painted) == plain
