"""Data sets of the Hugging Face hub by name, for people who have its library and the network.

    fetch("wikitext-103", cache)          a folder of texts, one for each split
    fetch("hf:OWNER/NAME:CONFIG", cache)  the same of any data set with a field of text

Rows are written once, as they are; from there on they are files like any others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from surefoot.data.fetch import is_offline, writing
from surefoot.errors import DataError, Unsupported

__all__ = ["fetch", "named"]

_SHORT = {
    "wikitext-2": "hf:Salesforce/wikitext:wikitext-2-raw-v1",
    "wikitext-103": "hf:Salesforce/wikitext:wikitext-103-raw-v1",
}
_NAME = re.compile(r"hf:(?P<path>\w[\w.-]*(/\w[\w.-]*)?)(:(?P<config>[\w.-]+))?")


def named(corpus: str) -> bool:
    """Tell whether `corpus` means a data set of the hub.

    >>> named("wikitext-103"), named("hf:some/texts"), named("wiki-mini")
    (True, True, False)
    """
    return corpus in _SHORT or corpus.startswith("hf:")


def fetch(corpus: str, cache: Path, field: str = "text") -> Path:
    """Return the folder with the splits of `corpus`, downloaded where it is not there yet.

    Raises Unsupported without the library, DataError where the data set cannot be had or has no
    such field.
    """
    found = _NAME.fullmatch(_SHORT.get(corpus, corpus))
    if found is None:
        raise DataError(f"data.corpus: {corpus} is no name of a data set", fix="hf:OWNER/NAME")
    folder = cache / "hub" / re.sub(r"[^\w.-]", "-", f"{found[0][3:]}-{field}")
    if (folder / "complete").exists():
        return folder
    if is_offline():
        fix = "unset it, or --path FOLDER with a copy of your own"
        raise DataError(
            f"data.corpus: {corpus} is on the hub, and SUREFOOT_OFFLINE is set", fix=fix
        )
    try:
        import datasets  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise Unsupported(
            "data sets of the hub need its library", fix="pip install datasets"
        ) from None
    try:
        splits: Mapping[str, Iterable[Mapping[str, Any]]] = datasets.load_dataset(
            found["path"], found["config"]
        )
    except Exception as error:  # the library raises many kinds of its own
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        fix = "check the name and the network, or --path FOLDER with a copy of your own"
        raise DataError(f"data.corpus: {corpus} cannot be had: {said}", fix=fix) from None
    lines = "wikitext" in found["path"]  # its rows are the lines of a file
    for split, rows in splits.items():
        with writing(folder / (f"wiki.{split}.tokens" if lines else f"rows.{split}.jsonl")) as file:
            for row in rows:
                if not isinstance(row.get(field), str):
                    fields = ", ".join(sorted(row))
                    raise DataError(
                        f"data.text_field: {corpus} has no text in {field}", fix=f"one of {fields}"
                    )
                text = row[field] if lines else json.dumps({field: row[field]}) + "\n"
                file.write(text.encode())
    with writing(folder / "complete") as file:
        file.write(b"")
    return folder
