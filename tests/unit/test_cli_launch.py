"""What processes of a group leave for the one that launched them."""

from __future__ import annotations

from pathlib import Path

import pytest

from surefoot.cli import main
from surefoot.cli.launch import NOTES, note


def left(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_code_that_ended_an_earlier_start_does_not_outlive_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(NOTES, str(tmp_path))
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "3")
    assert note(5) == 0 and note(1) == 1, "1 is tried again"
    assert left(tmp_path) == {"1": "5"}
    monkeypatch.setenv("RANK", "2")  # begun again, it may have another
    assert main(["--version"]) == 0 and left(tmp_path) == {}
    assert main(["train", "no-such-recipe"]) == 0 and left(tmp_path) == {"1": "2"}
