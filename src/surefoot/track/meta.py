"""`run.json`: what is read from it has the shape that others rely on, or is called damaged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from surefoot.errors import RunError

__all__ = ["FORMAT", "check_tags", "dump", "loss_unit", "newer", "parse", "read"]

FORMAT = 1  # of run.json and of the layout of a run's folder
SHAPES: dict[str, type] = {  # what others rely on; anything may be missing
    **dict.fromkeys(("id", "name", "recipe", "status", "created", "source"), str),
    **dict.fromkeys(("tags", "errors", "restarts", "segments"), list),
    **dict.fromkeys(("best", "pinned", "data", "machine", "versions", "git", "parent"), dict),
    **dict.fromkeys(("number", "step", "max_steps"), int),
}


def check_tags(tags: Iterable[str]) -> None:
    """Raise RunError for a word that cannot be a tag."""
    for tag in tags:
        if not re.fullmatch(r"\w[\w.+:/-]{0,60}", tag):
            fix = "letters, digits and . _ + - : /, beginning with a letter or digit, at most 61"
            raise RunError(f"{tag!r} cannot be a tag", fix=fix)


def newer(meta: Mapping[str, Any]) -> str | None:
    """Return why `meta` cannot be relied on: it is of a later format; else None."""
    number = meta.get("format")
    if not isinstance(number, int) or number <= FORMAT:
        return None
    return f"format {number}, newer than this Surefoot reads ({FORMAT})"


def loss_unit(data: Mapping[str, Any]) -> str:
    """Return in what losses on `data` are, as its recipe says; of what is not described, nothing."""
    return str(data.get("loss_unit", "nats" if data else ""))


def dump(meta: Mapping[str, Any]) -> str:
    """Return the text of a `run.json`."""
    return json.dumps(meta, indent=2, ensure_ascii=False, default=str) + "\n"


def parse(path: Path) -> dict[str, Any]:
    """Read the `run.json` of a folder. Raises OSError, or ValueError that says what is wrong."""
    with open(path / "run.json", encoding="utf-8") as file:  # noqa: PTH123  (a third of the time)
        meta = json.load(file)
    if not isinstance(meta, dict):
        raise ValueError("run.json holds no mapping")
    for key, kind in SHAPES.items():
        value = meta.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ValueError(f"{key} is no {kind.__name__}")
    return meta


def read(path: Path) -> dict[str, Any]:
    """Read the `run.json` of a folder. Raises RunError, with what can be done."""
    where = str(path / "run.json")
    try:
        meta = parse(path)
    except (FileNotFoundError, NotADirectoryError):
        what = "is not a run, or copied half: no run.json" if path.exists() else "does not exist"
        raise RunError(f"{path} {what}", fix="surefoot runs") from None
    except OSError as error:
        raise RunError(f"cannot read the run: {error.strerror}", where=where) from error
    except ValueError as error:
        fix = "restore it from a copy; metrics.jsonl and checkpoints/ beside it are unharmed"
        raise RunError(f"run.json is damaged: {error}", where=where, fix=fix) from error
    if (later := newer(meta)) is not None:
        raise RunError(f"run.json has {later}", where=where, fix="update Surefoot")
    return meta
