"""Data sets of the hub: rows become files once, and every failure says what to do."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from surefoot.data import hub
from surefoot.data.collection import collect
from surefoot.errors import DataError, Unsupported

LINES = ["", " = A crab = \n", " It walks . \n", "", " = A lobster = \n", " It swims . \n"] * 9


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """A library that knows one data set, and what it was asked for."""
    asked: list[tuple[str, str | None]] = []

    def load_dataset(path: str, config: str | None) -> dict[str, list[dict[str, str]]]:
        asked.append((path, config))
        if path == "no/such":
            raise RuntimeError("there is none\nand more")
        rows = [{"text": line} for line in LINES]
        return {"train": rows, "validation": rows[:6], "test": rows[:3]}

    fake = types.ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.delenv("SUREFOOT_OFFLINE", raising=False)
    return asked


def test_wikitext_is_its_lines_and_is_fetched_once(
    tmp_path: Path, library: list[tuple[str, str | None]]
) -> None:
    folder = hub.fetch("wikitext-103", tmp_path)
    assert (folder / "wiki.train.tokens").read_text() == "".join(LINES)
    assert hub.fetch("wikitext-103", tmp_path) == folder
    assert library == [("Salesforce/wikitext", "wikitext-103-raw-v1")]


def test_a_collection_is_made_of_the_splits(
    tmp_path: Path, library: list[tuple[str, str | None]]
) -> None:
    found = collect(None, "wikitext-2", vocab_size=280, cache=tmp_path)
    assert found.train.documents == 18 and found.val.wikitext
    assert found.test is not None and found.name == "wikitext-2"


def test_any_other_is_a_document_a_row(
    tmp_path: Path, library: list[tuple[str, str | None]]
) -> None:
    folder = hub.fetch("hf:some/texts:small", tmp_path)
    assert len((folder / "rows.train.jsonl").read_text().splitlines()) == len(LINES)
    assert library == [("some/texts", "small")]


def test_failures_are_said(
    tmp_path: Path, library: list[tuple[str, str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for corpus, field, words in (
        ("hf:no/such", "text", "cannot be had: there is none"),
        ("hf:../up", "text", "no name of a data set"),
        ("hf:some/texts", "body", "no text in body"),
    ):
        with pytest.raises(DataError, match=words):
            hub.fetch(corpus, tmp_path, field)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Unsupported, match="need its library"):
        hub.fetch("wikitext-2", tmp_path)
    monkeypatch.setenv("SUREFOOT_OFFLINE", "1")
    with pytest.raises(DataError, match="SUREFOOT_OFFLINE"):
        hub.fetch("wikitext-2", tmp_path)
