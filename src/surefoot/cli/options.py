"""Options and answers that several verbs share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from json import dumps
from typing import Any, NoReturn

from surefoot.config.suggest import nearest
from surefoot.config.units import parse_bytes, parse_seconds, parse_share
from surefoot.errors import ConfigError, Problem
from surefoot.track.choose import STATES, Choice, parse_bound

__all__ = ["Parser", "choice", "filters", "parser", "print_json", "read", "settings_from"]


class Parser(argparse.ArgumentParser):
    """An argparse parser whose mistakes are ConfigErrors, with what was probably meant."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **more})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the options; raises ConfigError that names every unknown flag, or else word."""
        found, extra = self.parse_known_args(args, namespace)
        unknown = [word for word in extra if word.startswith("-")] or extra
        if unknown:
            raise ConfigError([self._unknown(word) for word in unknown])
        return found

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found as a ConfigError."""
        raise ConfigError(message, fix=f"{self.prog} --help")

    def _unknown(self, word: str) -> Problem:
        flag = word.partition("=")[0]
        near = nearest(flag, self._option_string_actions) if flag.startswith("-") else None
        fix = f"did you mean {near}?" if near else f"{self.prog} --help"
        what = f"unknown flag {flag}" if flag.startswith("-") else f"unexpected word {word!r}"
        return Problem(what, "command line", fix)


def parser(verb: str, description: str, json: bool = True) -> Parser:
    """Return the parser of a verb about runs, with `--runs` and, where it has one, `--json`."""
    own = Parser(prog=f"surefoot {verb}", description=description)
    own.add_argument("--runs", metavar="DIR", help="folder of the runs (or $SUREFOOT_RUNS)")
    if json:
        own.add_argument("--json", action="store_true", help="print one JSON document")
    return own


def read(words: str) -> Callable[[str], Any]:
    """Return argparse's `type` for `seconds`, `bytes`, a `share` or a `bound`, with a clear message."""
    readers: dict[str, Callable[[str], Any]] = {
        "seconds": parse_seconds, "bytes": parse_bytes, "bound": parse_bound,
        "share": parse_share,
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


def settings_from(own: argparse.ArgumentParser, preset: str = "Start from this preset.") -> None:
    """Add the flags that say where settings come from before those of the command line."""
    own.add_argument("--preset", metavar="NAME", help=preset)
    own.add_argument(
        "-c", "--config", action="append", default=[], metavar="FILE", help="Settings."
    )
