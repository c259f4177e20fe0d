"""`surefoot plan RECIPE`: what a run will take, whether it fits, and what one could change."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot import recipes
from surefoot.cli.folded import hanging, room
from surefoot.cli.options import print_json, settings_from
from surefoot.cli.waiting import waiting
from surefoot.config import flags
from surefoot.errors import ConfigError, OutOfResources, Problem, SurefootError

if TYPE_CHECKING:
    from surefoot.config.resolve import Resolved
    from surefoot.engine.foresee.cards import Place
    from surefoot.engine.foresee.outlook import Change, Outlook
    from surefoot.engine.foresee.tier import Tier

__all__ = ["run"]

_SMALL = 1000  # bytes that are not worth a line
_BAR = 24  # columns of a bar that stands for everything
_WIDE, _NARROW, _LEAST = 105, 79, 55  # columns for bars and words, for words, for bars
_MEANT = {
    "optimiser": "what the optimiser remembers, and its work",
    "activations": "kept from the forward pass for the backward pass",
    "loss": "head and loss, kept for the backward pass",
    "backward": "work of the backward pass",
    "fragments": "held by the allocator beyond the tensors",
    "program": "Python, torch and the data, as they are now",
    "CUDA": "the context",
    "cuBLAS": "its workspace",
}


def run(verb: str, argv: list[str]) -> int:
    """Run the verb and return its exit code."""
    own = flags.parser("surefoot plan RECIPE", "Say what a run will take, before it starts.")
    own.add_argument("--gpu", metavar="WHICH", help="8GB, a card like 'RTX 3060', or this.")
    settings_from(own)
    own.add_argument("--probe", action="store_true", help="Measure a real step on this machine.")
    own.add_argument("--write", type=Path, metavar="FILE", help="Write a configuration that fits.")
    own.add_argument("--runs", metavar="DIR", help="Folder of the runs (or $SUREFOOT_RUNS).")
    own.add_argument("--json", action="store_true", help="Print one JSON document.")
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        names = ", ".join(recipes.names())
        raise ConfigError([Problem("which recipe?", "command line", f"recipes: {names}")])
    if argv[0] in ("-h", "--help"):
        print(own.format_help())
        return 0
    recipe = recipes.find(argv[0])
    options, given, problems = flags.parse(own, argv[1:], recipe.config)
    if not options.help:
        from surefoot.api import settle

        resolved = settle(recipe, options.preset, options.config, given, problems)
        return _plan(recipe, resolved, options)
    from surefoot.cli.help import settings_page

    print(settings_page(own, recipe, options.preset))
    return 0


def _plan(recipe: recipes.Recipe, resolved: Resolved, options: Any) -> int:
    from surefoot.cli.tiers import document, lines
    from surefoot.data.fetch import cache_dir

    if options.write is not None and options.write.exists():
        raise ConfigError(f"--write {options.write}: there is such a file", fix="another name")
    cache, config = cache_dir() / "fit.json", resolved.config
    with waiting() as show:
        show("loading what the recipe takes ...")
        from surefoot.engine.foresee.cards import find_place
        from surefoot.engine.foresee.outlook import changes, look_ahead, rescue

        if recipe.depth is not None:
            recipe.depth(config)  # libraries that it loads are part of the program
        place = find_place(options.gpu, cache_dir() / "ceilings.json", config.machine.device)
        if options.probe:
            show("measuring steps ...")
            _probe(recipe, config, place.device, cache)
        steps = _tiers(recipe, config, place, show)
        if steps and config.model.context == "auto":
            config = _chosen(config, steps)
        show("playing steps ...")
        found = look_ahead(recipe, config, place, cache)
        advice = list(changes(recipe, config, found)) if found.fits and not steps else []
        saving = None if found.fits else rescue(recipe, config, found)
    past = _past(config, options.runs) if place.device else None
    if options.json:
        print_json(
            _document(recipe.name, found, advice, saving)
            | {"before": past, "tiers": document(steps)}
        )
    else:
        for line in _lines(recipe, resolved, found, advice, saving, past):
            print(hanging(line, 7))
        if steps:
            print()
            for line in lines(steps, _offer(steps, type(config))):
                print(hanging(line, 7))
    if options.write is not None:
        text = _write(recipe, resolved, found, saving, options.write)
        if text:
            print(text, file=sys.stderr if options.json else sys.stdout)
    if found.fits:
        return 0
    raise _too_large(recipe, found, saving)


def _tiers(
    recipe: recipes.Recipe, config: Any, place: Place, show: Callable[[str], None]
) -> list[Tier]:
    """Return how long rows may be, and show each as soon as it is known."""
    found: list[Tier] = []
    if recipe.tiers is not None:
        show("playing steps of longer and longer rows ...")
        for tier in recipe.tiers(recipe, config, place):
            found.append(tier)
            verdict = "fit" if tier.fits else "do not fit"
            show(f"playing steps: rows of {tier.context:,} tokens {verdict} ...")
    return found


def _chosen(config: Any, steps: Sequence[Tier]) -> Any:
    """Return `config` with the largest context that needs nothing else, and that the base knows."""
    from surefoot.config.fields import changed

    good = [t.context for t in steps if t.fits and not t.settings and t.known is not False]
    least = min(steps[0].context, steps[0].trained or steps[0].context)
    return changed(config, {"model.context": max(good, default=least)})


def _offer(steps: Sequence[Tier], schema: Any) -> str:
    """Return the flags of the largest tier that fits."""
    fitting = [t for t in steps if t.fits]
    if not fitting:
        return ""
    return _flags({"model.context": fitting[-1].context, **fitting[-1].settings}, schema)


def _probe(recipe: recipes.Recipe, config: Any, device: str | None, cache: Path) -> None:
    """Measure forward and backward passes as a run would at its start, and keep what was found."""
    from surefoot.engine.auto.fit import choose
    from surefoot.engine.plan import prepare
    from surefoot.engine.world import open_world

    if device is None:
        raise ConfigError("--probe measures on this machine", fix="leave out --gpu, or --gpu this")
    world = open_world(device)
    job = recipe.build(config, world)
    prepare(job, config, {})
    choose(config, job, world, config.limit(len(job.source)), cache)


def _past(config: Any, runs: str | None) -> dict[str, Any] | None:
    """Return what the newest run of the same settings took on this machine, if there is one."""
    from surefoot.config.identity import fingerprint
    from surefoot.track.folder import list_runs, runs_dir
    from surefoot.track.machine import describe_machine

    wanted, host = fingerprint(config), describe_machine()["host"]
    for folder in reversed(list_runs(runs_dir(runs))):
        meta = folder.meta
        same = meta.get("identity") == wanted and meta.get("machine", {}).get("host") == host
        if same and "taken" in meta:
            return {"run": folder.name, **meta["taken"]}
    return None


def _lines(
    recipe: recipes.Recipe,
    resolved: Resolved,
    found: Outlook,
    advice: list[Change],
    saving: Change | None,
    past: Mapping[str, Any] | None,
) -> Iterator[str]:
    from surefoot.track.text import bytes_text, count

    need, place, config = found.need, found.place, resolved.config
    sizes = ", ".join(
        f"{count(number)} parameters" + (f" ({name})" if len(need.parameters) > 1 else "")
        for name, number in need.parameters.items()
    )
    label = f"{recipe.name}, {resolved.preset}" if resolved.preset else recipe.name
    yield f"plan   {label}: {sizes}, {found.pins.precision}, {need.optimiser}"
    yield f"on     {place.name}: {bytes_text(place.room)} to use"
    if place.note:
        yield f"       {place.note}"
    pieces = -(-need.examples // need.micro)
    cut = "at once" if pieces == 1 else f"in {pieces} pieces of {need.micro}, same result"
    verdict = "fits" if found.fits else "does not fit"
    yield f"needs  {bytes_text(found.total)}, {verdict}, with batches of {need.examples} {cut}"
    for name, size in found.parts.items():
        if size >= _SMALL:
            bar = f"{'█' * round(_BAR * size / found.total):<{_BAR}}  "
            meant = _MEANT.get(name, "") if room() >= _NARROW else ""
            bar = bar if room() >= (_WIDE if meant else _LEAST) else ""
            yield f"       {name:<12}{bytes_text(size):>9}  {bar}{meant}".rstrip()
    yield f"time   {_time(found)}"
    if past:
        took = f"{_pace(past['step_seconds'])} a step, the process held"
        yield f"       run {past['run']} took {took} {bytes_text(past['bytes'])}"
    yield f"disk   {bytes_text(found.disk)} for checkpoints, at most"
    if advice:
        yield ""
        wide = (
            36
            if room() >= _LEAST + 2
            else max(len(_flags(c.settings, type(config))) for c in advice)
        )
        yield f"{'what you could change':<{wide + 2}}{'memory':>10}{'time':>9}"
        for change in advice:
            yield _change(change, found, type(config), wide)
    if saving is not None:
        yield ""
        yield f"fits with {_flags(saving.settings, type(config))}: {bytes_text(saving.outlook.total)}"


def _change(change: Change, now: Outlook, schema: Any, wide: int) -> str:
    from surefoot.track.text import bytes_text

    after = change.outlook
    less = now.total - after.total
    memory = f"{'-' if less > 0 else '+'}{bytes_text(abs(less))}" if less else "same"
    time = ""
    if now.time and after.time and not now.timed:
        share = after.time / now.time - 1
        time = f"{share:+.0%}" if abs(share) >= 0.005 else "same"
    return f"  {_flags(change.settings, schema):<{wide}}{memory:>10}{time:>9}".rstrip()


def _flags(settings: Mapping[str, Any], schema: Any) -> str:
    return " ".join(
        f"{flags.spelling(path, schema)} {_value(value)}" for path, value in settings.items()
    )


def _value(value: Any) -> Any:
    if value is None:
        return "none"
    return ("no", "yes")[value] if isinstance(value, bool) else value


def _time(found: Outlook) -> str:
    if found.step is None:
        return "not known for a size alone: name the card (--gpu 'RTX 3060')"
    step = f"{_pace(found.step)} a step"
    past = found.place.overhead
    if found.timed and past is not None:
        runs = f"{past.runs} run{'s' * (past.runs > 1)}"
        how = f"measured here, and x {past.time:.2g} as {runs} took ({past.fastest:.2g} to {past.slowest:.2g})"
    elif found.timed:
        how = "measured here (without the update)"
    elif found.place.device == "cpu":
        how = "by the ceilings of one core; --probe measures"
    elif found.place.device:
        how = "by the ceilings of this card; --probe measures"
    else:
        how = "if it reaches its usual share of the maker's figures; not measured"
    if found.time is None:
        return f"until stopped, {step}, {how}"
    return f"{_span(found.time)} for {found.need.steps} steps, {step}, {how}"


def _pace(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _span(seconds: float) -> str:
    if seconds < 9.5:
        return f"{seconds:.2g} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


def _document(
    name: str, found: Outlook, advice: list[Change], saving: Change | None
) -> dict[str, Any]:
    need = found.need
    return {
        "recipe": name, "place": found.place.name, "room": found.place.room, "fits": found.fits,
        "bytes": found.total, "parts": dict(found.parts), "parameters": dict(need.parameters),
        "batch_size": need.examples, "micro_batch_size": need.micro,
        "precision": found.pins.precision, "steps": need.steps, "step_seconds": found.step,
        "seconds": found.time, "measured": found.timed, "flops": need.flops, "disk": found.disk,
        "largest": [{"bytes": size, "what": what} for size, what in need.largest],
        "changes": [
            {"settings": dict(c.settings), "bytes": c.outlook.total, "seconds": c.outlook.time}
            for c in advice
        ],
        "would_fit": dict(saving.settings) if saving else None,
    }  # fmt: skip


def _write(
    recipe: recipes.Recipe, resolved: Resolved, found: Outlook, saving: Change | None, path: Path
) -> str:
    """Write what fits; return what to tell of it. Raises SurefootError where it cannot be written."""
    from surefoot.config.fields import changed
    from surefoot.config.files import dump
    from surefoot.engine.foresee.outlook import cut

    if not found.fits and saving is None:
        return ""
    config = resolved.config if saving is None else changed(resolved.config, saving.settings)
    chosen = cut(config, found if saving is None else saving.outlook)
    text = dump(chosen, resolved.sources, {}, recipe.name, resolved.preset, recipe.location)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SurefootError(f"--write: cannot write {path}: {error.strerror}") from None
    return f"wrote  {path}: surefoot train -c {path}"


def _too_large(recipe: recipes.Recipe, found: Outlook, saving: Change | None) -> OutOfResources:
    from surefoot.track.text import bytes_text

    over = bytes_text(found.total - found.place.room)
    fix = "a smaller model, or a larger card"
    if saving is not None:
        words = _flags(saving.settings, recipe.config)
        fix = f"{words} needs {bytes_text(saving.outlook.total)}"
    return OutOfResources(f"{over} too much, even with one example at a time", fix=fix)
