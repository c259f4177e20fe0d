"""`surefoot config`: show settings with their sources, explain, document and migrate them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from surefoot.api import Stored
from surefoot.cli.help import options_page, settings_page
from surefoot.config import flags
from surefoot.config.documents import parse, read
from surefoot.config.explain import explain, find_field, reference, shown
from surefoot.config.fields import flatten, leaves
from surefoot.config.files import settings
from surefoot.config.migrate import migrate
from surefoot.config.resolve import resolve
from surefoot.config.schema import RunConfig
from surefoot.config.suggest import nearest
from surefoot.errors import ConfigError, Problem, RunError
from surefoot.recipes import Recipe, find, names
from surefoot.track.folder import find as find_run
from surefoot.track.folder import runs_dir

__all__ = ["run"]

_WHAT = {
    "show": "Print every setting of a recipe or a run, and where each value comes from.",
    "explain": "Say what a setting means, and in a run where its value came from.",
    "docs": "Write the reference of every setting of a recipe as Markdown.",
    "migrate": "Write an old configuration file in today's form, with its comments.",
}
_USAGE = {
    "show": "RECIPE|RUN [--preset NAME] [-c FILE] [--json] [settings]",
    "explain": "SETTING [RUN|RECIPE] [--json]",
    "docs": "RECIPE",
    "migrate": "OLD [--write NEW] [--recipe RECIPE]",
}


def run(verb: str, argv: list[str]) -> int:
    """Do one of `show`, `explain`, `docs` and `migrate`, and return the exit code."""
    doings: dict[str, Callable[[list[str]], int]] = {
        "show": _show,
        "explain": _explain,
        "docs": _docs,
        "migrate": _migrate,
    }
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, _WHAT))
        print("\n".join(f"surefoot {verb} {w.ljust(width)}  {text}" for w, text in _WHAT.items()))
        return 0
    word, *rest = argv
    if word not in doings:
        near = nearest(word, doings)
        fix = f"did you mean surefoot {verb} {near}?" if near else f"one of {', '.join(doings)}"
        raise ConfigError(f"unknown: surefoot {verb} {word}", fix=fix)
    return doings[word](rest)


def _own(word: str, argv: Sequence[str]) -> tuple[argparse.ArgumentParser, str | None, list[str]]:
    """Return a parser for `config WORD`, the first argument, and the rest."""
    own = flags.parser(f"surefoot config {word}", _WHAT[word])
    own.add_argument("--json", action="store_true", help="Print one JSON document.")
    first = argv[0] if argv and not argv[0].startswith("-") else None
    return own, first, list(argv[1:] if first is not None else argv)


def _plain(
    own: argparse.ArgumentParser, word: str, argv: Sequence[str]
) -> argparse.Namespace | None:
    """Read a command without settings; None when its help was asked for and printed."""
    options, _, problems = flags.parse(own, argv)
    if options.help:
        print(options_page(own, _USAGE[word]))
        return None
    if problems:
        raise ConfigError(problems)
    return options


def _usage_error(word: str, what: str) -> ConfigError:
    return ConfigError(what, fix=f"surefoot config {word} {_USAGE[word]}")


def _recipe(ref: str) -> Recipe | None:
    return find(ref) if ref in names() or ref.endswith(".py") else None


def _stored(ref: str, runs: str | None) -> Stored:
    """Return the configuration of a run, and its recipe."""
    try:
        return Stored(find_run(runs_dir(runs), ref))
    except RunError as error:
        near = nearest(ref, names())
        if near is None:
            raise
        what = f"no recipe and no run is called {ref}"
        raise ConfigError(what, fix=f"did you mean {near}?") from error


# ----------------------------------------------------------------------------------------- show


def _show(argv: list[str]) -> int:
    own, ref, rest = _own("show", argv)
    own.add_argument("--preset", metavar="NAME", help="Values of this preset.")
    own.add_argument("-c", "--config", metavar="FILE", action="append", default=[], help="A file.")
    own.add_argument("--runs", metavar="DIR", help="Folder of the runs.")
    if ref is None:
        if _plain(own, "show", argv) is None:
            return 0
        raise _usage_error("show", "say which recipe or run")
    recipe = _recipe(ref)
    return _show_run(own, ref, rest) if recipe is None else _show_recipe(own, recipe, rest)


def _show_recipe(own: argparse.ArgumentParser, recipe: Recipe, argv: list[str]) -> int:
    own.prog += " RECIPE"
    options, values, problems = flags.parse(own, argv, recipe.config)
    if options.help:
        print(settings_page(own, recipe, options.preset))
        return 0
    found = resolve(
        recipe.name, recipe.config, recipe.presets, options.preset, options.config, values,
        default_preset=recipe.default_preset, problems=problems,
    )  # fmt: skip
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    about = {"recipe": recipe.name, "preset": found.preset}
    _print_settings(about, found.config, found.sources, {}, options.json)
    return 0


def _show_run(own: argparse.ArgumentParser, ref: str, argv: list[str]) -> int:
    options = _plain(own, "show", argv)
    if options is None:
        return 0
    if options.preset or options.config:
        raise _usage_error("show", "a run has its settings; --preset and -c are for recipes")
    kept = _stored(ref, options.runs)
    about = {"run": kept.folder.name, "recipe": kept.recipe.name, "preset": kept.preset}
    _print_settings(about, kept.config, kept.sources, kept.pinned, options.json)
    return 0


def _print_settings(
    about: Mapping[str, str | None],
    config: RunConfig,
    sources: Mapping[str, str],
    pinned: Mapping[str, Any],
    as_json: bool,
) -> None:
    flat = flatten(config)
    if as_json:
        pairs = {path: {"value": v, "source": sources.get(path)} for path, v in flat.items()}
        print(json.dumps({**about, "settings": pairs, "resolved": dict(pinned)}, indent=2))
        return
    print("# " + ", ".join(f"{key} {value}" for key, value in about.items() if value))
    print("\n".join(settings(flat, sources)))
    for name, value in pinned.items():
        print(f"# resolved: {name} = {shown(value)}")


# -------------------------------------------------------------------------------------- explain


def _explain(argv: list[str]) -> int:
    if argv and argv[0].startswith("--") and argv[0] not in ("--help", "--json", "--runs"):
        argv = [argv[0][2:], *argv[1:]]  # a setting may be asked for by its flag
    if len(argv) > 1 and _recipe(argv[0]) is not None:
        argv = [argv[1], argv[0], *argv[2:]]  # `explain RECIPE SETTING` reads as well
    own, word, rest = _own("explain", argv)
    own.add_argument("target", nargs="?", metavar="RUN|RECIPE", help="Where to look.")
    own.add_argument("--runs", metavar="DIR", help="Folder of the runs.")
    options = _plain(own, "explain", rest)
    if options is None:
        return 0
    if word is None:
        raise _usage_error("explain", "say which setting")
    recipe = _recipe(options.target) if options.target else _with_field(word)
    value, source = None, None
    if recipe is None:
        kept = _stored(options.target, options.runs)
        recipe = kept.recipe
        path = find_field(word, recipe.config)
        value, source = flatten(kept.config)[path], kept.sources[path]
    else:
        path = find_field(word, recipe.config)
    if options.json:
        print(json.dumps(_facts(path, recipe, value, source), indent=2))
    else:
        print(explain(path, recipe.config, recipe.presets, value, source))
    return 0


def _with_field(word: str) -> Recipe:
    """Return the first recipe that has the setting, or else the first at all."""
    known = [find(name) for name in names()]
    last = word.lstrip("-").replace("-", "_").rpartition(".")[2]
    having = [r for r in known if any(leaf.name == last for leaf in leaves(r.config).values())]
    return (having or known)[0]


def _facts(path: str, recipe: Recipe, value: Any, source: str | None) -> Mapping[str, Any]:
    leaf = leaves(recipe.config)[path]
    facts = {"setting": path, "meaning": leaf.doc, "accepts": leaf.expectation()}
    more = {"default": flatten(recipe.config())[path], "identity": leaf.identity}
    return facts | more | ({"value": value, "source": source} if source else {})


# --------------------------------------------------------------------------------- docs, migrate


def _docs(argv: list[str]) -> int:
    own, ref, rest = _own("docs", argv)
    options = _plain(own, "docs", rest)
    if options is None:
        return 0
    if ref is None:
        raise _usage_error("docs", "say which recipe")
    recipe = find(ref)
    page = reference(
        recipe.name, recipe.summary, recipe.config, recipe.presets, recipe.default_preset
    )
    print(json.dumps({"recipe": recipe.name, "markdown": page}) if options.json else page, end="")
    return 0


def _migrate(argv: list[str]) -> int:
    own, old, rest = _own("migrate", argv)
    own.add_argument("--write", metavar="NEW", help="The file to write; it must not exist yet.")
    own.add_argument("--recipe", default="charlm", help="Recipe that the settings are for.")
    options = _plain(own, "migrate", rest)
    if options is None:
        return 0
    if old is None:
        raise _usage_error("migrate", "say which file")
    document = read(old)
    schema = find(options.recipe).config
    text = migrate(document, schema)
    if text is None:
        print(f"note: {document.name} is in today's form already", file=sys.stderr)
        text = document.text
    parse("migrated.yaml", text)
    if options.write is None:
        print(text, end="")
        return 0
    _write_new(Path(options.write), text)
    print(f"wrote {options.write}")
    return 0


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError([Problem(f"{path} exists", str(path), "choose a new name")]) from None
    except OSError as error:
        what = f"cannot write {path}: {error.strerror}"
        raise ConfigError([Problem(what, str(path), "choose a folder that exists")]) from None
