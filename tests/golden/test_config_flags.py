"""A short flag is a promise, and the field reference is never stale."""

from __future__ import annotations

from pathlib import Path

import pytest

from surefoot.cli import main
from surefoot.config.fields import short_names
from surefoot.recipes.charlm import CharConfig

SHORT = Path(__file__).with_name("short_flags_charlm.txt")
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "config.md"


def test_no_short_flag_goes_away_or_changes_its_meaning(request: pytest.FixtureRequest) -> None:
    now = {f"--{name.replace('_', '-')}": path for name, path in short_names(CharConfig).items()}
    kept = dict(line.split() for line in SHORT.read_text().splitlines()) if SHORT.exists() else {}
    for flag, path in kept.items():
        assert now.get(flag) == path, (
            f"{flag} meant {path} and now means {now.get(flag, 'nothing')}: commands that people "
            f"have written down would break. Name the new setting otherwise. Only when {path} "
            f"itself is gone on purpose, remove its line from {SHORT.name} and put the old name "
            "into config/names.py and docs/migration.md."
        )
    if request.config.getoption("--update-golden"):
        SHORT.write_text("".join(f"{flag} {path}\n" for flag, path in sorted(now.items())))
        return
    assert kept == now, f"new short flags: write them into {SHORT.name} with `make golden`"


def test_reference_is_what_the_schema_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "docs", "charlm"]) == 0
    page = capsys.readouterr().out
    assert REFERENCE.read_text(encoding="utf-8") == page, "write it anew with `make docs`"
