"""`surefoot parity`: two implementations in lockstep. `surefoot trace`: golden traces."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot import recipes
from surefoot.cli.options import print_json, read, settings_from
from surefoot.config import flags
from surefoot.config.fields import Given
from surefoot.errors import CheckFailed, ConfigError, Problem
from surefoot.recipes import Recipe

if TYPE_CHECKING:
    from surefoot.config.schema import RunConfig
    from surefoot.lab.lockstep import Lockstep
    from surefoot.lab.side import Side

__all__ = ["run"]

STEPS, WIDEST = 50, 44
_Asked = tuple[Recipe, argparse.Namespace, dict[str, Given], list[Problem]]


def run(verb: str, argv: list[str]) -> int:
    """Run the verb and return its exit code; 5 where two that should be equal are not."""
    if verb == "parity":
        return _parity(argv)
    if argv[:1] == ["record"]:
        return _record(argv[1:])
    if argv[:1] == ["check"]:
        return _check(argv[1:])
    if argv and argv[0] in ("-h", "--help"):
        print(_TRACE)
        return 0
    raise ConfigError("trace record or trace check?", fix="surefoot trace --help")


_TRACE = """What a recipe computes, step by step, in a file: so that a refactoring can prove itself.

usage: surefoot trace record RECIPE --out FILE [--steps N] [--preset NAME] [settings]
       surefoot trace check FILE [--tolerance X] [settings]"""


def _parser(prog: str, text: str) -> argparse.ArgumentParser:
    own = flags.parser(f"surefoot {prog}", text)
    own.add_argument("--json", action="store_true", help="Print one JSON document.")
    return own


def _with_settings(own: argparse.ArgumentParser) -> None:
    settings_from(own)
    own.add_argument("--steps", type=int, metavar="N", help=f"How many steps ({STEPS}).")


def _parity(argv: list[str]) -> int:
    own = _parser("parity RECIPE", "Two implementations: the same data, weights and steps.")
    for side in "ab":
        own.add_argument(
            f"--{side}", action="append", default=[], metavar="WHAT",
            help=f"What {side} is: ops.norm=fused or another setting, a preset, a file.",
        )  # fmt: skip
    own.add_argument("--b-run", metavar="RUN", help="Compare a with what this run recorded.")
    own.add_argument("--runs", metavar="DIR", help="Folder of the runs (or $SUREFOOT_RUNS).")
    own.add_argument("--free", action="store_true", help="Let both drift; else b's weights follow.")
    own.add_argument("--tolerance", type=float, metavar="X", help="Relative error that is allowed.")
    own.add_argument(
        "--max-slowdown", type=read("share"), metavar="5%", help="Fail where b is slower by more."
    )
    own.add_argument(
        "--max-memory",
        type=read("share"),
        metavar="5%",
        help="Fail where b takes more memory by more.",
    )
    own.add_argument("--out", metavar="DIR", help="Where the picture goes (RUNS/parity).")
    _with_settings(own)
    asked = _read(own, argv)
    if asked is None:
        return 0
    recipe, options, given, problems = asked
    if options.b_run:
        unfit = [
            n for n in ("b", "free", "max_slowdown", "max_memory", "out") if getattr(options, n)
        ]
        if unfit:
            words = ", ".join(f"--{name.replace('_', '-')}" for name in unfit)
            raise ConfigError(f"a record has no {words}", fix="leave out --b-run, or these")
        return _against_run(recipe, options, given, problems)
    sides = [_settle(recipe, options, words, given, problems) for words in (options.a, options.b)]
    found, seconds = _lockstep(recipe, sides, options)
    picture = _draw(recipe, found, seconds, options)
    if options.json:
        print_json({**found.as_dict(), "picture": picture and str(picture)})
    else:
        print("\n".join(_lines(recipe, found, options.free)))
        if picture:
            print(f"\nlook   {picture}")
    _fewer(options, found.steps)
    _gate(found, options)
    return 0


def _read(own: argparse.ArgumentParser, argv: list[str]) -> _Asked | None:
    """Return the recipe and what was said of it, or None where help was wanted and printed."""
    if argv and not argv[0].startswith("-"):
        recipe = recipes.find(argv[0])
        options, given, problems = flags.parse(own, argv[1:], recipe.config)
        if not options.help:
            return recipe, options, given, problems
    _usage(own, ["--help"] if argv else [])
    return None


def _usage(own: argparse.ArgumentParser, argv: list[str]) -> int:
    if argv and argv[0] in ("-h", "--help"):
        from surefoot.cli.help import options_page

        usage = (
            "[--a WHAT] [--b WHAT] [options] [settings]" if "parity" in own.prog else "[options]"
        )
        print(options_page(own, usage))
        return 0
    examples = {
        "surefoot parity RECIPE": "surefoot parity charlm --b ops.norm=reference",
        "surefoot trace record RECIPE": "surefoot trace record charlm",
        "surefoot trace check FILE": "surefoot trace check charlm.trace.json",
    }
    what = f"which {own.prog.rpartition(' ')[2].lower()}?"
    raise ConfigError([Problem(what, "command line", examples[own.prog])])


def _settle(
    recipe: Recipe, options: argparse.Namespace, words: list[str], given: Mapping[str, Given],
    problems: Any,
) -> RunConfig:  # fmt: skip
    """Return the configuration of one side: what both have, and over it what its words say."""
    from surefoot import api

    preset, files, own = options.preset, list(options.config), {}
    for word in words:
        name, equals, value = word.partition("=")
        if equals:
            own[name] = value
        elif word in recipe.presets:
            preset = word
        else:
            files.append(word)
    values, wrong = flags.arguments(own, recipe.config)
    resolved = api.settle(recipe, preset, files, {**given, **values}, [*problems, *wrong])
    config: RunConfig = resolved.config
    return config


def _lockstep(
    recipe: Recipe, configs: list[RunConfig], options: argparse.Namespace
) -> tuple[Lockstep, tuple[list[float], list[float]]]:
    from surefoot.lab.lockstep import lockstep

    a = _side(_label(options.a), recipe, configs[0])
    b = _side(_label(options.b), recipe, a.settled(configs[1]))
    found = lockstep(
        a, b, _count(options), tethered=not options.free, tolerance=options.tolerance,
        watch=_progress(_count(options)),
    )  # fmt: skip
    return found, (a.seconds[1:], b.seconds[1:])


def _label(words: list[str]) -> str:
    text = " ".join(words) or "as it is"
    return text if len(text) <= WIDEST else f"{len(words)} changes" if len(words) > 1 else "changed"


def _side(label: str, recipe: Recipe, config: RunConfig) -> Side:
    from surefoot.data.fetch import cache_dir
    from surefoot.lab.side import Side

    return Side(label, recipe, config, cache_dir() / "fit.json")


def _count(options: argparse.Namespace) -> int:
    count = STEPS if options.steps is None else int(options.steps)
    if count < 1:
        raise ConfigError(f"--steps {count}: expected 1 or more")
    return count


def _fewer(options: argparse.Namespace, taken: int) -> None:
    """Say so where a training ends before the steps that were asked for."""
    if options.steps is not None and taken < options.steps:
        what = f"note: this training has {taken} steps; --max-steps {options.steps} gives it more"
        print(what, file=sys.stderr)


def _progress(total: int) -> Callable[[int], None]:
    """Return what tells each step, on a terminal only."""
    if not sys.stderr.isatty():
        return lambda step: None

    def show(step: int) -> None:
        end = "\r" if step < total else "\r\033[K"
        print(f"step {step}/{total}" if step < total else "", end=end, file=sys.stderr, flush=True)

    return show


def _draw(
    recipe: Recipe, found: Lockstep, seconds: tuple[list[float], list[float]],
    options: argparse.Namespace,
) -> Path | None:  # fmt: skip
    """Draw both sides; None, with a note, where nothing can be written."""
    from surefoot.track.folder import runs_dir
    from surefoot.track.pair import draw_pair

    folder = Path(options.out) if options.out else runs_dir(options.runs) / "parity"
    tracks = {n: {**vars(t), "errors": t.errors()} for n, t in found.tracks.items()}
    path = folder / f"{recipe.name}.png"
    try:
        return draw_pair(found.labels, tracks, seconds, found.tolerance, path)
    except OSError as error:
        print(f"note: no picture was written to {path}: {error.strerror}", file=sys.stderr)
        return None


def _lines(recipe: Recipe, found: Lockstep, free: bool) -> Iterator[str]:
    from surefoot.track.text import bytes_text, number

    a, b = found.labels
    width = max(len(a), len(b), 12)
    how = "each on its own" if free else "b's weights set to a's after each"
    yield f"parity of {recipe.name}: {found.steps} steps, {how}"
    yield f"{'':<18}{'a':<{width}}   b"
    yield f"{'':<18}{a:<{width}}   {b}"
    for op in sorted(found.ways[0]):
        one, two = found.ways[0][op], found.ways[1].get(op, "-")
        if one != two:
            yield f"{'ops.' + op:<18}{_short(one):<{width}}   {_short(two)}"
    for name, track in found.tracks.items():
        who = "" if len(found.tracks) == 1 else f" {name}"
        first, second = map(number, track.loss[-1])
        yield f"{'last loss' + who:<18}{first:<{width}}   {second}"
    one, two = (f"{s * 1e3:.2f} ms" for s in found.seconds)
    yield f"{'a step':<18}{one:<{width}}   {two}   {found.slowdown:+.1%}"
    one, two = map(bytes_text, found.memory)
    yield f"{'memory':<18}{one:<{width}}   {two}   {found.growth:+.1%}"
    yield ""
    for name, track in found.tracks.items():
        yield f"{name if len(found.tracks) > 1 else 'errors'}: {_worst(track, found.tethered)}"
    yield _verdict(found)


def _short(way: str) -> str:
    return way.partition("#")[0].rpartition("/")[2]


def _worst(track: Any, tethered: bool) -> str:
    parts = [f"loss {max(track.errors()):.1e}"]
    if track.gradient:
        parts.append(f"gradient {max(e for _, e in track.gradient):.1e}")
    if track.update:
        parts.append(f"update {max(e for _, e in track.update):.1e}")
    tail = "" if tethered else f"; weights at the end {track.weights:.1e} apart"
    return f"at most {', '.join(parts)}{tail}"


def _verdict(found: Lockstep) -> str:
    if found.first is not None:
        return f"differs: {found.first} ({found.tolerance:.0e} is allowed)"
    within = f"the same within {found.tolerance:.0e} at every step"
    if not found.identical:
        return within
    small = [e for t in found.tracks.values() for _, e in (*t.gradient, *t.update)]
    bits = "every loss and gradient norm has the same bits"
    return f"{within}; {bits}" if any(small) else f"the same: {bits}"


def _gate(found: Lockstep, options: argparse.Namespace) -> None:
    slower, larger = options.max_slowdown, options.max_memory
    wrong = []
    if found.first is not None and (found.tethered or options.tolerance is not None):
        wrong.append(str(found.first))
    if slower is not None and found.slowdown > slower:
        wrong.append(f"b is slower by {found.slowdown:.1%}, at most {slower:.1%} is allowed")
    if larger is not None and found.growth > larger:
        wrong.append(f"b takes {found.growth:.1%} more memory, at most {larger:.1%} is allowed")
    if wrong:
        raise CheckFailed("no parity: " + "; ".join(wrong))


def _against_run(
    recipe: Recipe, options: argparse.Namespace, given: Mapping[str, Given], problems: Any
) -> int:
    from surefoot import api
    from surefoot.config.fields import changed
    from surefoot.config.resolve import amend
    from surefoot.engine.auto.fit import Pins
    from surefoot.lab import trace
    from surefoot.track.folder import find, runs_dir

    kept = api.stored(find(runs_dir(options.runs), options.b_run))
    if kept.recipe.name != recipe.name:
        what = f"{options.b_run} is a run of {kept.recipe.name}, not of {recipe.name}"
        raise ConfigError(what, fix=f"surefoot parity {kept.recipe.name} --b-run {options.b_run}")
    pins = Pins.read(kept.folder.meta["pinned"])
    base = changed(pins.settle(kept.config), kept.folder.meta.get("settings", {}))
    own = dict(word.partition("=")[::2] for word in options.a)
    values, wrong = flags.arguments(own, recipe.config)
    config = amend(base, kept.sources, {**given, **values}, [*problems, *wrong]).config
    side = _side(" ".join(options.a) or "this code", recipe, config)
    known = trace.of_run(kept.folder, base, list(side.job.learners))
    return _held(side, known, f"the journal of {kept.folder.name}", options)


def _held(side: Side, known: dict[str, Any], what: str, options: argparse.Namespace) -> int:
    """Compare a side with a record, say how many steps are equal."""
    from surefoot.lab import trace

    if options.steps is not None:
        for learner in known["learners"].values():
            learner["steps"] = learner["steps"][: _count(options)]
    other = trace.changed_since(known)
    total = max(len(found["steps"]) for found in known["learners"].values())
    tolerance = options.tolerance or 0.0
    try:
        count = trace.compare(side, known, tolerance, _progress(total))
    except CheckFailed as error:
        error.where = what
        error.fix = f"changed since: {', '.join(other)}" if other else error.fix
        raise
    how = "bit for bit" if tolerance == 0 else f"within {tolerance:.0e}"
    if options.json:
        print_json({"steps": count, "tolerance": tolerance, "changed": other})
    else:
        print(f"{count} steps are {how} those of {what}")
        print("".join(f"though {text}\n" for text in other), end="")
    return 0


def _record(argv: list[str]) -> int:
    own = _parser("trace record RECIPE", "Write down what a recipe computes.")
    own.add_argument("--out", metavar="FILE", help="The trace (RECIPE.trace.json).")
    _with_settings(own)
    asked = _read(own, argv)
    if asked is None:
        return 0
    recipe, options, given, problems = asked
    from surefoot.lab import trace

    side = _side("", recipe, _settle(recipe, options, [], given, problems))
    path = Path(options.out or f"{recipe.name}.trace.json")
    found = trace.record(side, _count(options), _progress(_count(options)))
    trace.write(found, path)
    steps = max(len(x["steps"]) for x in found["learners"].values())
    if options.json:
        print_json({"file": str(path), "steps": steps})
    else:
        print(f"{steps} steps of {recipe.name} are in {path} ({path.stat().st_size / 1e3:.0f} kB)")
        print(f"next   surefoot trace check {path}")
    _fewer(options, steps)
    return 0


def _check(argv: list[str]) -> int:
    own = _parser("trace check FILE", "Take the steps of a trace again and compare every one.")
    own.add_argument("--tolerance", type=float, metavar="X", help="Relative error (0: the bits).")
    own.add_argument("--steps", type=int, metavar="N", help="No more than the first N.")
    if not argv or argv[0].startswith("-"):
        return _usage(own, argv)
    from surefoot.config.resolve import amend, check, starting_values
    from surefoot.lab import trace

    path = Path(argv[0])
    known = trace.read(path)
    recipe = recipes.recall(known["recipe"], f"the trace {path}")
    options, given, problems = flags.parse(own, argv[1:], recipe.config)
    if options.help:
        return _usage(own, ["--help"])
    where = str(path)
    told = {k: Given(v, where, where) for k, v in known["settings"].items()}
    base = check(recipe.config, {**starting_values(recipe.config), **told})
    config = amend(base.config, base.sources, given, problems).config
    return _held(_side("", recipe, config), known, str(path), options)
