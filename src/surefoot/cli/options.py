"""Options and answers that several verbs share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from json import dumps
from typing import Any

from surefoot.config.units import parse_bytes, parse_seconds
from surefoot.track.choose import STATES, Choice, parse_bound

__all__ = ["choice", "filters", "parser", "print_json", "read"]


def parser(verb: str, description: str, json: bool = True) -> argparse.ArgumentParser:
    """Return the parser of a verb about runs, with `--runs` and, where it has one, `--json`."""
    own = argparse.ArgumentParser(
        prog=f"surefoot {verb}", description=description, allow_abbrev=False
    )
    own.add_argument("--runs", metavar="DIR", help="folder of the runs (or $SUREFOOT_RUNS)")
    if json:
        own.add_argument("--json", action="store_true", help="print one JSON document")
    return own


def read(words: str) -> Callable[[str], Any]:
    """Return a reader for argparse of `seconds`, `bytes` or a `bound`, with a telling message."""
    readers: dict[str, Callable[[str], Any]] = {
        "seconds": parse_seconds, "bytes": parse_bytes, "bound": parse_bound,
    }  # fmt: skip

    def reader(text: str) -> Any:
        try:
            return readers[words](text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error

    return reader


def filters(own: argparse.ArgumentParser, ages: bool = True) -> None:
    """Add options that choose runs; `choice` reads them."""
    group = own.add_argument_group("choose runs")
    group.add_argument("--tag", metavar="WORD", help="with this tag")
    group.add_argument("--recipe", metavar="NAME", help="of this recipe")
    group.add_argument("--state", choices=STATES, help="in this state")
    group.add_argument(
        "--metric", type=read("bound"), metavar="BOUND",
        help="by best val_loss or the last value of another metric, like 'val_loss>2'",
    )  # fmt: skip
    if ages:
        for name in ("older", "younger"):
            group.add_argument(
                f"--{name}-than", type=read("seconds"), metavar="AGE", help=f"{name}, like 30d"
            )


def choice(options: argparse.Namespace, ages: bool = True) -> Choice:
    """Return what was chosen."""
    older, younger = (options.older_than, options.younger_than) if ages else (None, None)
    return Choice(options.tag, options.recipe, options.state, older, younger, options.metric)


def print_json(value: Any) -> None:
    """Print one JSON document."""
    print(dumps(value, ensure_ascii=False, indent=2, default=str))
